"""Log-likelihoods of continuations after a prompt of texts and recordings.

A recording is encoded once, a prompt is run once and its key-value cache shared by all of its continuations, and what
prompts begin with in common (few-shot examples) is run once for all of them.
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch

from salad.errors import SaladError
from salad.models.heads import before_head, head_of
from salad.models.speech_lm import SpeechLM, Teacher

SHORTEST_SHARED = 16  # units: prompts that agree on as many begin with the same examples


@dataclass(frozen=True)
class Recording:
    """A recording in a prompt. Two of the same `key` are the same sound; samples: float32 [T] at the encoder's rate."""

    key: str
    samples: np.ndarray

    def __eq__(self, other):
        return isinstance(other, Recording) and self.key == other.key

    def __hash__(self):
        return hash(self.key)


Prompt = list  # of texts (str) and Recordings, in order


@torch.no_grad()
def loglikelihoods(model: SpeechLM, prompts: list[Prompt], continuations: list[list[str]], teacher: bool = False,
                   batch: int = 16, progress=None) -> list[list[tuple[float, bool]]]:  # fmt: skip
    """(summed log-probability in nats, whether it is what greedy decoding gives) of each continuation of each prompt.

    A continuation begins with its delimiter (" Paris."). Tokens are those of the checkpoint's prompt format
    (`salad.models.prompts`): in `plain`, lm-evaluation-harness' own. Probabilities are over the whole output head, as
    the harness has them. `teacher`: the original LLM answers, and prompts must be text. `batch`: prompts at once.
    Raises SaladError for a prompt longer than the LLM's context.
    """
    return _Scorer(model, model.teacher if teacher else Teacher(model.llm)).score(
        prompts, continuations, batch, progress or (lambda done, total: None)
    )


class _Scorer:
    def __init__(self, model: SpeechLM, source: Teacher):
        self.model, self.source = model, source
        self.decoder, self.embed = source.llm.get_decoder(), source.llm.get_input_embeddings()
        self._heard: dict[Recording, torch.Tensor] = {}

    def score(self, prompts, continuations, batch, progress) -> list[list[tuple[float, bool]]]:
        laid = [self._units(*one) for one in zip(prompts, continuations, strict=True)]
        alike: dict[tuple, list[int]] = {}
        for i, (units, _) in enumerate(laid):
            alike.setdefault(tuple(units[:SHORTEST_SHARED]), []).append(i)
        groups, rest = [], []
        for key, members in alike.items():
            long = len(key) == SHORTEST_SHARED and len(members) > 1
            groups, rest = (groups + [members], rest) if long else (groups, rest + members)
        told: list[list[tuple[float, bool]]] = [[]] * len(prompts)
        done = 0
        for members in [*groups, rest]:
            members.sort(key=lambda i: (len(laid[i][0]), i))
            shared = _common([laid[i][0] for i in members]) if members is not rest else 0
            head = self._run_head(laid[members[0]][0][:shared]) if shared else None
            for start in range(0, len(members), batch):
                part = members[start : start + batch]
                pieces = [(laid[i][0][shared:], laid[i][1]) for i in part]
                for i, scores in zip(part, self._batch(pieces, head), strict=True):
                    told[i] = scores
                done += len(part)
                progress(done, len(prompts))
        return told

    # --- what goes in ---

    def _units(self, prompt: Prompt, continuations: list[str]) -> tuple[list, list[list[int]]]:
        """Token ids and Recordings of the prompt, as the model's format lays it out, and each continuation's token ids."""
        units, after = self.model.prompt.units(prompt, continuations)
        if not all(after):
            raise SaladError("a choice has no token of its own after its prompt: it must not be empty")
        if len(units) == 1 and units[0] == self.model.prefix:  # the harness' rule for an empty prompt
            after = [some[1:] if some[0] == units[0] and len(some) > 1 else some for some in after]
        return units, after

    def _vectors(self, units: list) -> torch.Tensor:
        """Input vectors [T, H] of units."""
        parts, ids = [], []
        for unit in [*units, None]:
            if isinstance(unit, int):
                ids.append(unit)
                continue
            if ids:
                parts.append(self.embed(torch.tensor(ids, device=self.model.device)))
                ids = []
            if unit is not None:
                parts.append(self._frames(unit))
        return torch.cat(parts)

    def _frames(self, recording: Recording) -> torch.Tensor:
        """What the adapter makes of a recording, [F, H], made once."""
        if recording not in self._heard:
            samples = torch.as_tensor(np.asarray(recording.samples, dtype=np.float32), device=self.model.device)
            frames = self.model.encoder(samples)
            if not len(frames):
                raise SaladError(f"recording {recording.key} is too short to be heard: not one frame")
            self._heard[recording] = self.model.adapter(frames[None].to(self.embed.weight.dtype))[0]
        return self._heard[recording]

    # --- running it ---

    def _run_head(self, units: list):
        """The key-value cache of what a group of prompts begins with."""
        with self.source.switched():
            return self.decoder(inputs_embeds=self._vectors(units)[None], use_cache=True).cache

    def _batch(self, pieces: list[tuple[list, list[list[int]]]], head) -> list[list[tuple[float, bool]]]:
        vectors = [self._vectors(units) for units, _ in pieces]
        counts, device = [len(ids) for _, ids in pieces], self.model.device
        before = head.get_seq_length() if head is not None else 0
        longest, flat = max(map(len, vectors)), [ids for _, some in pieces for ids in some]
        width = max(map(len, flat))
        limit = getattr(self.source.llm.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and before + longest + width - 1 > limit:
            raise SaladError(
                f"a prompt of {before + longest} positions with a choice of {width} is longer than the LLM's context "
                f"({limit}): take fewer examples"
            )
        inputs = vectors[0].new_zeros(len(pieces), longest, vectors[0].shape[1])
        mask = torch.zeros(len(pieces), before + longest, dtype=torch.long, device=device)
        mask[:, :before] = 1
        for row, some in enumerate(vectors):
            inputs[row, longest - len(some) :] = some
            mask[row, before + longest - len(some) :] = 1
        cache = None
        if head is not None:
            cache = copy.deepcopy(head)
            cache.batch_repeat_interleave(len(pieces))
        rows = torch.repeat_interleave(torch.arange(len(pieces), device=device), torch.tensor(counts, device=device))
        ids = torch.zeros(len(flat), width, dtype=torch.long)
        for row, some in enumerate(flat):
            ids[row, : len(some)] = torch.tensor(some, dtype=torch.long)
        ids = ids.to(device)
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        with self.source.switched():
            first = self.decoder(inputs_embeds=inputs, attention_mask=mask, position_ids=positions[:, before:],
                                 cache=cache, use_cache=True)  # fmt: skip
            output = head_of(self.source.llm)
            hidden = first.last_hidden_state[rows, -1:]
            if width > 1:
                cache = first.cache
                cache.reorder_cache(rows)
                after = self.decoder(
                    input_ids=ids[:, :-1],
                    attention_mask=torch.cat([mask[rows], torch.ones_like(ids[:, :-1])], dim=1),
                    position_ids=positions[rows, -1:] + 1 + torch.arange(width - 1, device=device),
                    cache=cache,
                    use_cache=True,
                ).last_hidden_state
                hidden = torch.cat([hidden, after], dim=1)
            hidden = before_head(self.source.llm, hidden)
        lengths = torch.tensor([len(some) for some in flat], device=device)
        real = torch.arange(width, device=device) < lengths[:, None]
        logits = output.logits(hidden[real])
        wanted, row = ids[real], real.nonzero()[:, 0]
        chosen = logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0]
        sums = torch.zeros(len(flat), device=device).index_add_(0, row, chosen)
        missed = torch.zeros(len(flat), device=device).index_add_(0, row, (logits.argmax(-1) != wanted).float())
        pairs = list(zip(sums.tolist(), (missed == 0).tolist(), strict=True))
        ends = np.cumsum([0, *counts])
        return [pairs[a:b] for a, b in zip(ends, ends[1:], strict=False)]


def _common(lists: list[list]) -> int:
    """How many units all of `lists` begin with, leaving each at least one of its own."""
    shortest = min(map(len, lists)) - 1
    first = lists[0]
    return next((n for n in range(shortest) if any(other[n] != first[n] for other in lists)), shortest)
