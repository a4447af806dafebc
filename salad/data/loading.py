"""What training feeds: which samples each step takes, how the processes share them, and the batches they make."""

import copy
import hashlib
import math
from collections import deque
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from salad.config import RunConfig
from salad.data import augmentation
from salad.data.augmentation import Alteration
from salad.data.batches import Batch, collate
from salad.data.corpora import SpokenText, Text, audio
from salad.data.frames import Frames
from salad.data.interleaving import Sequence as Laid
from salad.data.interleaving import Span, Unit, interleave, shortened, training_pattern, units
from salad.errors import SaladError
from salad.models.prompts import Written
from salad.objective import whole_float32

POOL = 8  # batches that are drawn together and sorted by length, so that little of a batch is padding
ENCODED_S = 600.0  # seconds of speech, padding included, that a causal encoder hears at a time


class Sampler:
    """Passes over sources in random order, reshuffled every epoch: a function of the seed and of how many have been
    taken, so that a resumed run takes exactly what the uninterrupted one would have."""

    def __init__(self, seed: int, sizes: dict[str, int]):
        self.seed, self.sizes = seed, sizes
        self._orders: dict[str, tuple[int, np.ndarray]] = {}

    def take(self, source: str, taken: int, count: int) -> list[tuple[int, int]]:
        """(index, epoch) of the `count` that follow the first `taken` of a source."""
        return [self.at(source, place) for place in range(taken, taken + count)]

    def at(self, source: str, place: int) -> tuple[int, int]:
        """(index, epoch) of the one that follows the first `place` of a source."""
        epoch, place = divmod(place, self.sizes[source])
        if self._orders.get(source, (None,))[0] != epoch:
            rng = np.random.default_rng([self.seed, 2, epoch, sorted(self.sizes).index(source)])
            self._orders[source] = (epoch, rng.permutation(self.sizes[source]))
        return int(self._orders[source][1][place]), epoch


class Encoded:
    """Tokens, units and encoder frames of spoken texts.

    With `keep` each is made once and kept in memory: frames then depend on the recording alone. Without, recordings are
    read by `workers` threads and a causal encoder hears a batch of them at a time. A causal encoder hears the whole
    recording; one with look-ahead hears each speech span's samples alone, so its frames depend on the pattern.
    """

    def __init__(self, lab, prompt, encoder, keep: bool = True, workers: int = 4, cached: Frames | None = None):
        """`prompt`: the model's PromptFormat. `cached`: frames on disk, which are taken where they are there."""
        self.lab, self.prompt, self.encoder, self.keep, self.cached = lab, prompt, encoder, keep, cached
        self._known: dict[str, tuple[float, Written, list[Unit]]] = {}
        self._frames: dict[str, np.ndarray] = {}
        self._readers = None if keep else ThreadPoolExecutor(workers, thread_name_prefix="audio")

    def _written(self, spoken: SpokenText) -> tuple[Written, list[Unit]]:
        duration_s, told, cut = self._known.get(spoken.synthesis_id, (None, None, None))
        if duration_s != spoken.duration_s:  # not known, or at another speed
            told = told or self.prompt.write(spoken.text, spoken.answer)
            words, end_s, offsets = spoken.words, spoken.duration_s, told.offsets
            if told.answer:  # what stands behind is text, whatever is heard there
                end_s = next((word[3] for word in words if word[1] >= told.stop), end_s)
                words, offsets = [word for word in words if word[2] <= told.stop], offsets[: told.answer]
            cut = units(spoken.text[: told.stop], offsets, words, end_s)
            if self.keep and duration_s is None:
                self._known[spoken.synthesis_id] = (spoken.duration_s, told, cut)
        return told, cut

    def parts(self, spoken: SpokenText):
        """(token ids, offsets, units) of a spoken text; units only of what may be speech."""
        told, cut = self._written(spoken)
        return told.ids, told.offsets, cut

    def sequence(self, spoken: SpokenText, spans: list[Span]) -> Laid:
        """The interleaved sequence of `spans`, as the prompt's format has it."""
        return self._written(spoken)[0].sequence(spans)

    def frames(self, spoken: SpokenText, spans: list[Span], cached: bool = True) -> np.ndarray | None:
        """Encoder frames [F, D] for the speech among `spans`, None where there is none. `cached`: those on disk will do."""
        if not any(span.speech for span in spans):
            return None
        if spoken.synthesis_id in self._frames:
            return self._frames[spoken.synthesis_id]
        frames = self.cached.of(spoken) if cached and self.cached is not None else None
        if frames is None:
            frames = self._encode(audio(self.lab, spoken, self.encoder.sample_rate), spans)
        if self.keep and self.encoder.causal:
            self._frames[spoken.synthesis_id] = frames
        return frames

    def frames_of(self, members: list["Member"], noises: dict[str, augmentation.Noise],
                  augmented: Container[str] = ()) -> list[np.ndarray | None]:  # fmt: skip
        """The same for the samples of a batch, with what alters them done to their sound. Frames on disk are not taken
        for the sources `augmented`."""
        rate = self.encoder.sample_rate

        def sound(member: Member) -> np.ndarray:
            samples = audio(self.lab, member.recording, rate)
            if member.alteration is None:
                return samples
            noise = noises.get(member.source)
            noise = None if noise is None else noise.sample(member.alteration.seed, rate)
            return augmentation.altered(samples, rate, member.alteration, noise)

        heard = [i for i, m in enumerate(members) if any(span.speech for span in m.spans)]
        found: list[np.ndarray | None] = [None] * len(members)
        if self.keep:
            for i in heard:
                one = members[i]
                if one.alteration is None:
                    found[i] = self.frames(one.recording, one.spans, one.source not in augmented)
                else:
                    found[i] = self._encode(sound(one), one.spans)
            return found
        if self.cached is not None:
            for i in heard:
                if members[i].source not in augmented:
                    found[i] = self.cached.of(members[i].recording)
            heard = [i for i in heard if found[i] is None]
        sounds = list(self._readers.map(sound, [members[i] for i in heard]))
        if self.encoder.causal and self.encoder.longest_s is None:
            for i, frames in zip(heard, self._encode_together(sounds), strict=True):
                found[i] = frames
        else:
            for i, samples in zip(heard, sounds, strict=True):
                found[i] = self._encode(samples, members[i].spans)
        return found

    def spans(self, spoken: SpokenText, pattern: list[bool]) -> list[Span]:
        """Spans of a pattern over the recording's units; frames beyond the recording's last are left out."""
        told, cut = self._written(spoken)
        spans = interleave(cut, pattern, self.encoder.frame_rate)
        if cut and cut[-1].token_end < len(told.ids):  # an answer
            spans.append(Span(False, cut[-1].token_end, len(told.ids), 0, 0))
        last = int(spoken.duration_s * self.encoder.frame_rate + 1e-6)
        return [s._replace(frame_end=min(s.frame_end, last)) if s.speech else s for s in spans]

    def _device(self):
        import torch

        return next((p.device for p in self.encoder.parameters()), torch.device("cpu"))

    def _encode(self, sound: np.ndarray, spans: list[Span]) -> np.ndarray:
        """Frames of one recording [T]."""
        import torch

        encoder = self.encoder
        samples = torch.from_numpy(sound).to(self._device())
        if encoder.causal:
            return encoder(samples).cpu().numpy()
        frames = np.zeros((max(span.frame_end for span in spans), encoder.dim), dtype=np.float32)
        for span in spans:
            if span.speech:
                start, end = (
                    int(f / encoder.frame_rate * encoder.sample_rate) for f in (span.frame_start, span.frame_end)
                )
                part = encoder(samples[start:end]).cpu().numpy()[: span.frame_end - span.frame_start]
                frames[span.frame_start : span.frame_start + len(part)] = part
        return frames

    def _encode_together(self, sounds: list[np.ndarray]) -> list[np.ndarray]:
        """Frames of several recordings under a causal encoder, which never hears the padding behind them."""
        import torch

        encoder, device = self.encoder, self._device()
        frames: list[np.ndarray] = [np.zeros((0, encoder.dim), np.float32)] * len(sounds)
        rest = sorted(range(len(sounds)), key=lambda i: -len(sounds[i]))
        while rest:
            longest = max(len(sounds[rest[0]]), 1)
            size = max(1, int(ENCODED_S * encoder.sample_rate / longest))
            group, rest = rest[:size], rest[size:]
            samples = np.zeros((len(group), longest), dtype=np.float32)
            for row, i in enumerate(group):
                samples[row, : len(sounds[i])] = sounds[i]
            with torch.no_grad(), whole_float32:
                told = encoder.frames(torch.from_numpy(samples).to(device)).cpu().numpy()
            for row, i in enumerate(group):
                count = math.floor(len(sounds[i]) / encoder.sample_rate * encoder.frame_rate + 1e-6)
                mine = told[row, :count]
                frames[i] = np.pad(mine, ((0, count - len(mine)), (0, 0)))
        return frames


class Member(NamedTuple):
    """A sample of a batch: its sequence; for speech its spans, its recording, and what alters it."""

    laid: Laid
    sample_id: str
    source: str
    spans: list[Span] = []
    recording: SpokenText | None = None
    alteration: Alteration | None = None


class Step(NamedTuple):
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

    def __init__(self, config: RunConfig, encoded: Encoded, natural: Sequence[SpokenText],
                 selected: Sequence[SpokenText], texts: Sequence[Text], rank: int = 0, world: int = 1):  # fmt: skip
        self.config, self.encoded, self.rank, self.world = config, encoded, rank, world
        self.sources = {"natural": natural, "selected": selected, "text": texts}
        self.sampler = Sampler(config.seed, {name: len(x) for name, x in self.sources.items() if x})
        self.names = [*config.data.natural, *(["selected"] if selected else []), *(["text"] if texts else [])]
        self.noises = {
            name: augmentation.Noise(encoded.lab, how.noise)
            for name, how in config.data.augment.items() if how.p_noise and how.noise != "white"
        }  # fmt: skip
        start = {"pool": 0, "used": 0}
        self.state = {
            "step": 0,
            "speech": start | {"taken": {"natural": 0, "selected": 0}},
            "text": start | {"taken": {"text": 0}},
        }
        self._pools: dict[str, tuple[list[list[Member]], dict[str, int]]] = {}

    def next(self) -> Step:
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
        return Step(
            batches,
            kind,
            positions=sum(len(m.laid.rows) for m in members),
            tokens=sum(len(m.laid.ids) for m in members),
            text_tokens=sum(len(m.laid.text_ids) for m in members),
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
        lengths = [len(m.laid.ids) for m in members]
        limit, whole = (
            (optim.micro_tokens, sum(lengths)) if optim.batch_tokens else (optim.micro_batch, size)
        )
        each = math.ceil(whole / (self.world * limit)) if limit else 1
        count = min(each, size // self.world) * self.world
        if optim.batch_tokens:  # the longest first, each to whoever has the least
            parts, loads = [[] for _ in range(count)], np.zeros(count)
            for i in sorted(range(size), key=lambda i: -lengths[i]):
                least = int(loads.argmin())
                parts[least].append(members[i])
                loads[least] += lengths[i]
        else:
            parts = [[members[i] for i in part] for part in np.array_split(np.arange(size), count)]
        return [parts[rank :: self.world] for rank in range(self.world)]

    def _batch(self, members: list[Member]) -> Batch:
        return collate(
            [m.laid for m in members],
            self.encoded.frames_of(members, self.noises, self.config.data.augment),
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
        laid.sort(key=lambda one: len(one.laid.ids))
        if self.config.optim.batch_tokens:
            ends = np.cumsum([len(one.laid.ids) for one in laid])
            parts = max(1, round(ends[-1] / self.config.optim.batch_tokens))
            edges = [0, *np.searchsorted(ends, ends[-1] * np.arange(1, parts) / parts), len(laid)]
        else:
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
        taken, laid = self.state[kind]["taken"], []
        for name, count in counts.items():
            for index, epoch in self.sampler.take(name, taken[name], count) if count else ():
                laid.append(self._lay(name, index, epoch))
        return laid, counts

    def _drawn_by_tokens(self, kind: str) -> tuple[list[Member], dict[str, int]]:
        taken, laid = self.state[kind]["taken"], []
        counts, tokens = dict.fromkeys(taken, 0), 0
        share = self.config.data.p_selected if self.sources["selected"] else 0.0
        start = self._rng(kind).random()
        while tokens < POOL * self.config.optim.batch_tokens:
            n = len(laid)
            name = kind
            if kind == "speech":
                due = math.floor((n + 1) * share + start) > math.floor(n * share + start)
                name = "selected" if due else "natural"
            laid.append(self._lay(name, *self.sampler.at(name, taken[name] + counts[name])))
            counts[name] += 1
            tokens += len(laid[-1].laid.ids)
        return laid, counts

    def _lay(self, name: str, index: int, epoch: int) -> Member:
        one, context = self.sources[name][index], self.config.sequences.context
        if not isinstance(one, SpokenText):
            return Member(shortened(self.encoded.prompt.write(*one).sequence(), context), "text", "text")
        natural = self.config.data.natural
        source = "selected" if name == "selected" else one.folder if one.folder in natural else natural[0]
        alteration = None
        if source in self.config.data.augment:
            rng = sample_rng(self.config.seed, one.sample_id, epoch, use=5)
            alteration = augmentation.draw(rng, self.config.data.augment[source])
        spoken = augmentation.respoken(one, alteration)
        cut = self.encoded.parts(spoken)[2]
        rng = sample_rng(self.config.seed, one.sample_id, epoch)
        spans = self.encoded.spans(spoken, training_pattern(rng, len(cut), self.config.sequences))
        laid = shortened(self.encoded.sequence(spoken, spans), context)
        return Member(laid, one.sample_id, source, spans, one, alteration)


def sample_rng(seed: int, sample_id: str, epoch: int, use: int = 3) -> np.random.Generator:
    """Randomness of one sample in one epoch, whatever batch it stands in."""
    number = int.from_bytes(hashlib.blake2b(sample_id.encode(), digest_size=8).digest())
    return np.random.default_rng([seed, use, number, epoch])


def ahead(loader: Loader, count: int) -> Iterator[Step]:
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
            for one in waiting:
                one.cancel()
