"""Answers token by token, each with its divergence from the text teacher."""

import dataclasses
import math
import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from salad.errors import SaladError
from salad.evaluation.spoken import as_prompt
from workbench.arena.models import ArenaModel, Models
from workbench.arena.questions import Question

if TYPE_CHECKING:
    from salad.models.decoding import Streamed

ALTERNATIVES = 5
STOPPED = "stopped"
_TELLTALE = re.compile(
    r"\b(the|this|your) (audio|recording|voice|speech|sound|speaker|transcript|transcription)\b"
    r"|\bI (can )?(hear|heard|listen)|\byou (said|typed|wrote|spoke)\b|\bas written\b",
    re.IGNORECASE,
)


def gives_away(text: str) -> bool:
    """Whether an answer tells how its question was read: "the audio says", "I heard", "you typed"."""
    return _TELLTALE.search(text) is not None


@dataclass(frozen=True)
class Prompt:
    """How a checkpoint is asked. `shots`: answered items of the lab's tasks that go before the question; `sentence`:
    the answer is its first sentence. A checkpoint says otherwise under "answering" in its speech_lm.json."""

    shots: int = 0
    sentence: bool = True
    stop: tuple[str, ...] = ("\n",)
    max_new_tokens: int = 32


# by `prompt` of speech_lm.json: plain is as items are, the question and then " Answer."; a chat ends its turn itself
PROMPTS = {"plain": Prompt(), "chat": Prompt(sentence=False, stop=(), max_new_tokens=64)}


def prompt_of(settings: dict, shots: int | None = None) -> Prompt:
    """The prompt that a checkpoint's settings (speech_lm.json) ask for; `shots` overrides their number."""
    name, own = settings.get("prompt", "plain"), dict(settings.get("answering") or {})
    if name not in PROMPTS:
        raise SaladError(f"this checkpoint wants the prompt {name!r}; known: {', '.join(PROMPTS)}")
    unknown = set(own) - {f.name for f in dataclasses.fields(Prompt)}
    if unknown:
        raise SaladError(f"speech_lm.json: answering has no {', '.join(sorted(unknown))}")
    if "stop" in own:
        own["stop"] = tuple(own["stop"])
    if shots is not None:
        own["shots"] = shots
    return dataclasses.replace(PROMPTS[name], **own)


def shots_before(items: list, question: str, count: int, seed: int) -> str:
    """`count` items with their right answers, a line each, none of them the question."""
    others = sorted((i for i in items if i.context != question), key=lambda i: (i.task, i.item_id))
    chosen = random.Random(seed).sample(others, min(count, len(others)))
    return "".join(f"{item.context} {item.choices[item.answer]}\n" for item in chosen)


def ends_sentence(text: str) -> bool:
    """Whether `text` ends with the end of a sentence: "St." and "Dr." do not, "0." may go on."""
    from salad.speech.english import ABBREVIATIONS

    stripped = text.rstrip().rstrip("\"')]”’")
    if not stripped.endswith((".", "!", "?")):
        return False
    last = stripped.split()[-1]
    return last not in ABBREVIATIONS and not re.fullmatch(r"[A-Z]\.", last)


def complete(text: str, following: str | None) -> bool:
    """Whether an answer is its first sentence. "3." is known to be whole only when no digit follows."""
    if re.search(r"\d\.$", text):
        return following is not None and not following[:1].isdigit()
    return following is None and ends_sentence(text)


@dataclass
class Token:
    """A token of an answer. d: KL(Q || P) in nats, where Q is the text teacher on the written question and the same
    answer so far, P the contender at this position; ours, teachers: their likeliest tokens with probabilities."""

    text: str
    d: float | None
    ours: list[tuple[str, float]]
    teachers: list[tuple[str, float]]


class Answer:
    """One contender's answer in one modality, a token a `step`. `text`, `tokens`, `first_s` and `total_s` (its own
    computing; the teacher's, for the divergence, apart), `done`, `why` (how it ended)."""

    def __init__(
        self,
        models: Models,
        contender: ArenaModel,
        modality: str,
        question: Question,
        items: list,
        shots: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ):
        if modality not in contender.modalities:
            raise SaladError(f"{contender.name} does not answer {modality}; it answers {', '.join(contender.modalities)}")
        if modality == "cascade" and question.heard is None:
            raise SaladError("a cascade needs a recogniser, and this lab has none; name one with --recogniser")
        self.models, self.contender, self.modality, self.question = models, contender, modality, question
        self.items, self.shots, self.temperature, self.seed = items, shots, temperature, seed
        self.tokens: list[Token] = []
        self.text, self.first_s, self.total_s, self.done, self.why = "", 0.0, 0.0, False, ""
        self._decoding = self._teacher = None

    def _begin(self) -> None:
        from salad.models.decoding import Decoding, DecodingState

        model = self.model = self.models.get(self.contender)
        self.prompt = prompt_of(model.settings, self.shots)
        before = shots_before(self.items, self.question.written, self.prompt.shots, self.seed)
        shots = [before] if before else []
        if self.modality == "speech":
            from salad.speech import SAMPLE_RATE

            samples, rate = self.question.samples, model.encoder.sample_rate
            if rate != SAMPLE_RATE:
                import soxr

                samples = soxr.resample(samples, SAMPLE_RATE, rate)
            asked = samples
        else:
            asked = self.question.written
            if self.modality == "cascade":  # the mark that ends a question is the prompt's, not the voice's
                asked = as_prompt(self.question.heard or "", asked) or " "
        self._decoding = Decoding(model, [*shots, asked], self.prompt.max_new_tokens, self.prompt.stop, self.temperature,
                                  self.seed, self.contender.teacher, complete if self.prompt.sentence else None)  # fmt: skip
        same = self.contender.teacher and self.modality == "text"
        self._teacher = None if same else DecodingState(model, [*shots, self.question.written], teacher=True)

    def step(self) -> bool:
        """Say one more token; False when the answer has ended."""
        with self.models.lock:
            if self.done:
                self._decoding = self._teacher = None
                return False
            if self._decoding is None:
                self._begin()
            streamed = next(self._decoding, None)
            self.total_s = self._decoding.seconds
            self.first_s = self.first_s or self.total_s
            if streamed is not None:
                self.tokens.append(self._shown(streamed))
                self.text += streamed.text
            if self._decoding.finished:
                self.done, self.why = True, self._decoding.ended
                self._decoding = self._teacher = None  # their caches
                return False
            if self._teacher is not None:
                self._teacher.advance(streamed.token)
            return True

    def stop(self) -> None:
        """End the answer where it is; waits for nothing, not even for a step that is being computed."""
        if not self.done:
            self.done, self.why = True, STOPPED
        if self.models.lock.acquire(blocking=False):
            self._decoding = self._teacher = None
            self.models.lock.release()

    def run(self) -> "Answer":
        """Generate the answer to its end, token by token."""
        while self.step():
            pass
        return self

    def _shown(self, streamed: "Streamed") -> Token:
        teacher = streamed.logp if self._teacher is None else self._teacher.logp
        d = float((teacher.exp() * (teacher - streamed.logp)).sum())
        return Token(streamed.text, max(0.0, d) if math.isfinite(d) else None, self._top(streamed.logp), self._top(teacher))

    def _top(self, logp) -> list[tuple[str, float]]:
        best = logp.topk(min(ALTERNATIVES, len(logp)))
        return [
            (self.model.tokenizer.decode([i]), p) for i, p in zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
        ]

    def facts(self) -> dict:
        """The answer as JSON-able data."""
        ds = [token.d for token in self.tokens if token.d is not None]
        return {
            "contender": self.contender.name, "run_id": self.contender.run_id, "step": self.contender.step,
            "modality": self.modality, "text": self.text.strip(), "ended": self.why,
            "first_s": round(self.first_s, 4), "total_s": round(self.total_s, 4), "n_tokens": len(self.tokens),
            "d": sum(ds) / len(ds) if ds else None, "gives_away": gives_away(self.text),
            "tokens": [dataclasses.asdict(token) for token in self.tokens],
        }  # fmt: skip
