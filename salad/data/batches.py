"""Batches: sequences of several samples, one a row (padded on the right, which causal models never see) or packed."""

import hashlib
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch

from salad.data.interleaving import InterleavedSequence
from salad.errors import SaladError


@dataclass
class Batch:
    """Tensors of a batch of B rows: one sample a row, or several, packed.

    `ids_BT` int64: token ids, -1 where a frame or padding stands; `frames_BT` int64: row of the frames [P·F], -1
    elsewhere; `text_ids_BS` int64: the plain texts; `speech_PFD` float32: encoder frames of the P samples with speech,
    or None where nothing is spoken. Per text position, N of them over the batch: `rows_N` (into the flattened [B·T])
    and `text_rows_N` (into [B·S]) predict `targets_N`; `after_N` says whether speech stands before; `sample_N` numbers
    the sample in the batch; `positions_N` is the token's index in its text. `tokens`: text tokens and frames fed,
    without padding. `sources`: the corpus of each sample, where training asks for it. `texts`: of each sample's plain
    text a hash of its ids, its first row in the flattened [B·S], and its length.

    Packed, `place_BT` and `text_place_BS` int64 count from 0 in each document; given as `position_ids` without a
    cache, they keep attention within a document (transformers makes the mask). None where each row is one sample.
    """

    ids_BT: torch.Tensor
    frames_BT: torch.Tensor
    text_ids_BS: torch.Tensor
    speech_PFD: torch.Tensor | None
    rows_N: torch.Tensor
    text_rows_N: torch.Tensor
    targets_N: torch.Tensor
    after_N: torch.Tensor
    sample_N: torch.Tensor
    positions_N: torch.Tensor
    tokens: int
    sample_ids: list[str]
    sources: list[str]
    place_BT: torch.Tensor | None = None
    text_place_BS: torch.Tensor | None = None
    texts: list[tuple[str, int, int]] = field(default_factory=list)

    def to(self, device: torch.device | str) -> "Batch":
        """A copy of the batch with its tensors on `device`."""
        tensors: dict[str, Any] = {
            f.name: tensor.to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(tensor := getattr(self, f.name), torch.Tensor)
        }
        return replace(self, **tensors)


def collate(
    sequences: list[InterleavedSequence],
    speech: list[np.ndarray | None],
    sample_ids: list[str],
    sources: list[str] | None = None,
    context: int | None = None,
) -> Batch:
    """Lay `sequences` side by side, or with `context` pack them into rows of at most that many places.

    `speech[b]`: the encoder frames [F, D] of the whole recording, or None."""
    lengths = [(len(s.ids), len(s.text_ids)) for s in sequences]
    rows = [[b] for b in range(len(sequences))] if context is None else pack(lengths, context)
    row = np.zeros(len(sequences), dtype=np.int64)
    at, text_at = row.copy(), row.copy()  # where in its row a sample starts
    for r, members in enumerate(rows):
        for before, b in zip([None, *members[:-1]], members, strict=True):
            row[b] = r
            if before is not None:
                at[b], text_at[b] = at[before] + lengths[before][0], text_at[before] + lengths[before][1]
    longest = max(sum(lengths[b][0] for b in members) for members in rows)
    longest_text = max(sum(lengths[b][1] for b in members) for members in rows)
    # frames after the last one that is fed are never looked at
    fed = [0 if x is None else int(s.frames.max()) + 1 for s, x in zip(sequences, speech, strict=True)]
    spoken = {b: x for b, x in enumerate(speech) if x is not None and fed[b]}
    speech_PFD = None
    if spoken:
        dim = next(iter(spoken.values())).shape[1]
        speech_PFD = np.zeros((len(spoken), max(fed), dim), dtype=np.float32)
        for p, (b, frames_FD) in enumerate(spoken.items()):
            if len(frames_FD) < fed[b]:
                raise SaladError(
                    f"{sample_ids[b]}: its recording gives {len(frames_FD)} frames, but its sequence uses {fed[b]}: the "
                    "recording is shorter than its row in `syntheses` says; run the pass that made it again"
                )
            speech_PFD[p, : fed[b]] = frames_FD[: fed[b]]
    place_of = {b: p for p, b in enumerate(spoken)}
    ids = np.full((len(rows), longest), -1, dtype=np.int64)
    frames = np.full((len(rows), longest), -1, dtype=np.int64)
    text_ids = np.zeros((len(rows), longest_text), dtype=np.int64)
    for b, s in enumerate(sequences):
        here = slice(at[b], at[b] + len(s.ids))
        ids[row[b], here] = s.ids
        text_ids[row[b], text_at[b] : text_at[b] + len(s.text_ids)] = s.text_ids
        if fed[b]:
            frames[row[b], here] = np.where(s.frames >= 0, s.frames + place_of[b] * max(fed), -1)
    places: dict[str, torch.Tensor] = {}
    if context is not None:
        places = {
            "place_BT": _places(rows, [n for n, _ in lengths], longest),
            "text_place_BS": _places(rows, [n for _, n in lengths], longest_text),
        }
    join = np.concatenate
    starts = zip(sequences, row * longest + at, row * longest_text + text_at, strict=True)
    both = [(s.rows + start, s.text_rows + text_start) for s, start, text_start in starts]
    return Batch(
        ids_BT=torch.from_numpy(ids),
        frames_BT=torch.from_numpy(frames),
        text_ids_BS=torch.from_numpy(text_ids),
        speech_PFD=None if speech_PFD is None else torch.from_numpy(speech_PFD),
        rows_N=torch.from_numpy(join([interleaved for interleaved, _ in both])),
        text_rows_N=torch.from_numpy(join([text for _, text in both])),
        targets_N=torch.from_numpy(join([s.text_ids[s.text_rows + 1] for s in sequences])),
        after_N=torch.from_numpy(join([s.after_speech for s in sequences])),
        sample_N=torch.from_numpy(join([np.full(len(s.rows), b, dtype=np.int64) for b, s in enumerate(sequences)])),
        positions_N=torch.from_numpy(join([s.positions for s in sequences])),
        tokens=sum(n for n, _ in lengths),
        sample_ids=list(sample_ids),
        sources=list(sources or []),
        texts=[
            (hashlib.blake2b(s.text_ids.astype(np.int64).tobytes(), digest_size=16).hexdigest(), int(start), len(s.text_ids))
            for s, start in zip(sequences, row * longest_text + text_at, strict=True)
        ],
        **places,
    )


def pack(lengths: list[tuple[int, int]], context: int) -> list[list[int]]:
    """Which samples share a row: first fit, longest first. `lengths`: places of each sample as it is interleaved and
    as plain text; both sums of a row stay within `context`."""
    rows: list[list[int]] = []
    room: list[list[int]] = []
    for b in sorted(range(len(lengths)), key=lambda b: -max(lengths[b])):
        n, n_text = lengths[b]
        fits = next((r for r, (left, left_text) in enumerate(room) if n <= left and n_text <= left_text), None)
        if fits is None:
            rows.append([])
            room.append([context, context])
            fits = len(rows) - 1
        rows[fits].append(b)
        room[fits] = [room[fits][0] - n, room[fits][1] - n_text]
    return rows


def _places(rows: list[list[int]], lengths: list[int], longest: int) -> torch.Tensor:
    """Places counted from 0 in each document; the padding behind them counts as one more."""
    places = np.zeros((len(rows), longest), dtype=np.int64)
    for r, members in enumerate(rows):
        counted = [np.arange(lengths[b]) for b in members]
        counted.append(np.arange(longest - sum(map(len, counted))))
        places[r] = np.concatenate(counted)
    return torch.from_numpy(places)
