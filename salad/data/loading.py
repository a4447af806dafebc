"""What training feeds: which samples each step takes, and the batch they make."""

import hashlib

import numpy as np

from salad.config import RunConfig
from salad.data.batches import Batch, collate
from salad.data.corpora import SpokenText, audio
from salad.data.interleaving import Sequence, Span, interleave, training_pattern, units
from salad.models.prompts import Written


class Sampler:
    """Passes over sources in random order, reshuffled every epoch: a function of the seed and of how many have been
    taken, so that a resumed run takes exactly what the uninterrupted one would have."""

    def __init__(self, seed: int, sizes: dict[str, int]):
        self.seed, self.sizes = seed, sizes
        self._orders: dict[str, tuple[int, np.ndarray]] = {}

    def take(self, source: str, taken: int, count: int) -> list[tuple[int, int]]:
        """(index, epoch) of the `count` that follow the first `taken` of a source."""
        return [self._at(source, place) for place in range(taken, taken + count)]

    def _at(self, source: str, place: int) -> tuple[int, int]:
        epoch, place = divmod(place, self.sizes[source])
        if self._orders.get(source, (None,))[0] != epoch:
            rng = np.random.default_rng([self.seed, 2, epoch, sorted(self.sizes).index(source)])
            self._orders[source] = (epoch, rng.permutation(self.sizes[source]))
        return int(self._orders[source][1][place]), epoch


class Encoded:
    """Tokens, units and encoder frames of spoken texts, each made once and kept in memory.

    A causal encoder hears the whole recording once. One with look-ahead hears each speech span's samples alone, so
    its frames depend on the pattern and are not kept.
    """

    def __init__(self, lab, prompt, encoder):
        """`prompt`: the model's PromptFormat."""
        self.lab, self.prompt, self.encoder = lab, prompt, encoder
        self._known: dict[str, tuple] = {}

    def parts(self, spoken: SpokenText):
        """(token ids, offsets, units) of a spoken text; units only of what may be speech."""
        if spoken.synthesis_id not in self._known:
            told = self.prompt.write(spoken.text)
            words, end_s, offsets = spoken.words, spoken.duration_s, told.offsets
            if told.between:  # what stands behind is text, whatever is heard there
                end_s = next((word[3] for word in words if word[1] >= told.stop), end_s)
                words, offsets = [word for word in words if word[2] <= told.stop], offsets[: told.answer]
            self._known[spoken.synthesis_id] = [told, units(spoken.text[: told.stop], offsets, words, end_s), None]
        told, cut, _ = self._known[spoken.synthesis_id]
        return told.ids, told.offsets, cut

    def sequence(self, spoken: SpokenText, spans: list[Span]) -> Sequence:
        """The interleaved sequence of `spans`, as the prompt's format has it."""
        return self._known[spoken.synthesis_id][0].sequence(spans)

    def frames(self, spoken: SpokenText, spans: list[Span]) -> np.ndarray | None:
        """Encoder frames [F, D] for the speech among `spans`, None where there is none."""
        import torch

        if not any(span.speech for span in spans):
            return None
        known = self._known[spoken.synthesis_id]
        if known[2] is not None:
            return known[2]
        encoder = self.encoder
        device = next((p.device for p in encoder.parameters()), torch.device("cpu"))
        samples = torch.from_numpy(audio(self.lab, spoken, encoder.sample_rate)).to(device)
        if encoder.causal:
            known[2] = encoder(samples).cpu().numpy()
            return known[2]
        frames = np.zeros((max(span.frame_end for span in spans), encoder.dim), dtype=np.float32)
        for span in spans:
            if span.speech:
                start, end = (
                    int(f / encoder.frame_rate * encoder.sample_rate) for f in (span.frame_start, span.frame_end)
                )
                part = encoder(samples[start:end]).cpu().numpy()[: span.frame_end - span.frame_start]
                frames[span.frame_start : span.frame_start + len(part)] = part
        return frames

    def spans(self, spoken: SpokenText, pattern: list[bool]) -> list[Span]:
        """Spans of a pattern over the recording's units; frames beyond the recording's last are left out."""
        ids, _, cut = self.parts(spoken)
        spans = interleave(cut, pattern, self.encoder.frame_rate)
        if cut and cut[-1].token_end < len(ids):  # an answer
            spans.append(Span(False, cut[-1].token_end, len(ids), 0, 0))
        last = int(spoken.duration_s * self.encoder.frame_rate + 1e-6)
        return [s._replace(frame_end=min(s.frame_end, last)) if s.speech else s for s in spans]


POOL = 8  # batches that are drawn together and sorted by length, so that little of a batch is padding


class Loader:
    """Batches of a run: `next()` gives (batch, source), the source being "text" or "speech".

    `state`, JSON-able, is where it stands: a loader of the same run with that state goes on with the same batches.
    """

    def __init__(self, config: RunConfig, encoded: Encoded, natural: list[SpokenText], selected: list[SpokenText],
                 texts: list[Written]):  # fmt: skip
        self.config, self.encoded = config, encoded
        self.sources = {"natural": natural, "selected": selected, "text": texts}
        self.sampler = Sampler(config.seed, {name: len(x) for name, x in self.sources.items() if x})
        start = {"pool": 0, "used": 0}
        self.state = {
            "step": 0,
            "speech": start | {"taken": {"natural": 0, "selected": 0}},
            "text": start | {"taken": {"text": 0}},
        }
        self._pools: dict[str, list] = {}

    def next(self) -> tuple[Batch, str]:
        rng = np.random.default_rng([self.config.seed, 1, self.state["step"]])
        self.state["step"] += 1
        source = "text" if self.sources["text"] and rng.random() < self.config.data.p_text else "speech"
        state = self.state[source]
        if state["used"] == POOL:
            state |= {"pool": state["pool"] + 1, "used": 0, "taken": self._counts(source)}
            self._pools.pop(source, None)
        if source not in self._pools:  # a new pool, or that of a checkpoint
            self._pools[source] = self._pool(source)
        group = self._pools[source][state["used"]]
        state["used"] += 1
        speech = [None if spoken is None else self.encoded.frames(spoken, spans) for _, spoken, spans in group]
        names = ["text" if spoken is None else spoken.sample_id for _, spoken, _ in group]
        return collate([laid for laid, _, _ in group], speech, names), source

    def _rng(self, source: str) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, 4, len(source), self.state[source]["pool"]])

    def _wanted(self, source: str) -> dict[str, int]:
        """How many the pool takes of each of its sources."""
        size = POOL * self.config.optim.batch
        if source == "text":
            return {"text": size}
        share = self.config.data.p_selected if self.sources["selected"] else 0.0
        selected = int(np.floor(size * share + self._rng(source).random()))
        return {"natural": size - selected, "selected": selected}

    def _counts(self, source: str) -> dict[str, int]:
        taken = self.state[source]["taken"]
        return {name: taken[name] + count for name, count in self._wanted(source).items()}

    def _pool(self, source: str) -> list[list]:
        """The batches of the current pool: lists of (sequence, spoken text or None, spans)."""
        taken, laid = self.state[source]["taken"], []
        for name, count in self._wanted(source).items():
            for index, epoch in self.sampler.take(name, taken[name], count) if count else ():
                laid.append(self._lay(self.sources[name][index], epoch))
        laid.sort(key=lambda one: len(one[0].ids))
        size = self.config.optim.batch
        batches = [laid[start : start + size] for start in range(0, len(laid), size)]
        return [batches[i] for i in self._rng(source).permutation(len(batches))]

    def _lay(self, one: SpokenText | Written, epoch: int) -> tuple:
        if not isinstance(one, SpokenText):
            return one.sequence(), None, []
        cut = self.encoded.parts(one)[2]
        rng = sample_rng(self.config.seed, one.sample_id, epoch)
        spans = self.encoded.spans(one, training_pattern(rng, len(cut), self.config.sequences))
        return self.encoded.sequence(one, spans), one, spans


def sample_rng(seed: int, sample_id: str, epoch: int) -> np.random.Generator:
    """Randomness of one sample in one epoch, whatever batch it stands in."""
    number = int.from_bytes(hashlib.blake2b(sample_id.encode(), digest_size=8).digest())
    return np.random.default_rng([seed, 3, number, epoch])
