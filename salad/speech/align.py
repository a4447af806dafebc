"""Word times of natural speech: forced alignment of a text under a recogniser.

    align(samples, text, load_recogniser("lab/models/recogniser")).words

Under a CTC model by the Viterbi path of its letters (Graves et al., 2006). Under Whisper and its kin by cross-attention:
the heads whose weights follow the sound (`alignment_heads` of its generation_config) are averaged, and each token gets the
frames at which they look while it is written, in order (after Radford et al., 2023, whisper/timing.py).
"""

from bisect import bisect_right
from typing import NamedTuple

import numpy as np

from salad.errors import SaladError
from salad.speech.check import CTCRecogniser, Recogniser, WhisperRecogniser
from salad.speech.spoken import spoken_form, text_words
from salad.speech.utterance import SAMPLE_RATE, Word
from salad.speech.words import runs, words_of

EARLY_EVENTS_S = 0.02  # half of what espeak's starts come before Piper's by, under the same model
CALIBRATION = (
    "The cat sat on the mat, and then it ran away.",
    "Bread is made of flour and water; the baker adds salt.",
    "What color is it? Nobody in the house knew.",
)


class Alignment(NamedTuple):
    """words: of the text handed in. score: mean log-probability (nats) a frame of a CTC path, or a token of Whisper's; a
    text that does not match its recording stands out by a low one."""

    words: list[Word]
    score: float


def viterbi(log_probs_TV: np.ndarray, labels_N: np.ndarray, blank: int) -> tuple[np.ndarray, float]:
    """The best CTC path of `labels_N` (none of them blank) through float [T, V] log-probabilities.

    Returns int [N, 2], the first and last frame of each label, and the path's log-probability. Raises SaladError where
    there are fewer frames than the labels need."""
    n_frames, n_labels = len(log_probs_TV), len(labels_N)
    repeats = int((labels_N[1:] == labels_N[:-1]).sum())
    if n_labels == 0 or n_frames < n_labels + repeats:
        raise SaladError(f"{n_labels} letters cannot be aligned with {n_frames} frames of speech")
    states_S = np.full(2 * n_labels + 1, blank)
    states_S[1::2] = labels_N
    may_skip_S = np.zeros(len(states_S), bool)  # from the label before, over the blank between
    may_skip_S[3::2] = labels_N[1:] != labels_N[:-1]
    emitted_TS = log_probs_TV[:, states_S]
    best_S = np.full(len(states_S), -np.inf)
    best_S[:2] = emitted_TS[0, :2]
    steps_TS = np.zeros((n_frames, len(states_S)), np.int8)
    for t in range(1, n_frames):
        step_one = np.concatenate([[-np.inf], best_S[:-1]])
        two = np.where(may_skip_S, np.concatenate([[-np.inf, -np.inf], best_S[:-2]]), -np.inf)
        choices = np.stack([best_S, step_one, two])
        steps_TS[t] = choices.argmax(0)
        best_S = choices.max(0) + emitted_TS[t]
    state = len(states_S) - 1 if best_S[-1] >= best_S[-2] else len(states_S) - 2
    score = float(best_S[state])
    spans_N2 = np.full((n_labels, 2), -1)
    for t in range(n_frames - 1, -1, -1):
        if state % 2:
            label = state // 2
            spans_N2[label, 0] = t
            if spans_N2[label, 1] < 0:
                spans_N2[label, 1] = t
        state -= int(steps_TS[t, state])  # an int8, which a long text's state number does not fit
    return spans_N2, score


def monotonic(weight_NT: np.ndarray) -> np.ndarray:
    """The cut of T frames into N consecutive stretches, one for each row and none empty, with the largest sum of weights.

    Returns int [N, 2], the first and last frame of each. Raises SaladError where there are fewer frames than rows."""
    n, frames = weight_NT.shape
    if frames < n:
        raise SaladError(f"{n} tokens cannot be aligned with {frames} frames of speech")
    best_N = np.full(n, -np.inf)
    best_N[0] = weight_NT[0, 0]
    moved_TN = np.zeros((frames, n), bool)
    for t in range(1, frames):
        before = np.concatenate([[-np.inf], best_N[:-1]])
        moved_TN[t] = before > best_N
        best_N = np.maximum(best_N, before) + weight_NT[:, t]
    spans_N2 = np.zeros((n, 2), int)
    row, spans_N2[n - 1, 1] = n - 1, frames - 1
    for t in range(frames - 1, 0, -1):
        if moved_TN[t, row]:
            spans_N2[row, 0] = t
            row -= 1
            spans_N2[row, 1] = t - 1
    return spans_N2


def _by_attention(samples: np.ndarray, text: str, recogniser: WhisperRecogniser, language: str) -> tuple[dict, float]:
    """(run of the text -> its start and end in seconds, mean log-probability of a token) by cross-attention."""
    encoded = recogniser.processor.tokenizer(f" {text}", add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    if not ids or not any(c.isalnum() for c in text):
        raise SaladError(f"nothing in {text[:60]!r} can be aligned")
    weights, log_probs = recogniser.attention(samples, ids, language)
    # the weights as they are: whisper/timing.py's z-score over the tokens and median filter of 7 double the error here
    spans_N2 = monotonic((weights / np.maximum(weights.sum(-1, keepdims=True), 1e-9)).mean(0))
    hop_s, spans = 0.02, runs(text)
    timed: dict[int, tuple[float, float]] = {}
    for (first, last), (start, end) in zip(spans_N2[: len(ids)], offsets, strict=True):
        inside = [i for i in range(max(start - 1, 0), end - 1) if not text[i].isspace()]
        letters = [i for i in inside if text[i].isalnum()]
        if not letters:  # a comma is written in the pause
            continue
        run = bisect_right([begin for begin, _ in spans], letters[0]) - 1
        begin_s = timed[run][0] if run in timed else first * hop_s
        timed[run] = (begin_s, (last + 1) * hop_s)
    return timed, float(log_probs.mean())


def delays(
    recogniser: CTCRecogniser | WhisperRecogniser, spoken: list[tuple[np.ndarray, str, list[Word]]]
) -> tuple[float, float]:
    """How late `recogniser` fires, in seconds: the medians of (aligned - true) word starts and ends over speech whose
    word times are known (a voice with word events). CTC says when a letter is sure, not when it begins; a causal
    encoder is later still. Put them into the model's configuration as `word_delay_s`, and `align` takes them off.

    spoken: (samples float32 [T] at 16 kHz, text, its words) each. Raises SaladError where no word compares."""
    starts, ends = [], []
    kept, recogniser.model.config.word_delay_s = recogniser.delay_s, (0.0, 0.0)
    try:
        transcribed = recogniser.hear([samples for samples, _, _ in spoken])
        for (samples, text, words), (_, log_probs) in zip(spoken, transcribed, strict=True):
            try:
                aligned = align(samples, text, recogniser, log_probs).words
            except SaladError:  # a text that is longer than what was said
                continue
            begins, finishes = {w.char_start: w.start_s for w in words}, {w.char_end: w.end_s for w in words}
            starts += [w.start_s - begins[w.char_start] for w in aligned if w.char_start in begins]
            ends += [w.end_s - finishes[w.char_end] for w in aligned if w.char_end in finishes]
    finally:
        recogniser.model.config.word_delay_s = kept
    if not starts or not ends:
        raise SaladError(f"{recogniser.name}: no word of the calibration speech could be aligned")
    return float(np.median(starts)), float(np.median(ends))


def measured_delay(recogniser: WhisperRecogniser) -> tuple[float, float]:
    """How late word starts and ends come out of a Whisper's attention, in seconds; measured once on a few sentences of espeak,
    whose word times are known, and kept with the recogniser."""
    from salad.speech.espeak import Espeak

    spoken = [(text, Espeak().speak(text, voice, 0)) for text in CALIBRATION for voice in ("en-us", "en-us+f2")]
    recogniser.model.config.word_delay_s = (0.0, 0.0)
    try:
        start, end = delays(recogniser, [(utterance.samples, text, utterance.words) for text, utterance in spoken])
    finally:
        recogniser.model.config.word_delay_s = None
    recogniser.measured_delay_s = start - EARLY_EVENTS_S, end
    return recogniser.measured_delay_s


def align(samples: np.ndarray, text: str, recogniser: Recogniser, log_probs_TV: np.ndarray | None = None,
          language: str = "en") -> Alignment:  # fmt: skip
    """samples: float32 [T] at 16 kHz; text: what is said, in `language`; recogniser: a CTC or a Whisper-type model;
    log_probs_TV: what a CTC model made of it, where it has heard it already (`hear`). Numbers and the like are aligned as
    they are spoken (`spoken_form`); letters that a CTC model has not are left out. Raises SaladError where the recogniser is
    of another kind, the text has no letter that it knows, or the recording is too short for it (Whisper: above 30 s)."""
    if not isinstance(recogniser, CTCRecogniser | WhisperRecogniser):
        raise SaladError(f"{recogniser.name} is neither a CTC nor a Whisper-type model: alignment needs one")
    spoken = spoken_form(text, language)
    if isinstance(recogniser, WhisperRecogniser):
        spoken_words, score = _by_attention(samples, spoken.spoken, recogniser, language)
        (late_s, over_s), total_s = recogniser.delay_s or measured_delay(recogniser), len(samples) / SAMPLE_RATE
        timed = {}
        for run, (start, end) in spoken_words.items():
            start = min(max(start - late_s, 0.0), total_s)
            timed[run] = (start, min(max(end - over_s, start + 0.02), total_s))
        return Alignment(text_words(words_of(spoken.spoken, timed), spoken, text), score)
    vocabulary = recogniser.processor.tokenizer.get_vocab()
    gap = vocabulary.get(recogniser.processor.tokenizer.word_delimiter_token)
    labels: list[int] = []
    letters: dict[int, list[int]] = {}  # run of the spoken text -> the labels that time it: a full stop fires in the pause
    for run, (start, end) in enumerate(runs(spoken.spoken)):
        known = [
            (c, next((vocabulary[form] for form in (c, c.lower(), c.upper()) if form in vocabulary), None))
            for c in spoken.spoken[start:end]
        ]
        known = [(c, label) for c, label in known if label is not None]
        if not known:
            continue
        if labels and gap is not None:
            labels.append(gap)
        places = range(len(labels), len(labels) + len(known))
        letters[run] = [place for place, (c, _) in zip(places, known, strict=True) if c.isalnum()] or list(places)
        labels += [label for _, label in known if label is not None]
    if not letters:
        raise SaladError(f"nothing in {text[:60]!r} can be aligned: {recogniser.name} knows none of its letters")
    log_probs = recogniser.log_probs([samples])[0] if log_probs_TV is None else log_probs_TV
    frames_N2, score = viterbi(log_probs, np.array(labels), recogniser.model.config.pad_token_id)
    hop_s, (late_s, over_s), total_s = recogniser.hop / SAMPLE_RATE, recogniser.delay_s, len(samples) / SAMPLE_RATE
    timed = {}
    for run, those in letters.items():
        start, end = frames_N2[those[0], 0] * hop_s - late_s, (frames_N2[those[-1], 1] + 1) * hop_s - over_s
        start = min(max(float(start), 0.0), total_s)
        timed[run] = (start, min(max(float(end), start + hop_s), total_s))
    words = words_of(spoken.spoken, timed)
    return Alignment(text_words(words, spoken, text), score / len(log_probs))
