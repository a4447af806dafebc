"""Forced alignment: against enumeration of every path, and word times that are known."""

import itertools

import numpy as np
import pytest

from salad import SaladError
from salad.speech import Word
from salad.speech.align import align, delays, monotonic, viterbi
from salad.speech.check import load_recogniser
from salad.speech.spoken import spoken_form, text_words
from tests import tools
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


def test_a_text_of_hundreds_of_letters_is_aligned():
    labels = np.random.default_rng(0).integers(1, 5, 400)
    path = np.repeat(labels, 3)
    path[::3] = 0  # a blank before each
    log_probs = np.log(np.full((len(path), 5), 0.01) + 0.95 * np.eye(5)[path])
    spans, _ = viterbi(log_probs, labels, 0)
    assert (spans == np.stack([3 * np.arange(400) + 1, 3 * np.arange(400) + 2], 1)).all()


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
    with pytest.raises(SaladError, match="is neither a CTC nor a Whisper-type model"):
        align(np.zeros(16_000, np.float32), "A cat.", type("Other", (), {"name": "other"})())


def test_a_recogniser_that_fires_late_is_measured_where_the_truth_is_known_and_corrected(recogniser):
    spoken = [("the cat paid", 0), ("a dog ran over the hill", 1), ("ships sail", 2)]
    known, late = [], 0.08
    for text, _ in spoken:
        samples, times = tones(text)
        ends = np.cumsum([len(word) + 1 for word in text.split()]) - 1
        words = [
            Word(word, int(end) - len(word), int(end), start - late, stop - late)  # as if all were heard late
            for word, end, (start, stop) in zip(text.split(), ends, times, strict=True)
        ]
        known.append((samples, text, words))
    start_s, end_s = delays(recogniser, known)
    assert start_s == pytest.approx(late, abs=0.011) and end_s == pytest.approx(late, abs=0.021)
    assert recogniser.delay_s == (0.0, 0.0)
    recogniser.model.config.word_delay_s = (start_s, end_s)
    try:
        for samples, text, words in known:
            for checked, true in zip(align(samples, text, recogniser).words, words, strict=True):
                assert checked.start_s == pytest.approx(max(true.start_s, 0), abs=0.021)
                assert checked.end_s == pytest.approx(true.end_s, abs=0.041)
    finally:
        del recogniser.model.config.word_delay_s


def test_a_full_stop_that_fires_in_the_pause_does_not_lengthen_its_word(recogniser):
    vocabulary = recogniser.processor.tokenizer.get_vocab()
    recogniser.processor.tokenizer.add_tokens(["."])
    assert "." not in vocabulary
    samples, times = tones("cat dog")
    frames = recogniser.log_probs([samples])[0]
    wider = np.concatenate([frames, np.full((len(frames), 1), -9.0, np.float32)], 1)
    pause = int((times[0][1] + 0.05) * 50)
    wider[pause] = -9.0
    wider[pause, -1] = 0.0  # heard between the words
    words = align(samples, "cat. dog", recogniser, wider).words
    assert [w.word for w in words] == ["cat.", "dog"]
    assert words[0].end_s == pytest.approx(times[0][1], abs=0.041)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 6), (2, 7)])
def test_consecutive_stretches_have_the_largest_sum_of_all(shape):
    weights = np.random.default_rng(sum(shape)).normal(size=shape)
    n, frames = shape
    sums = {}
    for cuts in itertools.combinations(range(1, frames), n - 1):
        edges = [0, *cuts, frames]
        sums[tuple(edges)] = sum(weights[i, edges[i] : edges[i + 1]].sum() for i in range(n))
    spans = monotonic(weights)
    assert [*spans[:, 0].tolist(), frames] == list(max(sums, key=sums.get))
    assert (spans[1:, 0] == spans[:-1, 1] + 1).all() and spans[-1, 1] == frames - 1
    with pytest.raises(SaladError, match="3 tokens cannot be aligned with 2 frames"):
        monotonic(np.zeros((3, 2)))


@pytest.mark.real
@pytest.mark.parametrize("name", ["whisper-tiny.en", "whisper-base"])
def test_word_times_by_whisper_are_near_those_that_the_voice_told(name):
    from salad.speech import load_tts

    recogniser = load_recogniser(str(tools.real_model(name)))
    errors = []
    texts = ["The cat sat on the mat, and then it ran away.", "It cost $1,000 in 1998, far too much for a boat."]
    for seed, text in enumerate(texts):
        form = spoken_form(text)
        utterance = load_tts("espeak").speak(form.spoken, "en-us", seed)
        true = text_words(utterance.words, form, text)
        checked = align(utterance.samples, text, recogniser)
        assert checked.score > align(utterance.samples, "Something wholly different is written here.", recogniser).score + 1
        starts, ends = {w.char_start: w.start_s for w in true}, {w.char_end: w.end_s for w in true}
        for word in checked.words:
            assert text[word.char_start : word.char_end] == word.word and word.start_s < word.end_s
            errors += [abs(word.start_s - starts[word.char_start])] if word.char_start in starts else []
            errors += [abs(word.end_s - ends[word.char_end])] if word.char_end in ends else []
    assert len(errors) > 30 and np.median(errors) <= 0.06
    with pytest.raises(SaladError, match="aligns at most 30 s at once"):
        align(np.zeros(31 * 16_000, np.float32), "A cat.", recogniser)
