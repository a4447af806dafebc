"""The batches of a run, step by step: samples drawn, laid out, shared among the processes, and made ahead of the training."""

import copy
import math
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from salad.config import RunConfig
from salad.data import augmentation
from salad.data.batches import Batch, collate
from salad.data.corpora import SpokenText, Text
from salad.data.frame_source import FrameSource
from salad.data.interleaving import shortened, training_pattern
from salad.data.layout import Member
from salad.data.sampler import Sampler, sample_rng
from salad.errors import SaladError

POOL = 8  # batches that are drawn together; unpacked, they are sorted by length, so that little of a batch is padding


class StepBatches(NamedTuple):
    """What one step feeds. `batches`: this process's, one a forward pass; `kind`: text or speech; `positions`, `tokens`
    (with frames, as the student reads them) and `text_tokens` (as the teacher does) count over all processes; `state`:
    the loader's after this step."""

    batches: list[Batch]
    kind: str
    positions: int
    tokens: int
    text_tokens: int
    state: dict


class Loader:
    """The batches of a run, step by step, for process `rank` of `world`.

    Which samples a step takes depends neither on the processes nor on the micro-batches that share them. `state`,
    JSON-able, is where it stands: a loader of the same run with that state goes on with the same batches.
    """

    def __init__(
        self,
        config: RunConfig,
        frames: FrameSource,
        natural: Sequence[SpokenText],
        selected: Sequence[SpokenText],
        texts: Sequence[Text],
        rank: int = 0,
        world: int = 1,
    ):
        self.config, self.frames, self.rank, self.world = config, frames, rank, world
        self.sources: dict[str, Sequence[SpokenText | Text]] = {"natural": natural, "selected": selected, "text": texts}
        self.sampler = Sampler(config.seed, {name: len(x) for name, x in self.sources.items() if x})
        self.names = [*config.data.natural, *(["selected"] if selected else []), *(["text"] if texts else [])]
        self.noises = {
            name: augmentation.Noise(frames.lab, how.noise)
            for name, how in config.data.augment.items()
            if how.p_noise and how.noise != "white"
        }
        start = {"pool": 0, "used": 0}
        self.state: dict[str, Any] = {
            "step": 0,
            "speech": start | {"taken": {"natural": 0, "selected": 0}},
            "text": start | {"taken": {"text": 0}},
        }
        self._pools: dict[str, tuple[list[list[Member]], dict[str, int]]] = {}

    def next(self) -> StepBatches:
        """The batches of the next step; advances `state`."""
        rng = np.random.default_rng([self.config.seed, 1, self.state["step"]])
        self.state["step"] += 1
        kind = "text" if self.sources["text"] and rng.random() < self.config.data.p_text else "speech"
        state = self.state[kind]
        if kind not in self._pools:  # the first, or that of a checkpoint
            self._pools[kind] = self._pool(kind)
        if state["used"] == len(self._pools[kind][0]):
            counts = self._pools[kind][1]
            taken = {name: n + counts.get(name, 0) for name, n in state["taken"].items()}
            state |= {"pool": state["pool"] + 1, "used": 0, "taken": taken}
            self._pools[kind] = self._pool(kind)
        members = self._pools[kind][0][state["used"]]
        state["used"] += 1
        batches = [self._batch(part) for part in self.share(members)[self.rank]]
        return StepBatches(
            batches,
            kind,
            positions=sum(len(m.sequence.rows) for m in members),
            tokens=sum(len(m.sequence.ids) for m in members),
            text_tokens=sum(len(m.sequence.text_ids) for m in members),
            state=copy.deepcopy(self.state),
        )

    def share(self, members: list[Member]) -> list[list[list[Member]]]:
        """A step's samples as [process][micro-batch][sample]: equally many micro-batches for each process."""
        optim, size = self.config.optim, len(members)
        if size < self.world:
            raise SaladError(
                f"a step of {size} samples cannot be shared by {self.world} processes: raise optim.batch or "
                "optim.batch_tokens, or take fewer processes"
            )
        lengths = [len(m.sequence.ids) for m in members]
        limit, whole = (optim.micro_tokens, sum(lengths)) if optim.batch_tokens else (optim.micro_batch, size)
        each = math.ceil(whole / (self.world * limit)) if limit else 1
        count = min(each, size // self.world) * self.world
        if optim.batch_tokens:  # the longest first, each to whoever has the least
            parts: list[list[Member]] = [[] for _ in range(count)]
            loads = np.zeros(count)
            for i in sorted(range(size), key=lambda i: -lengths[i]):
                least = int(loads.argmin())
                parts[least].append(members[i])
                loads[least] += lengths[i]
        else:
            parts = [[members[i] for i in part] for part in np.array_split(np.arange(size), count)]
        return [parts[rank :: self.world] for rank in range(self.world)]

    def _batch(self, members: list[Member]) -> Batch:
        return collate(
            [m.sequence for m in members],
            self.frames.frames_of(members, self.noises, self.config.data.augment),
            [m.sample_id for m in members],
            [m.source for m in members],
            context=self.config.sequences.context if self.config.optim.batch_tokens else None,
        )

    def _rng(self, kind: str) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, 4, len(kind), self.state[kind]["pool"]])

    def _pool(self, kind: str) -> tuple[list[list[Member]], dict[str, int]]:
        """The batches of the current pool, and how many samples it takes of each source."""
        if self.config.optim.batch_tokens:
            laid, counts = self._drawn_by_tokens(kind)
        else:
            laid, counts = self._drawn_by_samples(kind)
        if self.config.optim.batch_tokens:  # as they were drawn: packed rows have little padding whatever stands beside what
            ends = np.cumsum([len(member.sequence.ids) for member in laid])
            parts = max(1, round(ends[-1] / self.config.optim.batch_tokens))
            edges = [0, *np.searchsorted(ends, ends[-1] * np.arange(1, parts) / parts), len(laid)]
        else:
            laid.sort(key=lambda member: len(member.sequence.ids))
            edges = [*range(0, len(laid), self.config.optim.batch), len(laid)]
        batches = [laid[a:b] for a, b in zip(edges, edges[1:], strict=False) if a < b]
        return [batches[i] for i in self._rng(kind).permutation(len(batches))], counts

    def _drawn_by_samples(self, kind: str) -> tuple[list[Member], dict[str, int]]:
        size = POOL * self.config.optim.batch
        counts = {"text": size}
        if kind == "speech":
            share = self.config.data.p_selected if self.sources["selected"] else 0.0
            selected = int(np.floor(size * share + self._rng(kind).random()))
            counts = {"natural": size - selected, "selected": selected}
        taken: dict[str, int] = self.state[kind]["taken"]
        laid: list[Member] = []
        for name, count in counts.items():
            for index, epoch in self.sampler.take(name, taken[name], count) if count else ():
                laid.append(self._lay_out(name, index, epoch))
        return laid, counts

    def _drawn_by_tokens(self, kind: str) -> tuple[list[Member], dict[str, int]]:
        taken: dict[str, int] = self.state[kind]["taken"]
        laid: list[Member] = []
        counts, tokens = dict.fromkeys(taken, 0), 0
        share = self.config.data.p_selected if self.sources["selected"] else 0.0
        start = self._rng(kind).random()
        while tokens < POOL * self.config.optim.batch_tokens:
            n = len(laid)
            name = kind
            if kind == "speech":
                due = math.floor((n + 1) * share + start) > math.floor(n * share + start)
                name = "selected" if due else "natural"
            laid.append(self._lay_out(name, *self.sampler.at(name, taken[name] + counts[name])))
            counts[name] += 1
            tokens += len(laid[-1].sequence.ids)
        return laid, counts

    def _lay_out(self, name: str, index: int, epoch: int) -> Member:
        sample, context = self.sources[name][index], self.config.sequences.context
        if not isinstance(sample, SpokenText):
            prompt = self.frames.prompt.write(sample.text, sample.answer)
            return Member(shortened(prompt.sequence(), context), "text", "text")
        natural = self.config.data.natural
        source = "selected" if name == "selected" else sample.folder if sample.folder in natural else natural[0]
        alteration = None
        if source in self.config.data.augment:
            rng = sample_rng(self.config.seed, sample.sample_id, epoch, use=5)
            alteration = augmentation.draw(rng, self.config.data.augment[source])
        layout = self.frames.layout(augmentation.respoken(sample, alteration))
        rng = sample_rng(self.config.seed, sample.sample_id, epoch)
        spans = layout.spans(training_pattern(rng, len(layout.units), self.config.sequences))
        laid = shortened(layout.sequence(spans), context)
        return Member(laid, sample.sample_id, source, spans, sample, alteration)


def ahead(loader: Loader, count: int) -> Generator[StepBatches]:
    """The loader's steps in order, up to `count` of them made ahead in a thread. Close it when done."""
    if count == 0:
        while True:
            yield loader.next()
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as maker:
        waiting = deque(maker.submit(loader.next) for _ in range(count))
        try:
            while True:
                waiting.append(maker.submit(loader.next))
                yield waiting.popleft().result()
        finally:
            for item in waiting:
                item.cancel()
