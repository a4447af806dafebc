"""Who is evaluated, behind one interface: the teacher, a checkpoint of ours, speech LLMs of transformers, an endpoint
that speaks OpenAI's protocol, or a class of one's own.

A contender has `name`, `run_id`, `step` (None but for ours), `modalities`, `sample_rate` (Hz of the recordings that it
hears), and one or both of `loglikelihoods` and `choose`; `generate` for open questions.
"""

import difflib
import string
from pathlib import Path
from typing import Protocol, runtime_checkable

from salad.errors import SaladError
from salad.evaluation.scoring import Prompt, Recording, loglikelihoods


@runtime_checkable
class Contender(Protocol):
    """What evaluation asks of a contender. `scores`: whether choices are scored by `loglikelihoods`; else it answers
    in words by `choose`."""

    name: str
    run_id: str | None
    step: int | None
    modalities: tuple[str, ...]
    sample_rate: int
    scores: bool

    def loglikelihoods(self, prompts: list[Prompt], continuations: list[list[str]], progress=None) -> list[list[tuple]]:
        """(log-probability in nats, is it greedy) of each continuation of each prompt of texts and `Recording`s."""
        ...

    def generate(self, prompts: list[Prompt], max_new_tokens: int = 64, until: tuple[str, ...] | None = None,
                 temperature: float = 0.0, seed: int = 0) -> list[str]:  # fmt: skip
        """An answer in words to each prompt, ending before any of `until`; None leaves that to the contender."""
        ...


class Ours:
    """A speech LM of ours, or with `teacher` the original LLM in it, which has no speech side."""

    scores = True

    def __init__(self, model, name: str, run_id: str | None = None, step: int | None = None, teacher: bool = False,
                 batch: int = 16):  # fmt: skip
        self.model, self.name, self.run_id, self.step = model, name, run_id, step
        self.teacher, self.batch = teacher, batch
        self.modalities = ("text", "cascade") if teacher else ("text", "speech", "cascade")

    @property
    def sample_rate(self) -> int:
        return self.model.encoder.sample_rate

    def loglikelihoods(self, prompts, continuations, progress=None):
        return loglikelihoods(self.model, prompts, continuations, self.teacher, self.batch, progress)

    def generate(self, prompts, max_new_tokens=64, until=None, temperature=0.0, seed=0):
        """Each answer depends on its own prompt and the seed, whatever it is asked together with."""
        return [self._answer(prompt, max_new_tokens, until, temperature, seed) for prompt in prompts]

    def _answer(self, prompt, max_new_tokens, until, temperature, seed) -> str:
        parts = [part.samples if isinstance(part, Recording) else part for part in prompt]
        if isinstance(parts[-1], str):  # as the harness has it: a blank at the end belongs to the answer
            parts[-1] = parts[-1].rstrip()
        stop = None if until is None else tuple(until)
        told = self.model.stream(parts, max_new_tokens, stop, temperature, seed, self.teacher)
        return "".join(one.text for one in told).strip()


def parse_choice(answer: str, choices: list[str]) -> int | None:
    """Which choice an answer in words names: by its letter ("B", "(b)", "The answer is B.") or by its own words; None
    where it names none or more than one. Nothing is guessed."""
    plain = lambda text: " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())  # noqa: E731
    said = plain(answer)
    exact = [i for i, choice in enumerate(choices) if plain(choice) == said]
    if len(exact) == 1:
        return exact[0]
    letters = string.ascii_uppercase[: len(choices)]
    words = answer.replace("*", " ").split()
    stripped = [word.strip("()[]{}.,:;!?\"'`") for word in words]
    if len(stripped) == 1 and len(stripped[0]) == 1 and stripped[0].upper() in letters:
        return letters.index(stripped[0].upper())
    # in a sentence only capitals count; "A" and "I" may be words of English there, and alone they name nothing
    named, perhaps = set(), set()
    for place, (word, bare) in enumerate(zip(words, stripped, strict=True)):
        if len(bare) == 1 and bare in letters:
            sure = bare not in "AI" or word != bare or place == len(words) - 1
            (named if sure else perhaps).add(bare)
    if named and perhaps - named:
        return None
    held = {i for i, choice in enumerate(choices) if plain(choice) and f" {plain(choice)} " in f" {said} "}
    held = {i for i in held if not any(i != j and plain(choices[i]) in plain(choices[j]) for j in held)}
    found = {letters.index(letter) for letter in named} or held
    return found.pop() if len(found) == 1 else None


KINDS = ("teacher", "qwen2-audio:NAME", "qwen2.5-omni:NAME", "endpoint:URL#MODEL", "package.module:name")


def outside(spec: str, name: str | None, lab: Path | str, device: str = "cpu") -> Contender:
    """A contender that is no run of the lab, by its specification (KINDS)."""
    kind, _, rest = spec.partition(":")
    if kind in ("qwen2-audio", "qwen2.5-omni"):
        from salad.evaluation.transformers_speech import TransformersSpeech

        return TransformersSpeech(kind, rest, name or spec, lab, device)
    if kind == "endpoint":
        from salad.evaluation.endpoint import Endpoint

        url, _, model = rest.partition("#")
        return Endpoint(url, model, name or model)
    if rest and "." in kind:
        from salad.models.names import load_object

        return load_object(spec)()
    near = difflib.get_close_matches(kind, ["teacher", "qwen2-audio", "qwen2.5-omni", "endpoint"], 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(KINDS)}"
    raise SaladError(f"no contender {spec!r}; {hint}")


def same_tokenizer(model, lab: Path | str, what: str) -> None:
    """SaladError where a checkpoint's tokenizer is not that of the lab's teacher: their scores would not compare."""
    from salad.models.speech_lm import check_same_tokenizer, load_tokenizer

    here = Path(lab) / "models" / "teacher"
    if not here.is_dir():
        return
    try:
        check_same_tokenizer(model.tokenizer, what, load_tokenizer(str(here), lab), "models/teacher")
    except SaladError as error:
        raise SaladError(f"{error}; evaluate it in the lab of its own teacher") from None
