"""Answers of a speech LM, token by token or in batches. `SpeechLM.stream` and `SpeechLM.generate` are the doors."""

import inspect
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch


class Streamed(NamedTuple):
    """A token of an answer, the log-probabilities [V] float32 that it was drawn from, and what it adds to the text."""

    token: int
    logp: torch.Tensor
    text: str


class DecodingState:
    """A causal LM part-way through a sequence: `logp` [V] float32 of the next token, over the tokenizer's vocabulary.

    model: a `SpeechLM`; prompt: as `SpeechLM.prompt_embeddings` takes it; `teacher`: the original LLM reads, and the
    prompt must be text. LoRA is switched only while the model runs, so that several states go on in turn."""

    @torch.no_grad()
    def __init__(self, model, prompt: list, teacher: bool = False):
        self._model, self._source = model, model.source(teacher)
        self._forward(inputs_embeds=model.prompt_embeddings(prompt, self._source.llm), logits_to_keep=1)

    @torch.no_grad()
    def _forward(self, **inputs) -> None:
        with self._source.switched():
            out = self._source.llm(**inputs, use_cache=True)
        self._cache = out.cache
        self.logp = out.logits[0, -1, : self._model.vocab_size].float().log_softmax(-1)

    def advance(self, token: int) -> None:
        """Read one more token."""
        self._forward(input_ids=torch.tensor([[token]], device=self._model.device), cache=self._cache)


class Decoding:
    """One answer to one prompt: an iterator of `Streamed`, whose texts together are the answer.

    It ends before the first of the `stop` strings, at a token that ends a text or a turn, where `complete` says so, or
    after `max_new_tokens`; `ended` says by which ("" while it goes on), `seconds` is the time computed so far. Text that
    may turn out to begin a stop string waits, with its tokens, until that is known. complete(text, following): whether
    an answer of this text is whole; `following` is what the next token would add, None where that is not known yet.
    """

    def __init__(self, model, prompt: list, max_new_tokens: int, stop: tuple[str, ...] = (), temperature: float = 0.0,
                 seed: int = 0, teacher: bool = False, complete: Callable[[str, str | None], bool] | None = None):  # fmt: skip
        self.model, self.stop, self.temperature, self.max_new_tokens = model, stop, temperature, max_new_tokens
        self._complete = complete or (lambda text, following: False)
        self._prompt, self._teacher = prompt, teacher
        self._generator = torch.Generator(device="cpu").manual_seed(seed)
        self._state: DecodingState | None = None
        self._tokens: list[int] = []
        self._text, self._shown = "", 0  # what the tokens make, and how many characters of it are told
        self._waiting: list[tuple[int, torch.Tensor, int]] = []  # not told yet, with where in the text each begins
        self._ready: deque[Streamed] = deque()
        self.ended, self.seconds = "", 0.0

    def __iter__(self) -> "Decoding":
        return self

    def __next__(self) -> Streamed:
        begun = time.perf_counter()
        while not self._ready and not self.ended:
            self._step()
        self.seconds += time.perf_counter() - begun
        if not self._ready:
            raise StopIteration
        return self._ready.popleft()

    @property
    def finished(self) -> bool:
        """Whether the next call of `next` would end the iteration."""
        return bool(self.ended) and not self._ready

    def _step(self) -> None:
        if len(self._tokens) >= self.max_new_tokens:
            return self._end(f"{self.max_new_tokens} tokens")
        if self._state is None:
            self._state = DecodingState(self.model, self._prompt, self._teacher)
        else:
            self._state.advance(self._tokens[-1])
        logp = self._state.logp
        if self.temperature > 0:
            draw = torch.multinomial((logp / self.temperature).softmax(-1).cpu(), 1, generator=self._generator)
            token = int(draw)
        else:
            token = int(logp.argmax())
        if token in self.model.prompt.ends:
            return self._end("end token")
        whole = self.model.tokenizer.decode([*self._tokens, token], skip_special_tokens=True)
        if self._tokens and self._complete(self._text, whole[len(self._text) :]):
            return self._end("sentence")
        self._waiting.append((token, logp, len(self._text)))
        self._tokens.append(token)
        self._text = before_stop(whole, self.stop)
        if len(self._text) < len(whole):
            self._waiting = [one for one in self._waiting if one[2] < len(self._text)]
            return self._end("stop string")
        if self._complete(self._text, None):
            return self._end("sentence")
        if len(self._tokens) >= self.max_new_tokens:
            return self._end(f"{self.max_new_tokens} tokens")
        if not _may_go_on(self._text, self.stop):
            self._tell()
        return None

    def _end(self, why: str) -> None:
        self._tell()
        self.ended, self._state = why, None  # its cache

    def _tell(self) -> None:
        """The waiting tokens are told, and what of the text is not told yet is shared out among them."""
        for n, (token, logp, _) in enumerate(self._waiting):
            end = len(self._text) if n + 1 == len(self._waiting) else self._waiting[n + 1][2]
            end = max(self._shown, min(end, len(self._text)))
            self._ready.append(Streamed(token, logp, self._text[self._shown : end]))
            self._shown = end
        self._waiting = []


def _may_go_on(text: str, stop: tuple[str, ...]) -> bool:
    """Whether the end of a text may be the beginning of a stop string, or of a character of several tokens."""
    begun = (word[:n] for word in stop for n in range(1, len(word)))
    return text.endswith("\N{REPLACEMENT CHARACTER}") or any(map(text.endswith, begun))


def before_stop(text: str, stop: tuple[str, ...]) -> str:
    """A text up to the first of the stop strings in it."""
    return text[: min([text.find(word) for word in stop if word in text], default=len(text))]


@torch.no_grad()
def generate(model, prompts: list[list], max_new_tokens: int, stop: tuple[str, ...], temperature: float = 0.0,
             seed: int = 0) -> list[str]:  # fmt: skip
    """Answers of a `SpeechLM` to a batch of prompts, by transformers' own loop; each ends before the first of `stop`. An LLM
    whose loop takes no embeddings (Falcon-H1) answers one prompt after another."""
    from transformers import GenerationConfig

    if "inputs_embeds" not in inspect.signature(model.llm.prepare_inputs_for_generation).parameters:
        return ["".join(step.text for step in Decoding(model, prompt, max_new_tokens, stop, temperature, seed))
                for prompt in prompts]  # fmt: skip
    embedded = [model.prompt_embeddings(prompt)[0] for prompt in prompts]
    longest = max(map(len, embedded))
    inputs = embedded[0].new_zeros(len(embedded), longest, embedded[0].shape[1])
    mask = torch.zeros(len(embedded), longest, dtype=torch.long, device=model.device)
    for row, vectors in enumerate(embedded):
        inputs[row, longest - len(vectors) :] = vectors
        mask[row, longest - len(vectors) :] = 1
    torch.manual_seed(seed)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted(model.prompt.ends) or None,
        pad_token_id=model.tokenizer.pad_token_id or model.prefix,
        stop_strings=list(stop) or None,
        suppress_tokens=list(range(model.vocab_size, model.head.shape[0])) or None,  # ids that only pad the head
        **sampling,
    )
    out = model.llm.generate(inputs_embeds=inputs, attention_mask=mask, generation_config=settings, tokenizer=model.tokenizer)
    return [before_stop(text, stop) for text in model.tokenizer.batch_decode(out, skip_special_tokens=True)]
