"""Speech: text that can be spoken, voices behind one interface, Shar folders, the ASR check, alignment.

An engine is named by a specification: `espeak`, `kokoro`, `kokoro:<folder or repository>`, `kokoro-onnx:<folder>`,
`piper:<folder>`, `openai:<url>#<model>::<recogniser>` or the user's own `package.module:name` (see `load_tts`)."""

import os
from pathlib import Path

from salad import parts
from salad.errors import SaladError
from salad.speech.utterance import SAMPLE_RATE, TTS, TimedPhone, Utterance, Word


def _engine_folder(name: str) -> str:
    """The folder that an engine's `name` stands for: itself, else the one of that name in SALAD_MODELS."""
    folder = Path(os.environ.get("SALAD_MODELS", "")) / name
    return str(folder) if os.environ.get("SALAD_MODELS") and not Path(name).is_dir() and folder.is_dir() else name


def load_tts(spec: str) -> TTS:
    """The engine that `spec` names: "espeak", "kokoro" (hexgrad/Kokoro-82M), "kokoro:<folder or repository>",
    "kokoro-onnx:<folder>" and "piper:<folder>" (either with "::<recogniser>", which aligns words where the model does not
    tell durations), "openai:<url>#<model>::<recogniser>" (an OpenAI-compatible endpoint), or "package.module:name", a class
    or function called without arguments. Raises SaladError."""
    if spec == "espeak":
        from salad.speech.espeak import Espeak

        return Espeak()
    if spec == "kokoro" or spec.startswith("kokoro:"):
        from salad.speech.kokoro import Kokoro

        return Kokoro(spec.partition(":")[2] or "hexgrad/Kokoro-82M")
    engine, _, where = spec.partition(":")
    if engine == "openai":
        from salad.speech.speech_endpoint import SpeechEndpoint

        address, _, recogniser = where.partition("::")
        url, _, model = address.partition("#")
        return SpeechEndpoint(url, model, recogniser or None)
    if engine in ("kokoro-onnx", "piper"):
        folder, _, recogniser = where.partition("::")
        if not folder:
            raise SaladError(f'TTS "{spec}" lacks its folder: say {engine}:<folder>')
        folder = _engine_folder(folder)
        if engine == "piper":
            from salad.speech.piper import Piper

            return Piper(folder, recogniser or None)
        from salad.speech.kokoro_onnx import KokoroOnnx

        return KokoroOnnx(folder, recogniser or None)
    if engine.startswith(("piper@", "kokoro-onnx@")):
        kind, _, content = spec.partition("@")
        raise SaladError(f"{spec} is known by its content ({content}), not by where it lies: say {kind}:<folder>")
    if ":" not in spec:
        raise SaladError(
            f'unknown TTS "{spec}": say espeak, kokoro, kokoro:<folder or repository>, kokoro-onnx:<folder>, '
            "piper:<folder>, openai:<url>#<model>::<recogniser> or package.module:name"
        )
    try:
        engine = parts.load(spec)()
    except SaladError as error:
        raise SaladError(f'TTS "{spec}" cannot be loaded: {error}') from error
    if not isinstance(engine, TTS):
        raise SaladError(f'TTS "{spec}" lacks name, voices or speak(); see salad.speech.TTS')
    return engine


__all__ = ["SAMPLE_RATE", "TTS", "TimedPhone", "Utterance", "Word", "load_tts"]
