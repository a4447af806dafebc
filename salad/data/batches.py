"""Batches: sequences of several samples laid side by side, padded on the right (causal models never see it)."""

from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from salad.data.interleaving import Sequence


@dataclass
class Batch:
    """Tensors of a batch of B samples.

    `ids_BT` int64: token ids, -1 where a frame or padding stands; `frames_BT` int64: frame numbers, -1 elsewhere;
    `text_ids_BS` int64: the plain texts; `speech_BFD` float32: encoder frames, or None where nothing is spoken.
    Per text position, N of them over the batch: `rows_N` (into the flattened [B·T]) and `text_rows_N` (into [B·S])
    predict `targets_N`; `after_N` says whether speech stands before; `sample_N` numbers the sample in the batch;
    `positions_N` is the token's index in its text. `tokens`: text tokens and frames fed, without padding.
    """

    ids_BT: torch.Tensor
    frames_BT: torch.Tensor
    text_ids_BS: torch.Tensor
    speech_BFD: torch.Tensor | None
    rows_N: torch.Tensor
    text_rows_N: torch.Tensor
    targets_N: torch.Tensor
    after_N: torch.Tensor
    sample_N: torch.Tensor
    positions_N: torch.Tensor
    tokens: int
    sample_ids: list[str]

    def to(self, device) -> "Batch":
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in moved.items() if isinstance(v, torch.Tensor)})


def collate(sequences: list[Sequence], speech: list[np.ndarray | None], sample_ids: list[str]) -> Batch:
    """Lay `sequences` side by side. `speech[b]`: the encoder frames [F, D] of the whole recording, or None."""
    size = len(sequences)
    longest = max(len(s.ids) for s in sequences)
    longest_text = max(len(s.text_ids) for s in sequences)
    ids = np.full((size, longest), -1, dtype=np.int64)
    frames = np.full((size, longest), -1, dtype=np.int64)
    text_ids = np.zeros((size, longest_text), dtype=np.int64)
    for b, s in enumerate(sequences):
        ids[b, : len(s.ids)] = s.ids
        frames[b, : len(s.frames)] = s.frames
        text_ids[b, : len(s.text_ids)] = s.text_ids
    # frames after the last one that is fed are never looked at
    fed = [0 if x is None else int(s.frames.max()) + 1 for s, x in zip(sequences, speech, strict=True)]
    speech_BFD = None
    if any(fed):
        width = next(x.shape[1] for x in speech if x is not None)
        speech_BFD = np.zeros((size, max(fed), width), dtype=np.float32)
        for b, (x, n) in enumerate(zip(speech, fed, strict=True)):
            if n:
                speech_BFD[b, :n] = x[:n]
    join = np.concatenate
    return Batch(
        ids_BT=torch.from_numpy(ids),
        frames_BT=torch.from_numpy(frames),
        text_ids_BS=torch.from_numpy(text_ids),
        speech_BFD=None if speech_BFD is None else torch.from_numpy(speech_BFD),
        rows_N=torch.from_numpy(join([b * longest + s.rows for b, s in enumerate(sequences)])),
        text_rows_N=torch.from_numpy(join([b * longest_text + s.text_rows for b, s in enumerate(sequences)])),
        targets_N=torch.from_numpy(join([s.text_ids[s.text_rows + 1] for s in sequences])),
        after_N=torch.from_numpy(join([s.after_speech for s in sequences])),
        sample_N=torch.from_numpy(join([np.full(len(s.rows), b, dtype=np.int64) for b, s in enumerate(sequences)])),
        positions_N=torch.from_numpy(join([s.positions for s in sequences])),
        tokens=sum(len(s.ids) for s in sequences),
        sample_ids=list(sample_ids),
    )
