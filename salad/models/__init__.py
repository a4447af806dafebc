"""Models: frozen speech encoders, the adapter, and the speech LM that joins them to a text LLM."""


def __getattr__(name):
    if name == "SpeechLM":
        from salad.models.speech_lm import SpeechLM

        return SpeechLM
    raise AttributeError(name)
