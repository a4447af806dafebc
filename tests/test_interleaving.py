"""Interleaving: every token in exactly one span, cuts only where text, token and voice agree, frames floored."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from salad.config import SequenceConfig
from salad.data.interleaving import (
    Unit,
    interleave,
    scoring_patterns,
    sequence,
    token_offsets,
    training_pattern,
    units,
)

RATE = 12.5


@pytest.fixture(scope="module")
def tokenizer():
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    text = ["The otter eats fish. What does the otter eat? Fish.", "It isn't 42 m long, Dr. Reed said."]
    core.train_from_iterator(text, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=core)


def spoken(text, rng, merge=0.2):
    """Word events as a voice gives them: some words said as one, times increasing, a pause at the end."""
    words, time, start = [], 0.05, None
    position = 0
    for word in text.split():
        position = text.index(word, position)
        if start is None:
            start = position
        end = position + len(word)
        position = end
        if rng.random() < merge:
            continue
        length = rng.uniform(0.01, 0.6)
        words.append((text[start:end], start, end, time, time + length))
        time, start = time + length, None
    return words, time + 0.3


TEXTS = st.text(
    st.one_of(st.characters(codec="utf-8", exclude_categories=("Cs",)), st.sampled_from(" .,?'0123456789éß漢🦦")),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, seed=st.integers(0, 2**32 - 1))
def test_every_token_stands_in_exactly_one_span(tokenizer, text, seed):
    rng = np.random.default_rng(seed)
    words, duration = spoken(text, rng)
    ids, offsets = token_offsets(tokenizer, text)
    parts = units(text, offsets, words, duration)
    pattern = training_pattern(rng, len(parts), SequenceConfig())
    spans = interleave(parts, pattern, RATE)
    covered = [i for span in spans for i in range(span.token_start, span.token_end)]
    assert covered == list(range(len(ids)))
    laid = sequence(0, ids, spans)
    text_tokens = [int(i) for i in laid.ids[1:] if i >= 0]
    assert text_tokens == [ids[p] for p in laid.positions]
    assert all(laid.ids[row + 1] == ids[p] for row, p in zip(laid.rows, laid.positions, strict=True))
    assert ((laid.ids >= 0) ^ (laid.frames >= 0)).all()
    frames = laid.frames[laid.frames >= 0]
    assert (np.diff(frames) > 0).all() and (len(frames) == 0 or frames[-1] < math.ceil(duration * RATE))


@settings(max_examples=100, deadline=None)
@given(text=TEXTS, seed=st.integers(0, 2**32 - 1))
def test_cuts_stand_before_whitespace_only(tokenizer, text, seed):
    words, duration = spoken(text, np.random.default_rng(seed))
    _, offsets = token_offsets(tokenizer, text)
    for unit in units(text, offsets, words, duration)[1:]:
        start = offsets[unit.token_start][0]
        assert text[start].isspace() and (start == 0 or not text[start - 1].isspace())


def test_odd_events_inside_words_and_numbers_do_not_cut(tokenizer):
    text = "It isn't 42 m"
    words = [("It", 0, 2, 0.0, 0.2), ("isn", 3, 6, 0.2, 0.4), ("t", 7, 8, 0.4, 0.5), ("4", 9, 10, 0.5, 0.8),
             ("2", 10, 11, 0.8, 1.0), ("m", 12, 13, 1.0, 1.3)]  # fmt: skip
    _, offsets = token_offsets(tokenizer, text)
    parts = units(text, offsets, words, 1.5)
    assert [offsets[p.token_start][0] for p in parts] == [0, 2, 8, 11]
    assert [p.start_s for p in parts] == [0.0, 0.2, 0.5, 1.0] and parts[-1].end_s == 1.5


def test_frame_boundaries_are_floored_and_a_span_without_a_frame_stays_text():
    parts = [Unit(0, 1, 0.0, 0.17), Unit(1, 2, 0.17, 0.23), Unit(2, 3, 0.23, 0.239), Unit(3, 4, 0.239, 1.0)]
    spans = interleave(parts, [True, False, True, False], RATE)
    # 0.17 s * 12.5 = 2.1 -> frames 0, 1; the third unit spans no whole frame and joins the text around it
    assert [tuple(span) for span in spans] == [(True, 0, 1, 0, 2), (False, 1, 4, 0, 0)]


def test_all_speech_after_text_ends_on_the_last_frame():
    parts = [Unit(0, 2, 0.0, 0.4), Unit(2, 3, 0.4, 0.8), Unit(3, 4, 0.8, 1.2)]
    laid = sequence(9, [5, 6, 7, 8], interleave(parts, [True, True, False], RATE))
    assert list(laid.rows) == [10] and laid.frames[10] == 9  # predictor of the text token is the last frame
    assert list(laid.ids[-1:]) == [8] and list(laid.after_speech) == [True]


@given(st.integers(1, 40), st.integers(0, 99))
def test_scoring_patterns_are_complementary_and_fixed(n, seed):
    one, two = scoring_patterns(seed, "sabc", n)
    assert all(a != b for a, b in zip(one, two, strict=True))
    assert (one, two) == scoring_patterns(seed, "sabc", n)
