"""Forced alignment: against enumeration of every path, and word times that are known."""

import itertools

import numpy as np
import pytest

from salad import SaladError
from salad.speech.align import align, viterbi
from tests.tones import hears_tones, tones


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


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    return hears_tones(tmp_path_factory.mktemp("ctc"))


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
