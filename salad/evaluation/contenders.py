"""Who is evaluated, behind one interface: the teacher, a checkpoint of ours, speech LLMs of transformers, an endpoint
that speaks OpenAI's protocol, or a class of one's own.

A contender has `name`, `run_id`, `step` (None but for ours), `modalities`, `sample_rate` (Hz of the recordings that it
hears), and one or both of `loglikelihoods` and `choose`; `generate` for open questions. By its `fingerprint`, a hash of
all that it computes with, its answers are told from those of another contender of the same name.
"""

import difflib
import functools
import hashlib
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from salad.errors import SaladError
from salad.evaluation.choices import parse_choice
from salad.evaluation.scoring import Prompt, Recording, loglikelihoods
from store.ids import digest

__all__ = ["KINDS", "Chooser", "Contender", "Ours", "fingerprint", "outside", "parse_choice", "same_tokenizer"]


@runtime_checkable
class Contender(Protocol):
    """What evaluation asks of a contender. `scores`: whether choices are scored by `loglikelihoods`; else it answers
    in words by `choose`."""

    @property
    def name(self) -> str: ...
    @property
    def run_id(self) -> str | None: ...
    @property
    def step(self) -> int | None: ...
    @property
    def modalities(self) -> tuple[str, ...]: ...
    @property
    def sample_rate(self) -> int: ...
    @property
    def scores(self) -> bool: ...

    def loglikelihoods(self, prompts: list[Prompt], continuations: list[list[str]], progress=None) -> list[list[tuple]]:
        """(log-probability in nats, is it greedy) of each continuation of each prompt of texts and `Recording`s."""
        ...

    def generate(self, prompts: list[Prompt], max_new_tokens: int = 64, until: tuple[str, ...] | None = None,
                 temperature: float = 0.0, seed: int = 0) -> list[str]:  # fmt: skip
        """An answer in words to each prompt, ending before any of `until`; None leaves that to the contender."""
        ...


class Chooser(Contender, Protocol):
    """A contender that answers in words (`scores` is False)."""

    def choose(self, prompts: list[Prompt], choices: list[list[str]], progress=None) -> list[str]:
        """An answer in words to each prompt with its choices."""
        ...


class Ours:
    """A speech LM of ours, or with `teacher` the original LLM in it, which has no speech side."""

    scores = True

    def __init__(self, model, name: str, run_id: str | None = None, step: int | None = None, teacher: bool = False,
                 batch: int | None = None):  # fmt: skip
        self.model, self.name, self.run_id, self.step = model, name, run_id, step
        self.teacher, self.batch = teacher, batch
        self.modalities = ("text", "cascade") if teacher else ("text", "speech", "cascade")

    @property
    def sample_rate(self) -> int:
        return self.model.encoder.sample_rate

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of the weights, the prompt format and the type in which it computes."""
        return self.teacher_fingerprint if self.teacher else fingerprint(self.model)

    @functools.cached_property
    def teacher_fingerprint(self) -> str:
        """Of the original LLM: whose text a gap is taken from."""
        return fingerprint(self.model, teacher=True)

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
        tokens = self.model.stream(parts, max_new_tokens, stop, temperature, seed, self.teacher)
        return "".join(token.text for token in tokens).strip()


def fingerprint(model, teacher: bool = False) -> str:
    """12 hex digits over what a `SpeechLM` computes with: frozen parts (a folder's files, else a hub name and its commit),
    trained tensors, prompt format, type. `teacher`: over what its original LLM does."""
    settings, frozen = model.settings, model.frozen()
    known = {part: found["sha256"] or [found["name"], _commit(model)] for part, found in frozen.items()}
    made = {name: value for name, value in settings.items() if name not in ("llm", "encoder", "adapter", "answering", "start")}
    made["dtype"] = settings["llm"]["dtype"]
    if teacher:
        return digest([made, known.get("teacher", known["llm"])])
    trained = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        if tensor.requires_grad:
            trained.update(f"{name} {tuple(tensor.shape)}\0".encode())
            trained.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest([made, known, {"encoder": settings["encoder"], "adapter": settings["adapter"]}, trained.hexdigest()])


def _commit(model) -> str | None:
    """The commit of a hub's model that was loaded by its name."""
    return getattr(model.llm.config, "_commit_hash", None)


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
        from salad import parts

        return parts.load(spec)()
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
