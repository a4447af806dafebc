"""Log-likelihoods of continuations after a prompt of texts and recordings.

A recording is encoded once, a prompt is run once and its key-value cache shared by all of its continuations, and what
prompts begin with in common (few-shot examples) is run once for all of them.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from salad.errors import SaladError
from salad.models.heads import before_head, head_of
from salad.models.speech_lm import SpeechLM, Teacher

SHORTEST_SHARED = 16  # units: prompts that agree on as many begin with the same examples
BUDGET = 4096  # positions, padding included, that a CPU runs at once: more is no faster there, and takes memory
GPU_SHARE = 0.5  # of a GPU's free memory that a batch's keys, values and hidden states may take
HEARD_AT_ONCE = 16  # recordings
LOGITS_AT_ONCE = 1 << 26  # numbers: 256 MB in float32


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
                   batch: int | None = None, progress=None) -> list[list[tuple[float, bool]]]:  # fmt: skip
    """(summed log-probability in nats, whether it is what greedy decoding gives) of each continuation of each prompt.

    A continuation begins with its delimiter (" Paris."). Tokens are those of the checkpoint's prompt format
    (`salad.models.prompts`): in `plain`, lm-evaluation-harness' own. Probabilities are over the whole output head, as
    the harness has them. `teacher`: the original LLM answers, and prompts must be text. `batch`: prompts at once; by
    default as many as BUDGET positions hold, on a GPU as its memory does. What is asked together does not matter to the
    scores (1e-4 in float32). Raises SaladError for a prompt longer than the LLM's context.
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
        self._hear(unit for units, _ in laid for unit in units if isinstance(unit, Recording))
        alike: dict[tuple, list[int]] = {}
        for i, (units, _) in enumerate(laid):
            alike.setdefault(tuple(units[:SHORTEST_SHARED]), []).append(i)
        groups: list[list[int]] = []
        rest: list[int] = []
        for key, members in alike.items():
            long = len(key) == SHORTEST_SHARED and len(members) > 1
            groups, rest = (groups + [members], rest) if long else (groups, rest + members)
        results: list[list[tuple[float, bool]]] = [[]] * len(prompts)
        done = 0
        for members in [*groups, rest]:
            members.sort(key=lambda i: (len(laid[i][0]) + max(map(len, laid[i][1]), default=0), i))
            shared = _common([laid[i][0] for i in members]) if members is not rest else 0
            head = self._run_head(laid[members[0]][0][:shared]) if shared else None
            waiting = self._parts([laid[i] for i in members], shared, batch)
            waiting = [[members[n] for n in part] for part in waiting]
            while waiting:
                part = waiting.pop(0)
                pieces = [(laid[i][0][shared:], laid[i][1]) for i in part]
                try:
                    found = self._batch(pieces, head)
                except torch.OutOfMemoryError:
                    if len(part) == 1:
                        raise SaladError("the GPU's memory does not hold a single prompt with its choices") from None
                    waiting[:0] = [part[: len(part) // 2], part[len(part) // 2 :]]
                    torch.cuda.empty_cache()
                    continue
                for i, scores in zip(part, found, strict=True):
                    results[i] = scores
                done += len(part)
                progress(done, len(prompts))
        return results

    def _parts(self, laid: list[tuple[list, list[list[int]]]], shared: int, batch: int | None) -> list[list[int]]:
        """Numbers of prompts that are run together, in order: `batch` of them, or as many as the budget holds."""
        if batch is not None:
            return [list(range(start, min(start + batch, len(laid)))) for start in range(0, len(laid), batch)]
        budget = self._budget()
        lengths = [self._length(units[shared:]) for units, _ in laid]
        parts: list[list[int]] = []
        longest = width = rows = 0
        for n, (_, some) in enumerate(laid):
            sizes = max(longest, lengths[n]), max(width, *map(len, some)), rows + len(some)
            count = len(parts[-1]) + 1 if parts else 1
            if parts and count * sizes[0] + sizes[2] * (shared + sizes[0] + sizes[1]) <= budget:
                parts[-1].append(n)
                longest, width, rows = sizes
            else:
                parts.append([n])
                longest, width, rows = lengths[n], max(map(len, some)), len(some)
        return parts

    def _length(self, units: list) -> int:
        """Positions of units."""
        return sum(1 if isinstance(unit, int) else len(self._frames(unit)) for unit in units)

    def _budget(self) -> int:
        """Positions that are run at once."""
        if self.model.device.type != "cuda":
            return BUDGET
        config = self.source.llm.config.get_text_config()
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        numbers = 2 * config.num_hidden_layers * heads * width + 12 * config.hidden_size  # twice: a cache is copied to rows
        free, _ = torch.cuda.mem_get_info(self.model.device)
        return max(BUDGET, int(GPU_SHARE * free / (2 * numbers * self.embed.weight.element_size())))

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
            self._hear([recording])
        return self._heard[recording]

    def _hear(self, recordings: Iterable[Recording]) -> None:
        """Encode recordings, and run the adapter over them, many at a time: each comes out as if it were alone."""
        fresh = sorted((r for r in dict.fromkeys(recordings) if r not in self._heard), key=lambda r: len(r.samples))
        for start in range(0, len(fresh), HEARD_AT_ONCE):
            some = fresh[start : start + HEARD_AT_ONCE]
            sounds = [torch.as_tensor(np.asarray(r.samples, dtype=np.float32), device=self.model.device) for r in some]
            frames = self.model.encoder.each(sounds)
            for recording, found in zip(some, frames, strict=True):
                if not len(found):
                    raise SaladError(f"recording {recording.key} is too short to be heard: not one frame")
            # the adapter is causal: what pads a shorter one behind its end changes nothing before it
            padded = torch.nn.utils.rnn.pad_sequence(frames, batch_first=True).to(self.embed.weight.dtype)
            adapted = self.model.adapter(padded)
            self._heard |= {r: made[: len(f)] for r, made, f in zip(some, adapted, frames, strict=True)}

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
        for number, vector in enumerate(vectors):
            inputs[number, longest - len(vector) :] = vector
            mask[number, before + longest - len(vector) :] = 1
        cache = None
        if head is not None:
            cache = copy.deepcopy(head)
            cache.batch_repeat_interleave(len(pieces))
        rows = torch.repeat_interleave(torch.arange(len(pieces), device=device), torch.tensor(counts, device=device))
        ids = torch.zeros(len(flat), width, dtype=torch.long)
        for number, tokens in enumerate(flat):
            ids[number, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
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
        wanted, row, hidden = ids[real], real.nonzero()[:, 0].cpu(), hidden[real]
        sums, missed = torch.zeros(len(flat), dtype=torch.float64), torch.zeros(len(flat))  # 300 nats have steps of 3e-5
        step = max(1, LOGITS_AT_ONCE // self.source.head.shape[0])
        for at in range(0, len(hidden), step):
            logits, some, of = output.logits(hidden[at : at + step]).float(), wanted[at : at + step], row[at : at + step]
            sums.index_add_(0, of, logits.log_softmax(-1).gather(1, some[:, None])[:, 0].cpu().double())
            missed.index_add_(0, of, (logits.argmax(-1) != some).float().cpu())
        pairs = list(zip(sums.tolist(), (missed == 0).tolist(), strict=True))
        ends = np.cumsum([0, *counts])
        return [pairs[a:b] for a, b in zip(ends, ends[1:], strict=False)]


def _common(lists: list[list]) -> int:
    """How many units all of `lists` begin with, leaving each at least one of its own."""
    shortest = min(map(len, lists)) - 1
    first = lists[0]
    return next((n for n in range(shortest) if any(other[n] != first[n] for other in lists)), shortest)


@torch.no_grad()
def answer_logits(model: SpeechLM, prompt: Prompt, ids: list[int], teacher: bool = False) -> torch.Tensor:
    """Logits [T, V] that predict each of an answer's T token ids after a prompt of texts and `Recording`s, teacher-forced.

    V is the whole output head, padding included. `teacher`: the original LLM predicts, and the prompt must be text."""
    source = model.teacher if teacher else Teacher(model.llm)
    scorer = _Scorer(model, source)
    vectors = scorer._vectors([*model.prompt.units(prompt)[0], *ids[:-1]])
    with source.switched():
        hidden = scorer.decoder(inputs_embeds=vectors[None], use_cache=False).last_hidden_state[0, len(vectors) - len(ids) :]
        return head_of(source.llm).logits(before_head(source.llm, hidden))
