"""The phone encoder and the recogniser: no look-ahead, padding, loading through transformers, tiny trainings."""

import random
import re

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from salad.errors import SaladError
from salad.miniature import encoder as encoder_module
from salad.miniature.encoder import PhoneEncoderConfig, labels, plain_phone, pseudo_word, train_encoder, world_words
from salad.miniature.recogniser import VOCABULARY, RecogniserConfig, characters, train_recogniser
from salad.models.phone import PhoneConfig, PhoneEncoder, PhoneForCTC
from salad.speech import TimedPhone, Utterance

TEXTS = ["The heart pumps blood.", "Anna goes to the park.", "What does a drum do? It is struck."] * 2


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An encoder and a recogniser that have trained for a moment: (folder, encoder's record, recogniser's record)."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("models")
    small = PhoneEncoderConfig(seed=11, width=64, utterances=60, held_out=6, steps=60, batch=8)
    result = train_encoder(small, folder / "encoder")
    recorded = train_recogniser(
        RecogniserConfig(seed=11, steps=4, width=32, layers=2), TEXTS, folder / "recogniser", encoder=folder / "encoder"
    )
    return folder, result, recorded


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.1


def model(cls=PhoneEncoder, **sizes):
    torch.manual_seed(0)
    return cls(PhoneConfig(width=48, head_width=24, head_layers=2, **sizes)).eval()


@pytest.mark.parametrize("n_samples", [0, 1, 1279, 1280, 1281, 16000, 40007])
def test_frames_are_the_floor_of_seconds_times_12_5(n_samples):
    encoder = model()
    frames = encoder(noise(2, n_samples)).last_hidden_state
    assert frames.shape == (2, int(n_samples / 16000 * 12.5), 128)
    assert encoder.config.frame_rate == 12.5 and encoder.n_frames(n_samples) == frames.shape[1]


@pytest.mark.parametrize("change_at", [1280, 5000, 12800, 12801, 31900])
def test_what_comes_after_a_frame_changes_none_of_its_bits(trained, change_at):
    for encoder in (model(), PhoneEncoder.from_pretrained(trained[0] / "encoder")):
        samples = noise(1, 32000)
        changed = samples.clone()
        changed[:, change_at:] = 3 * noise(1, 32000 - change_at, seed=1)
        before, after = encoder(samples).last_hidden_state, encoder(changed).last_hidden_state
        ended = change_at // 1280
        assert torch.equal(before[:, :ended], after[:, :ended])
        assert not torch.equal(before[:, ended:], after[:, ended:])


def test_a_trained_encoder_is_the_same_in_train_mode(trained):
    encoder = PhoneEncoder.from_pretrained(trained[0] / "encoder")
    samples = noise(1, 16000)
    assert torch.equal(encoder.eval()(samples)[0], encoder.train()(samples)[0])


@pytest.mark.parametrize("cls", [PhoneEncoder, PhoneForCTC])
def test_padding_on_the_right_changes_nothing(cls):
    net = model(cls).double()  # in float32, sums of other shapes round differently on some processors
    long, short = noise(32000), noise(20100, seed=1)
    batch, mask = torch.zeros(2, 32000), torch.zeros(2, 32000, dtype=torch.long)
    batch[0], batch[1, :20100] = long, short
    batch[1, 20100:] = 5.0  # whatever stands in the padding
    mask[0], mask[1, :20100] = 1, 1
    together = net(batch, attention_mask=mask)[0]
    alone = net(short[None], attention_mask=torch.ones(1, 20100))[0][0]
    torch.testing.assert_close(together[0], net(long[None])[0][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[1, : len(alone)], alone, atol=1e-5, rtol=1e-5)
    rest = together[1, len(alone) :]
    assert len(rest) and (rest == 0).all() if cls is PhoneEncoder else (rest.argmax(-1) == 0).all()


def test_a_wrong_shape_is_one_clear_line():
    with pytest.raises(SaladError, match=r"\[batch, time\]"):
        model()(noise(16000))


def test_both_load_through_the_auto_classes_offline(trained, monkeypatch):
    from transformers import (
        AutoFeatureExtractor,
        AutoModel,
        AutoModelForCTC,
        AutoProcessor,
        AutoTokenizer,
    )

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = trained[0]
    encoder = AutoModel.from_pretrained(folder / "encoder")
    recogniser = AutoModelForCTC.from_pretrained(folder / "recogniser")
    assert isinstance(encoder, PhoneEncoder) and isinstance(recogniser, PhoneForCTC)
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, recogniser.encoder.state_dict()[name]), name
    inputs = AutoFeatureExtractor.from_pretrained(folder / "encoder")(
        [noise(16000).numpy(), noise(9000).numpy()], sampling_rate=16000, return_tensors="pt", padding=True
    )
    assert encoder(**inputs).last_hidden_state.shape == (2, 12, 128)
    processor = AutoProcessor.from_pretrained(folder / "recogniser")
    ids = processor(text="anna's park").input_ids
    assert processor.tokenizer.decode(ids, group_tokens=False) == "anna's park"
    assert AutoTokenizer.from_pretrained(folder / "recogniser").pad_token_id == recogniser.config.pad_token_id == 0
    assert [*processor.tokenizer.convert_ids_to_tokens(range(len(VOCABULARY)))] == list(VOCABULARY)
    for part in ("encoder", "recogniser"):
        names = {path.name for path in (folder / part).iterdir()}
        assert "model.safetensors" in names and not any(n.endswith((".bin", ".pt", ".py", ".pkl")) for n in names)


def test_the_check_reads_the_recogniser(trained):
    from salad.speech.check import load_recogniser

    recogniser = load_recogniser(str(trained[0] / "recogniser"))
    transcript = recogniser.transcribe([noise(16000).numpy(), noise(30000).numpy()])
    assert len(transcript) == 2 and all(isinstance(text, str) for text in transcript)


def test_ctc_loss_is_per_character_and_leaves_the_trunk_alone():
    net = model(PhoneForCTC)
    labels_BL = torch.tensor([[4, 5, 6, -100], [7, 7, 8, 9]])
    out = net(noise(2, 32000), labels=labels_BL)
    log_probs = out.logits.log_softmax(-1).transpose(0, 1)
    each = torch.nn.functional.ctc_loss(
        log_probs, labels_BL.clamp_min(0), torch.tensor([100, 100]), torch.tensor([3, 4]), reduction="none"
    )
    torch.testing.assert_close(out.loss, each.sum() / 7)
    out.loss.backward()
    assert all(p.grad is None for p in net.encoder.parameters()) and net.lm_head.weight.grad is not None


def test_a_short_training_tells_phones_in_voices_it_never_heard(trained):
    assert trained[1]["accuracy"] > 0.2  # the commonest of 40 phones has about 0.09
    assert trained[1]["loss"] < 2.6


def test_the_same_training_gives_the_same_bytes_and_is_not_done_twice(tmp_path):
    config = PhoneEncoderConfig(seed=11, width=32, utterances=6, held_out=0, steps=3, batch=2)
    steps = []
    train_encoder(config, tmp_path / "a", lambda step, loss: steps.append(step))
    train_encoder(config, tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert steps == [1, 2, 3]
    train_encoder(config, tmp_path / "a", lambda step, loss: steps.append(step))
    assert steps == [1, 2, 3]
    train_encoder(config.model_copy(update={"seed": 10}), tmp_path / "a")
    assert (tmp_path / "a/model.safetensors").read_bytes() != (tmp_path / "b/model.safetensors").read_bytes()


def test_the_recogniser_gives_the_same_bytes_and_another_encoder_makes_it_anew(trained, tmp_path):
    config = RecogniserConfig(seed=11, steps=2, width=16, layers=1, batch=2)
    steps = []
    for name in "aab":
        train_recogniser(config, TEXTS, tmp_path / name, lambda step, loss: steps.append(step), encoder=trained[0] / "encoder")
    assert steps == [1, 2, 1, 2]
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    other = PhoneEncoderConfig(seed=10, width=32, utterances=4, held_out=0, steps=2, batch=2)
    train_encoder(other, tmp_path / "encoder")
    train_recogniser(config, TEXTS, tmp_path / "a", encoder=tmp_path / "encoder")
    assert (tmp_path / "a/model.safetensors").read_bytes() != (tmp_path / "b/model.safetensors").read_bytes()


def test_a_recogniser_without_text_is_one_clear_line(trained, tmp_path):
    with pytest.raises(SaladError, match="no text that can be spoken"):
        train_recogniser(RecogniserConfig(), ["", "..."], tmp_path / "r", encoder=trained[0] / "encoder")


def test_pseudo_words_are_no_words_of_the_world():
    rng = random.Random(11)
    words = [pseudo_word(rng) for _ in range(2000)]
    assert {"park", "anna", "lithium"} <= world_words()
    assert not set(words) & world_words() and len(set(words)) > 1800
    english, _ = encoder_module._english()
    assert not set(words) & english and all(re.fullmatch("[a-z]+", word) for word in words)


def test_labels_follow_the_phoneme_events():
    phones = [TimedPhone(*row) for row in (("'A:", 0.0, 0.05), ("t#", 0.05, 0.1), ("rare", 0.1, 0.12), ("_:", 0.12, 0.2))]
    utterance = Utterance(np.zeros(3200, np.float32), 16000, [], [], phones)
    assert labels(utterance, 8, ["_", "A:", "t"], 0.0).tolist() == [1, 1, 2, 2, 2, -100, 0, 0]
    assert labels(utterance, 8, ["_", "A:", "t"], 0.02).tolist() == [0, 1, 1, 2, 2, 2, -100, 0]
    assert [plain_phone(p) for p in ("3", "0", "@2", "3:", "'aI", "r-")] == ["3", "0", "@", "3:", "aI", "r"]


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("Anna's book isn't  here.", "Anna's book isn't here."),
        ("At 100 °C, “quoted” café — forty-two!", "At 100 °C, quoted cafe - forty-two!"),
        ("漢字", ""),
    ],
)
def test_characters_are_those_of_the_written_text(text, wanted):
    assert characters(text) == wanted


def test_unknown_keys_are_refused():
    for config in (PhoneEncoderConfig, RecogniserConfig):
        with pytest.raises(ValidationError):
            config(stepz=3)
