"""Forced alignment: against enumeration of every path, and word times that are known."""

import itertools
import json

import numpy as np
import pytest
import torch

from salad import SaladError
from salad.speech.align import align, viterbi
from salad.speech.check import CTCRecogniser


def collapse(path, blank=0):
    return [label for label, _ in itertools.groupby(path) if label != blank]


@pytest.mark.parametrize("labels", [[1], [1, 2], [1, 1], [2, 1, 2], [1, 1, 2]])
def test_the_path_is_the_best_of_all(labels):
    rng = np.random.default_rng(len(labels))
    log_probs = np.log(rng.dirichlet(np.ones(3), size=6))
    paths = [p for p in itertools.product(range(3), repeat=6) if collapse(p) == labels]
    best = max(sum(log_probs[t, label] for t, label in enumerate(p)) for p in paths)
    spans, score = viterbi(log_probs, np.array(labels), 0)
    assert score == pytest.approx(best)
    path = [0] * 6
    for label, (first, last) in zip(labels, spans, strict=True):
        path[first : last + 1] = [label] * (last + 1 - first)
    assert collapse(path) == labels and sum(log_probs[t, c] for t, c in enumerate(path)) == pytest.approx(best)


def test_too_little_speech_is_refused():
    with pytest.raises(SaladError, match="3 letters cannot be aligned with 3 frames"):
        viterbi(np.zeros((3, 3)), np.array([1, 1, 2]), 0)


LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz"]


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    """A CTC recogniser that hears tones as letters: loading and vocabulary are real, its logits a filter bank."""
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    folder = tmp_path_factory.mktemp("ctc")
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(LETTERS)}))
    config = Wav2Vec2Config(
        vocab_size=len(LETTERS), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        conv_dim=(32,), conv_kernel=(320,), conv_stride=(320,), num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2, pad_token_id=0,
    )  # fmt: skip
    model = Wav2Vec2ForCTC(config)
    processor = Wav2Vec2Processor(
        Wav2Vec2FeatureExtractor(do_normalize=False), Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    )

    class Tones(CTCRecogniser):
        def log_probs(self, samples):
            frames = [torch.tensor(s[: len(s) // 320 * 320]).reshape(-1, 320) for s in samples]
            hertz = 500 + 200 * torch.arange(len(LETTERS))
            bank = torch.exp(2j * np.pi * torch.outer(torch.arange(320), hertz) / 16_000)
            heard = [(f.to(bank.dtype) @ bank).abs() / 16 for f in frames]
            for h in heard:
                h[:, 0] = 3.0
            return [h.log_softmax(-1).numpy() for h in heard]

    return Tones("tones", model, processor, 120)


def tones(text_spoken, seconds=0.06):
    """Each letter as its tone, 0.1 s of silence between words: samples and the words' true times."""
    samples, times = [np.zeros(1600, np.float32)], []
    for word in text_spoken.split():
        start = sum(map(len, samples))
        for letter in filter(str.isalpha, word.lower()):
            t = np.arange(int(seconds * 16_000)) / 16_000
            samples.append(np.sin(2 * np.pi * (500 + 200 * LETTERS.index(letter)) * t).astype(np.float32))
        times.append((start / 16_000, sum(map(len, samples)) / 16_000))
        samples.append(np.zeros(1600, np.float32))
    return np.concatenate(samples), times


def test_words_come_out_at_their_times_and_numbers_as_they_are_spoken(recogniser):
    samples, times = tones("the cat paid five dollars today")
    words, score = align(samples, "The cat paid $5 today!", recogniser)
    assert [w.word for w in words] == ["The", "cat", "paid", "$5", "today!"]
    true = [*times[:3], (times[3][0], times[4][1]), times[5]]
    for word, (start, end) in zip(words, true, strict=True):
        assert word.start_s == pytest.approx(start, abs=0.021) and word.end_s == pytest.approx(end, abs=0.041)
    assert score > align(samples, "A wholly other thing is said.", recogniser).score + 0.5


def test_what_cannot_be_aligned_is_refused(recogniser):
    with pytest.raises(SaladError, match="knows none of its letters"):
        align(np.zeros(16_000, np.float32), "日本", recogniser)
    with pytest.raises(SaladError, match="is no CTC model"):
        align(np.zeros(16_000, np.float32), "A cat.", type("Other", (), {"name": "other"})())
