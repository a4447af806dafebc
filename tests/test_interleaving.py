"""Interleaving: every token in exactly one span, cuts only where text, token and voice agree, frames floored."""

import math

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from salad import SaladError
from salad.config import SequenceConfig
from salad.data.interleaving import (
    SpokenUnit,
    interleave,
    interleaved_sequence,
    scoring_patterns,
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
    laid = interleaved_sequence(0, ids, spans)
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
    parts = [SpokenUnit(*row) for row in ((0, 1, 0.0, 0.17), (1, 2, 0.17, 0.23), (2, 3, 0.23, 0.239), (3, 4, 0.239, 1.0))]
    spans = interleave(parts, [True, False, True, False], RATE)
    # 0.17 s * 12.5 = 2.1 -> frames 0, 1; the third unit spans no whole frame and joins the text around it
    assert [tuple(span) for span in spans] == [(True, 0, 1, 0, 2), (False, 1, 4, 0, 0)]


def test_all_speech_after_text_ends_on_the_last_frame():
    parts = [SpokenUnit(0, 2, 0.0, 0.4), SpokenUnit(2, 3, 0.4, 0.8), SpokenUnit(3, 4, 0.8, 1.2)]
    laid = interleaved_sequence(9, [5, 6, 7, 8], interleave(parts, [True, True, False], RATE))
    assert list(laid.rows) == [10] and laid.frames[10] == 9  # predictor of the text token is the last frame
    assert list(laid.ids[-1:]) == [8] and list(laid.after_speech) == [True]


@given(st.integers(1, 40), st.integers(0, 99))
def test_scoring_patterns_are_complementary_and_fixed(n, seed):
    first, two = scoring_patterns(seed, "sabc", n)
    assert all(a != b for a, b in zip(first, two, strict=True))
    assert (first, two) == scoring_patterns(seed, "sabc", n)


# --- tokenizers of every kind ---

MIXED = "The otter eats fish, and  her sister\nlikes 42 plums at 7 o'clock. It isn't cold."


def trained(core, trainer):
    from transformers import PreTrainedTokenizerFast

    core.train_from_iterator([*tiny.TEXTS * 4, MIXED], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


def byte_level(trim: bool, prefix: bool):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix, trim_offsets=trim)
    core.post_processor = processors.ByteLevel(trim_offsets=trim, add_prefix_space=prefix)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trained(core, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<end>"]))


def sentencepiece(scheme: str, split: bool = True):
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
    return trained(core, trainers.UnigramTrainer(vocab_size=120, special_tokens=["<end>", "<unk>"], unk_token="<unk>"))


def word_piece():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    core = Tokenizer(models.WordPiece(unk_token="<unk>"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return trained(core, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["<end>", "<unk>"]))


@pytest.mark.parametrize("made", [
    lambda: byte_level(False, False), lambda: byte_level(True, False), lambda: byte_level(False, True),
    lambda: byte_level(True, True), lambda: sentencepiece("always"), lambda: sentencepiece("first"),
    lambda: sentencepiece("never"), word_piece,
], ids=["plain", "trimmed", "prefix", "trimmed prefix", "always", "first", "never", "WordPiece"])  # fmt: skip
def test_every_kind_of_tokenizer_is_cut_at_every_word(made):
    tokenizer, spoken = made(), tiny.spoken_text(MIXED)[0]
    ids, offsets = token_offsets(tokenizer, MIXED)
    cut = units(MIXED, offsets, spoken.words, spoken.duration_s)
    assert len(cut) == len(spoken.words) == 16
    for unit, (word, *_) in zip(cut, spoken.words, strict=True):  # a blank belongs to the word after it
        start, end = offsets[unit.token_start][0], offsets[unit.token_end - 1][1]
        assert MIXED[start:end].strip() == word and not MIXED[:end].endswith((" ", "\n"))
    assert [unit.token_start for unit in cut] == [0, *(unit.token_end for unit in cut[:-1])] and cut[-1].token_end == len(ids)


def test_blanks_of_several_characters_go_to_the_word_after_them():
    tokenizer = byte_level(True, False)
    for text in ("one   two", "one\n\n two", "one \u3000two", " one two"):
        _, offsets = token_offsets(tokenizer, text)
        assert [offsets[0][0], *(b for _, b in offsets)][-1] == len(text) and offsets[0][0] == 0
        assert all(a[1] >= b[0] for a, b in zip(offsets, offsets[1:], strict=False)), (text, offsets)


def test_a_corpus_whose_words_cannot_be_cut_is_refused_and_the_tokenizer_named():
    from salad.data.layout import check_cut, lay_out
    from salad.models.prompts import PromptFormat

    spoken = [tiny.spoken_text(text, i)[0] for i, text in enumerate(tiny.TEXTS)]
    whole = sentencepiece("never", split=False)  # its tokens go across words
    layouts = [lay_out(PromptFormat(whole), recording, 12.5) for recording in spoken]
    assert sum(len(recording.units) for recording in layouts) < sum(recording.words for recording in layouts) / 2
    with pytest.raises(SaladError, match=r"natural: only \d+ of \d+ words can be cut .* tokenizer of 'some/llm'"):
        check_cut(layouts, "some/llm", "natural")
    check_cut([lay_out(PromptFormat(byte_level(True, True)), recording, 12.5) for recording in spoken], "another", "natural")
