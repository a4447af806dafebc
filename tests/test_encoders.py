"""The frozen encoders, as random models of their real classes: rates, what each frame may hear, long recordings."""

import threading

import numpy as np
import pytest
import torch
from tiny import teacher, tokenizer

from salad import SaladError
from salad.config import EncoderConfig
from salad.data.corpora import SpokenText
from salad.data.frame_source import FrameSource
from salad.data.interleaving import Span
from salad.models.encoders import LogMel, fingerprint, load_encoder
from salad.models.prompts import PromptFormat


def mimi(folder):
    from transformers import MimiConfig, MimiModel

    config = MimiConfig(
        hidden_size=32, num_filters=4, num_hidden_layers=2, intermediate_size=48, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, codebook_size=16, codebook_dim=16, vector_quantization_hidden_dimension=16,
        num_quantizers=2, upsample_groups=32, sliding_window=20,
    )  # fmt: skip
    MimiModel(config).save_pretrained(folder)


def whisper(folder):
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    config = WhisperConfig(
        d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    WhisperModel(config).save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)


def phone(folder):
    from salad.models.phone import PhoneConfig, PhoneEncoder

    PhoneEncoder(PhoneConfig(width=16, n_phones=8)).save_pretrained(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("encoders")
    for make in (mimi, whisper, phone):
        torch.manual_seed(0)
        make(base / make.__name__)
    return base


@pytest.fixture(params=["mimi", "phone", "logmel"])
def causal(request, folders):
    name = request.param if request.param == "logmel" else str(folders / request.param)
    return load_encoder(EncoderConfig(name=name))


def test_mimi_holds_its_encoder_only_and_computes_what_the_whole_model_does(folders, tmp_path):
    from transformers import AutoModel

    whole = AutoModel.from_pretrained(folders / "mimi").eval()
    encoder = load_encoder(EncoderConfig(name=str(folders / "mimi")))
    assert whole.decoder is not None and encoder.model.decoder is None
    size = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    assert size(encoder) == size(whole) - size(whole.decoder)
    sound = noise(encoder, 2.0)
    with torch.no_grad():
        expected = whole.encoder(sound[None, None]).latents[0].T
    assert torch.equal(encoder(sound), expected[:25])
    encoder.model.save_pretrained(tmp_path)  # as a checkpoint that stands alone has it
    again = load_encoder(EncoderConfig(name=str(tmp_path)))
    assert torch.equal(again(sound), encoder(sound)) and fingerprint(again) == fingerprint(encoder)


def noise(encoder, seconds, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(0.1 * rng.standard_normal(int(seconds * encoder.sample_rate)).astype(np.float32))


def test_a_causal_encoders_frame_hears_nothing_after_its_end(causal):
    assert causal.causal and causal.frame_rate == 12.5
    sound = noise(causal, 3.0)
    frames = causal(sound)
    assert frames.shape == (37, causal.dim) and frames.dtype == torch.float32
    for frame in (0, 7, 20, 35):
        changed = sound.clone()
        changed[int((frame + 1) / causal.frame_rate * causal.sample_rate) :] = 0.7
        after = causal(changed)
        torch.testing.assert_close(after[: frame + 1], frames[: frame + 1], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(after[frame + 1 :], frames[frame + 1 :], atol=1e-3)


def test_mimi_gives_its_latents_before_quantisation_at_12_5_hz(folders):
    from transformers import MimiModel

    encoder = load_encoder(EncoderConfig(name=str(folders / "mimi")))
    assert (encoder.sample_rate, encoder.dim) == (24_000, 32)
    sound = noise(encoder, 2.0)
    with torch.no_grad():
        whole = MimiModel.from_pretrained(folders / "mimi").eval().encoder(sound[None, None]).latents
    assert torch.equal(encoder(sound), whole[0].T[:25])


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.5, 31.3])
def test_as_many_frames_as_the_recording_lasts(causal, seconds):
    frames = causal(noise(causal, seconds))
    assert frames.shape == (int(seconds * causal.frame_rate + 1e-6), causal.dim)


def test_whisper_splits_at_30_seconds_and_joins(folders):
    encoder = load_encoder(EncoderConfig(name=str(folders / "whisper")))
    assert not encoder.causal and encoder.longest_s == 30.0 and encoder.frame_rate == 50.0
    sound = noise(encoder, 70.02)
    frames = encoder(sound)
    assert frames.shape == (3501, encoder.dim) and frames.dtype == torch.float32
    for start in (0, 30, 60):
        part = encoder(sound[start * 16_000 : (start + 30) * 16_000])
        assert torch.equal(frames[start * 50 : start * 50 + 1500], part)


def test_whisper_looks_ahead_so_a_span_is_encoded_alone(folders, monkeypatch):
    encoder = load_encoder(EncoderConfig(name=str(folders / "whisper")))
    sound = noise(encoder, 3.0)
    changed = sound.clone()
    changed[16_000:] = 0.5
    assert not torch.equal(encoder(sound)[:40], encoder(changed)[:40])

    spoken = SpokenText("s", "y", "abc", (), 3.0, "", 0, 0)
    spans = [Span(True, 0, 1, 0, 50), Span(False, 1, 2, 0, 0), Span(True, 2, 3, 100, 150)]
    received = []
    for samples in (sound, torch.cat([sound[:16_000], changed[16_000:32_000], sound[32_000:]])):
        monkeypatch.setattr("salad.data.frame_source.audio", lambda *_, s=samples: s.numpy())
        encoded = FrameSource("", PromptFormat(tokenizer()), encoder)
        received.append(encoded.frames(spoken, spans))
    assert np.array_equal(*received)  # what is said between the spans changes neither
    assert np.array_equal(received[0][:50], encoder(sound[:16_000]).numpy())


def windows(folders, **settings):
    return load_encoder(EncoderConfig(name=str(folders / "whisper"), window="speech", **settings))


@pytest.mark.parametrize("stack", [1, 4])
def test_windows_as_long_as_the_speech_are_the_same_alone_and_side_by_side(folders, stack):
    encoder = windows(folders, stack=stack)
    rate, dim = 50.0 / stack, 16 * stack
    assert (encoder.frame_rate, encoder.dim) == (rate, dim)
    sounds = [noise(encoder, seconds, i) for i, seconds in enumerate((0.0, 0.005, 0.08, 0.5, 1.23, 2.005, 7.9, 0.09, 33.0))]
    together = encoder.each(sounds)
    for sound, frames in zip(sounds, together, strict=True):
        assert frames.shape == (int(len(sound) / 16_000 * rate + 1e-6), dim) and frames.dtype == torch.float32
        torch.testing.assert_close(frames, encoder(sound), rtol=0, atol=1e-4)


def test_a_window_as_long_as_the_speech_is_whispers_own_forward_cut_to_the_positions_it_needs(folders):
    from transformers import WhisperModel

    encoder, sound = windows(folders), noise(windows(folders), 30.0)
    own = WhisperModel.from_pretrained(folders / "whisper").eval().get_encoder()
    features = encoder.extractor(sound.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    with torch.no_grad():
        expected = own(features).last_hidden_state[0]
    torch.testing.assert_close(encoder(sound), expected, rtol=0, atol=1e-5)  # at 30 s the two windows are one


def test_stacked_frames_are_the_positions_that_they_were(folders):
    sound = noise(windows(folders), 1.23)
    plain, stacked = windows(folders)(sound), windows(folders, stack=4)(sound)
    assert torch.equal(stacked, plain[: len(stacked) * 4].reshape(len(stacked), -1)) and len(stacked) == 15


def test_the_spans_of_a_batch_are_encoded_together_and_each_as_if_alone(folders, monkeypatch):
    from salad.data.layout import Member

    encoder = windows(folders, stack=4)
    sounds = {f"y{i}": noise(encoder, 2.0 + i, i).numpy() for i in range(3)}
    monkeypatch.setattr("salad.data.frame_source.audio", lambda lab, spoken, rate: sounds[spoken.synthesis_id])
    spans = [[Span(True, 0, 1, 0, 6), Span(False, 1, 2, 0, 0), Span(True, 2, 3, 12, 20 + i)] for i in range(3)]
    text = [SpokenText(f"s{i}", f"y{i}", "abc", (), 2.0 + i, "", 0, 0) for i in range(3)]
    members = [Member(None, f"s{i}", "natural", spans[i], text[i]) for i in range(3)]
    for keep in (True, False):
        source = FrameSource("", PromptFormat(tokenizer()), encoder, keep=keep)
        for member, frames in zip(members, source.frames_of(members, {}), strict=True):
            alone = source.frames(member.recording, member.spans)
            np.testing.assert_allclose(frames, alone, rtol=0, atol=1e-4)
            last = member.spans[2]
            first, end = (int(f / 12.5 * 16_000) for f in (last.frame_start, last.frame_end))
            own = encoder(torch.from_numpy(sounds[member.recording.synthesis_id][first:end])).numpy()
            np.testing.assert_allclose(frames[last.frame_start :], own, rtol=0, atol=1e-4)


def test_other_windows_and_stacks_are_other_encoders_and_only_for_those_that_look_ahead(folders):
    by_name = {
        fingerprint(load_encoder(EncoderConfig(name=str(folders / "whisper"), **settings)))
        for settings in ({}, {"window": "speech"}, {"stack": 4}, {"window": "speech", "stack": 4})
    }
    assert len(by_name) == 4
    for settings in ({"window": "speech"}, {"stack": 2}):
        with pytest.raises(SaladError, match="mimi does not"):
            load_encoder(EncoderConfig(name=str(folders / "mimi"), **settings))


@pytest.mark.parametrize("name", ["mimi", "whisper", "phone"])
def test_an_encoder_computes_in_the_type_it_is_given_and_answers_in_float32(folders, name):
    encoder = load_encoder(EncoderConfig(name=str(folders / name), dtype="bfloat16"))
    exact = load_encoder(EncoderConfig(name=str(folders / name)))
    assert {p.dtype for p in encoder.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in exact.model.parameters()} == {torch.float32}
    sound = noise(encoder, 1.0)
    frames = encoder(sound)
    assert frames.dtype == torch.float32
    assert 0 < (frames - exact(sound)).norm() / exact(sound).norm() < 0.05


@pytest.mark.parametrize("name", ["mimi", "whisper", "phone", "logmel"])
def test_an_encoder_is_frozen_and_moves_with_the_model(folders, name):
    encoder = LogMel() if name == "logmel" else load_encoder(EncoderConfig(name=str(folders / name)))
    around = torch.nn.Sequential(encoder).train()
    assert around.training and not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    kept = [t for module in encoder.modules() for t in vars(module).values() if isinstance(t, torch.Tensor)]
    assert not any(t.is_floating_point() for t in kept)  # all are parameters or buffers, so `to` takes them along
    encoder.to("meta")
    assert all(t.is_meta for t in (*encoder.parameters(), *encoder.buffers()))


def test_an_encoder_nobody_wrote_is_refused(folders, tmp_path):
    with pytest.raises(SaladError, match="of type 'qwen2'; known: salad_phone, mimi, whisper"):
        load_encoder(EncoderConfig(name=str(teacher(tmp_path / "llm"))))
    with pytest.raises(SaladError, match="no module 'nowhere'"):
        load_encoder(EncoderConfig(name="nowhere:Ears"))


def test_a_loss_in_bfloat16_beside_it_changes_no_frame(folders):
    """On CPU the loss tells oneDNN to multiply float32 in bfloat16: for the whole process, other threads too."""
    from salad.objective import distillation_loss

    encoder = load_encoder(EncoderConfig(name=str(folders / "phone")))
    sound = noise(encoder, 4.0)
    alone, done = encoder(sound), threading.Event()
    hidden, head = torch.randn(512, 64).bfloat16(), torch.randn(4096, 64).bfloat16()

    def losses():
        while not done.is_set():
            distillation_loss(hidden, head, hidden.flip(0), head, torch.zeros(512, dtype=torch.long))

    beside = threading.Thread(target=losses)
    beside.start()
    try:
        assert all(torch.equal(encoder(sound), alone) for _ in range(40))
    finally:
        done.set()
        beside.join()
