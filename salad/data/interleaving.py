"""Interleaved sequences: spans of speech frames and spans of text tokens of one spoken text, in order.

Spans are cut only where a word event, a token boundary and a character boundary coincide; whitespace belongs to the
word after it. A **unit** is what lies between two neighbouring cuts: usually a word, sometimes several that the voice
says as one. Every token of the text is in exactly one unit, so in exactly one span; a speech span that gets no frame
stays text. See METHOD.md, "Interleaving, exactly".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from salad.config import SequenceConfig
from salad.errors import SaladError
from salad.speech.words import runs
from store.ids import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SpokenUnit(NamedTuple):
    """Tokens [token_start, token_end) and the time [start_s, end_s) in which they are spoken, in seconds."""

    token_start: int
    token_end: int
    start_s: float
    end_s: float


class Span(NamedTuple):
    """A run of units, all speech or all text; frames are [frame_start, frame_end), empty for text."""

    speech: bool
    token_start: int
    token_end: int
    frame_start: int
    frame_end: int


def token_offsets(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of `text` without special tokens, and their character offsets [start, end), spaces included.

    Tokenizers differ in where they say that a token with a blank before it begins: RoBERTa's and many sentencepieces trim the
    blank, BERT's drop it. Here a blank that no token claims belongs to the token after it. SaladError where a tokenizer
    gives no offsets."""
    try:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    except NotImplementedError:
        raise SaladError(
            f"tokenizer {tokenizer.name_or_path!r} does not give the character offsets of its tokens, so speech cannot be cut at "
            "words; it needs a tokenizer.json"
        ) from None
    offsets, before = [], 0
    for start, end in encoded["offset_mapping"]:
        if start > before and text[before:start].isspace():
            start = before
        offsets.append((start, end))
        before = max(before, end)
    return encoded["input_ids"], offsets


def units(text: str, offsets: list[tuple[int, int]], words: Sequence[tuple], duration_s: float) -> list[SpokenUnit]:
    """Cut a spoken text into units.

    `offsets`: per token (char_start, char_end) with spaces untrimmed; `words`: (word, char_start, char_end, start_s,
    end_s) in order, offsets into `text`. The first unit starts at 0 s, the last ends at `duration_s`. A text without
    a usable cut is one unit; a text without tokens has none.
    """
    if not offsets:
        return []
    # Where a token starts exactly where the one before it ended, and is the first of those that start there
    # (a character of several bytes gives several tokens with the same offsets).
    starts: dict[int, int] = {}
    for index, (char_start, _) in enumerate(offsets):
        if index and offsets[index - 1][1] == char_start and offsets[index - 1][0] != char_start:
            starts.setdefault(char_start, index)
    begins = {start for start, _ in runs(text)}  # where a word begins, in Chinese without a blank before it
    cuts = [(0, 0.0)]
    for _, char_start, _, start_s, _ in words:
        space = char_start
        while space > 0 and text[space - 1].isspace():
            space -= 1
        token = starts.get(space)
        if token is None or (space == char_start and char_start not in begins):  # inside "isn't" or "42"
            continue
        if token > cuts[-1][0] and cuts[-1][1] <= start_s <= duration_s:
            cuts.append((token, start_s))
    ends = cuts[1:] + [(len(offsets), duration_s)]
    return [SpokenUnit(a, b, start, end) for (a, start), (b, end) in zip(cuts, ends, strict=True)]


def interleave(units: list[SpokenUnit], speech: list[bool], frame_rate: float) -> list[Span]:
    """Spans of the pattern that says which units are speech; both frame boundaries are floored.

    Neighbouring units of one kind make one span. A speech span without a frame turns into text (and joins its
    neighbours). The spans partition the tokens.
    """
    spans: list[Span] = []
    for is_speech, group in _runs(units, speech):
        frame_start = math.floor(group[0].start_s * frame_rate + 1e-9)
        frame_end = math.floor(group[-1].end_s * frame_rate + 1e-9)
        if is_speech and frame_end <= frame_start:
            is_speech = False
        frames = (frame_start, frame_end) if is_speech else (0, 0)
        span = Span(is_speech, group[0].token_start, group[-1].token_end, *frames)
        if spans and not is_speech and not spans[-1].speech:
            span = Span(False, spans.pop().token_start, span.token_end, 0, 0)
        spans.append(span)
    return spans


def _runs(units, speech):
    group: list[SpokenUnit] = []
    for index, unit in enumerate(units):
        if group and speech[index] != speech[index - 1]:
            yield speech[index - 1], group
            group = []
        group.append(unit)
    if group:
        yield speech[len(units) - 1], group


def alternate(
    rng: np.random.Generator, n: int, span_units: tuple[int, int], first: bool, weights: tuple[float, ...] = ()
) -> list[bool]:
    """Alternating runs of random lengths (inclusive bounds) over `n` units, beginning with `first`.

    `weights`: how likely each length from the shortest to the longest is; without any, all are equally likely."""
    pattern: list[bool] = []
    shares = np.asarray(weights) / sum(weights) if weights else None
    kind = first
    while len(pattern) < n:
        if shares is None:
            length = int(rng.integers(span_units[0], span_units[1] + 1))
        else:
            length = span_units[0] + int(rng.choice(len(shares), p=shares))
        pattern += [kind] * length
        kind = not kind
    return pattern[:n]


def training_pattern(rng: np.random.Generator, n: int, config: SequenceConfig) -> list[bool]:
    """Which of `n` units are speech in one training sequence (`config`: SequenceConfig)."""
    draw = rng.random()
    if draw < config.p_all_text or n < 2:
        return [False] * n
    if draw < config.p_all_text + config.p_speech_first:
        cut = int(rng.integers(1, n))
        return [True] * cut + [False] * (n - cut)
    if draw < config.p_all_text + config.p_speech_first + config.p_all_speech:
        return [True] * n
    return alternate(rng, n, config.span_units, bool(rng.integers(2)), config.span_weights)


def scoring_patterns(seed: int, sample_id: str, n: int, span_units: tuple[int, int] = (1, 4)) -> tuple[list[bool], list[bool]]:
    """Two complementary patterns: what is speech in one is text in the other.

    A function of the scoring seed, the sample id and the range of spans only, so that checkpoints compare."""
    rng = np.random.default_rng(int(digest([seed, sample_id]), 16))
    first = alternate(rng, n, span_units, bool(rng.integers(2)))
    return first, [not value for value in first]


@dataclass(frozen=True)
class InterleavedSequence:
    """One interleaved sequence beside its text, both beginning with the prefix token (row 0) or a chat's beginning.

    `ids` [T] int64: token id, or -1 where a frame stands; `frames` [T] int64: frame number, or -1 where a token
    stands. `rows` [N]: row of the interleaved sequence that predicts a text position; `text_rows` [N]: row of the
    text sequence that predicts the same token; `positions` [N]: index of that token in the text; `after_speech` [N]:
    whether a speech span precedes it.
    """

    text_ids: np.ndarray
    ids: np.ndarray
    frames: np.ndarray
    rows: np.ndarray
    text_rows: np.ndarray
    positions: np.ndarray
    after_speech: np.ndarray


def interleaved_sequence(
    prefix: int | list[int], token_ids: list[int], spans: list[Span], between: Sequence[int] = (), answer: int = 0
) -> InterleavedSequence:
    """Lay out `spans` over `token_ids` after the prefix.

    The tokens `between` precede token number `answer` in both sequences; text positions are the tokens
    from there on (by default all)."""
    before = [prefix] if isinstance(prefix, int) else list(prefix)
    ids, frames, rows, positions, after = list(before), [-1] * len(before), [], [], []
    after_speech = False
    for span in spans:
        if span.speech:
            frames += range(span.frame_start, span.frame_end)
            ids += [-1] * (span.frame_end - span.frame_start)
            after_speech = True
            continue
        for position in range(span.token_start, span.token_end):
            if position == answer:
                ids += between
                frames += [-1] * len(between)
            if position >= answer:
                rows.append(len(ids) - 1)
                positions.append(position)
                after.append(after_speech)
            ids.append(token_ids[position])
            frames.append(-1)
    positions_N = np.asarray(positions, dtype=np.int64)
    return InterleavedSequence(
        text_ids=np.asarray([*before, *token_ids[:answer], *between, *token_ids[answer:]], dtype=np.int64),
        ids=np.asarray(ids, dtype=np.int64),
        frames=np.asarray(frames, dtype=np.int64),
        rows=np.asarray(rows, dtype=np.int64),
        text_rows=positions_N + (len(before) + len(between) - 1),
        positions=positions_N,
        after_speech=np.asarray(after, dtype=bool),
    )


def shortened(sequence: InterleavedSequence, limit: int) -> InterleavedSequence:
    """The first `limit` places of a sequence and of its text, with the text positions that are within both."""
    if max(len(sequence.ids), len(sequence.text_ids)) <= limit:
        return sequence
    kept = (sequence.rows + 1 < limit) & (sequence.text_rows + 1 < limit)
    per_position = {name: getattr(sequence, name)[kept] for name in ("rows", "text_rows", "positions", "after_speech")}
    return replace(
        sequence, text_ids=sequence.text_ids[:limit], ids=sequence.ids[:limit], frames=sequence.frames[:limit], **per_position
    )
