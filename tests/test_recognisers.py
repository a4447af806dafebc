"""Recognisers by name, as tiny random models of their real classes: each is asked in its own way, alone or in a batch."""

import numpy as np
import pytest
import torch
from zoo import RECOGNISERS, causal_lm, recogniser_of

from salad import SaladError
from salad.speech.check import (
    CTCRecogniser,
    MoonshineRecogniser,
    Qwen3ASRRecogniser,
    TransducerRecogniser,
    load_recogniser,
)

CLASSES = {"ctc": CTCRecogniser, "tdt": TransducerRecogniser, "rnnt": TransducerRecogniser, "moonshine": MoonshineRecogniser,
           "qwen3": Qwen3ASRRecogniser}  # fmt: skip


@pytest.fixture(scope="module", params=RECOGNISERS)
def recogniser(request, tmp_path_factory):
    made = load_recogniser(str(recogniser_of(tmp_path_factory.mktemp(request.param), request.param)))
    made.kind = request.param
    return made


@pytest.fixture(scope="module")
def sounds():
    rng = np.random.default_rng(0)
    return [(0.1 * rng.standard_normal(n)).astype(np.float32) for n in (16_000, 8_000, 24_000)]


def test_a_recording_is_heard_alike_alone_and_beside_others(recogniser, sounds):
    assert type(recogniser) is CLASSES[recogniser.kind.partition("-")[0]]
    together = recogniser.transcribe(sounds)
    assert together == [recogniser.transcribe([one])[0] for one in sounds] and len(set(together)) > 1
    assert recogniser.transcribe([]) == []


def test_what_is_heard_is_what_the_model_says_by_its_own_processor(recogniser, sounds):
    one, model, processor = sounds[0], recogniser.model, recogniser.processor
    with torch.inference_mode():
        if recogniser.kind == "qwen3-asr":
            given = processor.apply_transcription_request(audio=[one], language=["English"])
            assert "language English<asr_text>" in processor.tokenizer.decode(given["input_ids"][0])
            ids = model.generate(**given, max_new_tokens=12, do_sample=False)
            wanted = processor.decode(ids[0, given["input_ids"].shape[1] :], return_format="transcription_only")
        elif recogniser.kind.startswith("ctc"):
            ids = model(**processor.feature_extractor(one, sampling_rate=16_000, return_tensors="pt")).logits.argmax(-1)[0]
            wanted = processor.tokenizer.decode(ids.tolist())
        else:
            given = processor.feature_extractor([one], sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
            most = {"max_new_tokens": 6} if recogniser.kind == "moonshine" else {}
            ids = model.generate(**given, return_dict_in_generate=True, **most).sequences
            decoder = processor.tokenizer if recogniser.kind == "moonshine" else processor  # a transducer's repeats are repeats
            wanted = decoder.decode(ids[0], skip_special_tokens=True)
    assert recogniser.transcribe([one]) == [wanted.strip()]


def test_moonshine_is_not_asked_for_what_it_has_not_learnt(tmp_path, sounds):
    recogniser = load_recogniser(str(recogniser_of(tmp_path, "moonshine")))
    with pytest.raises(SaladError, match="hears English alone, and this is German"):
        recogniser.transcribe(sounds[:1], ["de"])
    assert len(recogniser.transcribe([np.zeros(16_000 * 2, np.float32)])[0]) < 200


def test_a_kind_that_nobody_wrote_a_class_for_is_refused_not_taken_for_whisper(tmp_path):
    from transformers import Speech2TextConfig, Speech2TextForConditionalGeneration

    config = Speech2TextConfig(vocab_size=32, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                               decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16)  # fmt: skip
    Speech2TextForConditionalGeneration(config).save_pretrained(tmp_path / "s2t")
    for folder, kind in ((tmp_path / "s2t", "speech_to_text"), (causal_lm(tmp_path / "llm", "llama"), "llama")):
        with pytest.raises(SaladError, match=f"{kind} is no recogniser that is known here: neither a CTC model nor whisper"):
            load_recogniser(str(folder))


def test_a_recogniser_of_ones_own_is_named_like_any_other_part(tmp_path, monkeypatch):
    code = "class Ears:\n    name = 'ears'\n    def transcribe(self, samples):\n        return ['yes'] * len(samples)\n"
    (tmp_path / "other_ears.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_recogniser("other_ears:Ears").transcribe([np.zeros(10)]) == ["yes"]
