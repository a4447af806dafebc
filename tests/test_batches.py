"""Batches: what stands beside a document, in its row or its batch, changes nothing for it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TEXTS, config, encoder, spoken_text, teacher

from salad.data.batches import collate, pack
from salad.data.interleaving import (
    Span,
    interleave,
    interleaved_sequence,
    scoring_patterns,
    shortened,
    token_offsets,
    training_pattern,
    units,
)
from salad.errors import SaladError
from salad.models.speech_lm import SpeechLM


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("lab")
    teacher(place / "models" / "teacher")
    encoder(place / "models" / "encoder")
    model = SpeechLM.build(config(), place).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def documents(model):
    """Every text as speech and text interleaved, and every second one again as text alone."""
    laid, speech, names = [], [], []
    for i, text in enumerate(TEXTS):
        spoken, samples = spoken_text(text, i)
        ids, offsets = token_offsets(model.tokenizer, text)
        cut = units(text, offsets, spoken.words, spoken.duration_s)
        spans = interleave(cut, scoring_patterns(0, text, len(cut))[0], model.encoder.frame_rate)
        laid.append(interleaved_sequence(model.prefix, ids, spans))
        speech.append(model.encoder(torch.from_numpy(samples)).numpy())
        names.append(f"s{i}")
        if i % 2:
            laid.append(interleaved_sequence(model.prefix, ids, [Span(False, 0, len(ids), 0, 0)]))
            speech.append(None)
            names.append(f"t{i}")
    return laid, speech, names


def logits(model, batch):
    with torch.no_grad():
        student = model.hidden(batch).flatten(0, 1)[batch.rows_N] @ model.head.T
        teacher = model.teacher.hidden(batch.text_ids_BS, batch.text_place_BS).flatten(0, 1)[batch.text_rows_N]
        text = model.text_hidden(batch.text_ids_BS, batch.text_place_BS).flatten(0, 1)[batch.text_rows_N]
        return student, teacher @ model.teacher.head.T, text @ model.head.T


def test_a_packed_batch_gives_each_documents_own_logits(model):
    laid, speech, names = documents(model)
    packed = collate(laid, speech, names, context=120)
    assert packed.ids_BT.shape[0] < len(laid) and packed.ids_BT.shape[1] <= 120
    together = logits(model, packed)
    for b in range(len(laid)):
        alone = logits(model, collate(laid[b : b + 1], speech[b : b + 1], names[b : b + 1]))
        own = packed.sample_N == b
        for first, other in zip(together, alone, strict=True):
            torch.testing.assert_close(first[own], other, rtol=0, atol=1e-5)
    padded = collate(laid, speech, names)
    for name in ("targets_N", "after_N", "sample_N", "positions_N"):
        assert torch.equal(getattr(packed, name), getattr(padded, name))
    assert packed.tokens == padded.tokens


def test_without_its_places_a_packed_batch_would_leak(model):
    """The check above can fail: the same rows read as one document each give other logits."""
    laid, speech, names = documents(model)
    packed = collate(laid, speech, names, context=120)
    right = logits(model, packed)[0]
    packed.place_BT = None
    assert (logits(model, packed)[0] - right).abs().max() > 1e-2


def test_packed_and_padded_batches_have_the_same_loss_and_gradients(model):
    laid, speech, names = documents(model)
    model.train()
    results = []
    for context in (None, 120):
        model.zero_grad()
        out = model(collate(laid, speech, names, context=context), alpha=0.5, reduction="sum", per_position=True)
        out.loss.backward()
        results.append((out, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    (padded, padded_grads), (packed, packed_grads) = results
    torch.testing.assert_close(packed.loss, padded.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed.d, padded.d, rtol=1e-4, atol=1e-5)
    for first, other in zip(packed_grads, padded_grads, strict=True):
        torch.testing.assert_close(first, other, rtol=1e-3, atol=1e-4)
    model.eval()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 64)), min_size=1, max_size=40))
def test_packing_places_every_document_once_within_the_context(lengths):
    rows = pack(lengths, 64)
    assert sorted(b for members in rows for b in members) == list(range(len(lengths)))
    for side in (0, 1):
        assert all(sum(lengths[b][side] for b in members) <= 64 for members in rows)


@settings(max_examples=100, deadline=None)
@given(limit=st.integers(2, 90), seed=st.integers(0, 99))
def test_what_is_longer_than_the_context_is_cut_and_keeps_its_positions(model, limit, seed):
    rng = np.random.default_rng(seed)
    text = TEXTS[seed % len(TEXTS)]
    spoken, _ = spoken_text(text, 1)
    ids, offsets = token_offsets(model.tokenizer, text)
    cut = units(text, offsets, spoken.words, spoken.duration_s)
    pattern = training_pattern(rng, len(cut), config().sequences)
    whole = interleaved_sequence(model.prefix, ids, interleave(cut, pattern, model.encoder.frame_rate))
    short = shortened(whole, limit)
    assert max(len(short.ids), len(short.text_ids)) <= limit
    n = len(short.rows)
    assert list(short.positions) == list(whole.positions[:n]) and list(short.rows) == list(whole.rows[:n])
    assert all(short.ids[row + 1] == short.text_ids[at + 1] for row, at in zip(short.rows, short.text_rows, strict=True))
    if n < len(whole.rows):
        assert whole.rows[n] + 1 >= limit or whole.text_rows[n] + 1 >= limit


def test_span_lengths_follow_their_weights_and_whole_sequences_their_probabilities():
    rng = np.random.default_rng(0)
    weighted = config().sequences.model_copy(
        update={"span_units": (2, 4), "span_weights": (0.0, 1.0, 3.0), "p_speech_first": 0.0}
    )
    lengths = []
    for _ in range(300):
        pattern = training_pattern(rng, 40, weighted)
        edges = [i for i in range(1, 40) if pattern[i] != pattern[i - 1]]
        lengths += list(np.diff(edges))
    assert set(lengths) == {3, 4} and 0.68 < np.mean(np.asarray(lengths) == 4) < 0.82
    whole = config().sequences.model_copy(update={"p_speech_first": 0.0, "p_all_text": 0.3, "p_all_speech": 0.3})
    drawn = [training_pattern(rng, 20, whole) for _ in range(600)]
    assert 0.24 < np.mean([not any(p) for p in drawn]) < 0.36 and 0.24 < np.mean([all(p) for p in drawn]) < 0.36


def test_a_recording_that_is_shorter_than_its_row_says_is_one_line(model):
    """However little is missing: frames are laid out up to the recording's end, as its row has it."""
    laid, speech, names = documents(model)
    spoken = next(b for b, x in enumerate(speech) if x is not None)
    fed = int(laid[spoken].frames.max()) + 1
    for missing in (1, 2, fed):
        cut = [x if b != spoken else x[: fed - missing] for b, x in enumerate(speech)]
        with pytest.raises(SaladError, match=f"{names[spoken]}.*{fed - missing} frames") as error:
            collate(laid, cut, names)
        assert len(str(error.value).splitlines()) == 1
