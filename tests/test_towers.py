"""Encoders by name, as tiny random models of their real classes: shapes, batches, layers, and how far each looks ahead."""

import math

import numpy as np
import pytest
import torch
from tiny import tokenizer
from zoo import ENCODERS, encoder_of

from salad import SaladError
from salad.config import EncoderConfig, RunConfig
from salad.data.corpora import SpokenText
from salad.data.frame_source import FrameSource
from salad.data.interleaving import Span
from salad.models.encoders import KINDS, LogMel, SpeechEncoder, load_encoder, look_ahead
from salad.models.names import folder_sha256
from salad.models.prompts import PromptFormat

RATES = {"parakeet-ctc": 12.5, "parakeet-tdt": 12.5, "canary": 12.5, "qwen2-audio": 25.0, "qwen2.5-omni": 25.0,
         "qwen3-omni": 13.0, "qwen3-asr": 13.0}  # fmt: skip
WITH_LAYERS = ["whisper", "wav2vec2-base", "wav2vec2-large", "hubert", "wavlm", "parakeet-ctc", "voxtral", "voxtral-realtime"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("towers")


@pytest.fixture(scope="module")
def load(base):
    made: dict = {}

    def get(kind: str, **settings) -> SpeechEncoder:
        if not (base / kind).is_dir():
            encoder_of(base / kind, kind)
        key = (kind, str(settings))
        made[key] = made.get(key) or load_encoder(EncoderConfig(name=str(base / kind), **settings))
        return made[key]

    return get


def noise(seconds: float, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy((0.1 * np.random.default_rng(seed).standard_normal(int(seconds * 16_000))).astype(np.float32))


@pytest.mark.parametrize("kind", ENCODERS)
def test_recordings_of_any_length_side_by_side_are_what_each_is_alone(load, kind):
    encoder = load(kind)
    rate = RATES.get(kind, 50.0)
    assert (encoder.sample_rate, encoder.frame_rate) == (16_000, rate)
    sounds = [noise(seconds, i) for i, seconds in enumerate((1.0, 0.0, 0.005, 0.92))]
    together = encoder.each(sounds)
    for sound, frames in zip(sounds, together, strict=True):
        assert frames.shape == (math.floor(len(sound) / 16_000 * rate + 1e-6), encoder.dim)
        assert frames.dtype == torch.float32 and frames.isfinite().all() and not (frames == 0).all(-1).any()
        loudest = max(1.0, float(frames.abs().max())) if len(frames) else 1.0
        torch.testing.assert_close(frames, encoder(sound), rtol=0, atol=1e-4 * loudest)


@pytest.mark.parametrize("kind", ENCODERS)
def test_how_far_an_encoder_looks_ahead_is_measured(load, kind):
    encoder = load(kind)
    if kind == "voxtral-realtime":
        assert look_ahead(encoder, cuts=8) == 0 and encoder.is_causal
        encoder.delay, kept = 0, encoder.delay  # its centred windows, as they come
        try:
            assert 0 < look_ahead(encoder, cuts=8) <= 0.0025
        finally:
            encoder.delay = kept
    else:
        least = 1.0 if kind == "qwen2.5-omni" else math.inf  # chunks of 2 s attend to themselves only
        assert look_ahead(encoder, seconds=3.0, cuts=2) >= least - 0.6 and not encoder.is_causal


def test_look_ahead_of_known_size_is_found_to_the_sample():
    class Delayed(LogMel):
        ahead = 0

        def frames(self, samples_BT):
            return super().frames(torch.nn.functional.pad(samples_BT, (0, self.ahead))[:, self.ahead :])

    encoder = Delayed()
    assert look_ahead(encoder) == 0
    for encoder.ahead in (64, 700, 2000):
        found = look_ahead(encoder, cuts=20)
        assert encoder.ahead - 80 <= found * 16_000 <= encoder.ahead


def test_interleaving_goes_by_what_was_measured_not_by_what_an_encoder_says(monkeypatch):
    class CallsItselfCausal(LogMel):
        def frames(self, samples_BT):
            return super().frames(samples_BT).flip(1)

    sound = noise(3.0)
    changed = torch.cat([sound[:16_000], noise(1.0, 5), sound[32_000:]])
    spoken = SpokenText("s", "y", "abc", (), 3.0, "", 0, 0)
    spans = [Span(True, 0, 1, 0, 12), Span(False, 1, 2, 0, 0), Span(True, 2, 3, 25, 37)]
    found = []
    for samples in (sound, changed):
        monkeypatch.setattr("salad.data.frame_source.audio", lambda *_, s=samples: s.numpy())
        with pytest.warns(UserWarning, match="calls itself causal, but looks ahead to the recording's end"):
            found.append(FrameSource("", PromptFormat(tokenizer()), CallsItselfCausal()).frames(spoken, spans))
    assert np.array_equal(*found)  # spans are encoded alone: what is said between them changes neither


@pytest.mark.parametrize("kind", WITH_LAYERS)
def test_a_layer_or_a_weighted_mean_of_layers_can_be_asked_for(load, kind):
    sound = noise(0.5)
    last, first, second = (load(kind, **({} if n is None else {"layer": n}))(sound) for n in (None, 1, 2))
    assert first.shape == last.shape and not torch.allclose(first, last, atol=1e-3)
    torch.testing.assert_close(second, last, rtol=1e-4, atol=1e-4)  # two layers: number 2 is the last
    mean = load(kind, layer=(0.0, 1.0, 3.0))(sound)
    torch.testing.assert_close(mean, 0.25 * first + 0.75 * second, rtol=1e-4, atol=1e-4)
    with pytest.raises(SaladError, match="has 2 layers, so 0 to 2"):
        load(kind, layer=3)
    with pytest.raises(SaladError, match="3 weights"):
        load(kind, layer=(1.0, 1.0))


@pytest.mark.parametrize("kind", [kind for kind in ENCODERS if kind != "whisper"])
def test_neighbours_stack_to_a_frame(load, kind):
    sound = noise(0.9)
    plain, stacked = load(kind)(sound), load(kind, stack=2)(sound)
    assert torch.equal(stacked, plain[: len(stacked) * 2].reshape(len(stacked), -1)) and len(stacked) == len(plain) // 2


@pytest.mark.parametrize("kind", ["qwen2-audio", "qwen3-omni", "qwen3-asr"])
def test_what_a_tower_has_not_is_refused_in_a_line(load, kind):
    with pytest.raises(SaladError, match=r"encoder.layer is not for Qwen\w+, whose tower"):
        load(kind, layer=1)


def test_of_a_whole_speech_llm_the_tower_alone_is_held_and_computes_what_it_does_there(load, base):
    from transformers import VoxtralForConditionalGeneration

    encoder, sound = load("voxtral"), noise(1.0)
    whole = VoxtralForConditionalGeneration.from_pretrained(base / "voxtral").eval()
    size = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert size(encoder) == size(whole.model.audio_tower) < size(whole)
    given = encoder.extractor(sound.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        wanted = whole.model.audio_tower(given).last_hidden_state[0, :50]
    torch.testing.assert_close(encoder(sound), wanted, rtol=0, atol=1e-6)
    speech = load("voxtral", window="speech")
    assert speech(sound).shape == (50, 16) and not torch.allclose(speech(sound), encoder(sound), atol=1e-3)


def test_a_folder_whose_weights_lack_the_tower_is_one_line(load, base, tmp_path):
    from safetensors.torch import load_file, save_file

    load("voxtral")
    (tmp_path / "half").mkdir()
    for path in (base / "voxtral").iterdir():
        (tmp_path / "half" / path.name).write_bytes(path.read_bytes())
    kept = {k: v for k, v in load_file(base / "voxtral" / "model.safetensors").items() if "conv1" not in k}
    save_file(kept, tmp_path / "half" / "model.safetensors")
    with pytest.raises(SaladError, match="hold no whole audio tower of type 'voxtral_encoder'") as error:
        load_encoder(EncoderConfig(name=str(tmp_path / "half")))
    assert "\n" not in str(error.value) and len(folder_sha256(tmp_path / "half")) == 64


def test_a_layer_left_out_changes_no_stored_configuration():
    config = RunConfig(kind="stage1", contender="x", optim={"steps": 1, "lr_adapter": 1e-3, "lr_llm": 1e-3})
    assert "layer" not in config.model_dump(mode="json")["encoder"]
    assert EncoderConfig(layer=(1.0, 2.0)).model_dump(mode="json")["layer"] == [1.0, 2.0]
    assert {"wav2vec2", "wavlm", "parakeet_encoder", "voxtral_realtime_encoder"} <= set(KINDS)
