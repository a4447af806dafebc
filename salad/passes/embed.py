"""Embed the texts of a corpus: by the LLM's own hidden states (the default: no further model), or a sentence model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch

import store
from salad.errors import SaladError
from salad.models.heads import before_head, head_of
from salad.objective import distillation_loss
from salad.passes import Part, Progress, run_parts
from store.ids import digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PART = 4096  # texts a unit


class Embedded(NamedTuple):
    """vectors: float32 [N, H] of unit length; nll: float64 [N], the LLM's mean NLL in nats a token, or None."""

    vectors: np.ndarray
    nll: np.ndarray | None


class Embedder(Protocol):
    def __call__(self, texts: list[str], tick=None) -> Embedded: ...


def of_llm(llm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: int = 64) -> Embedder:
    """Mean-pooled last hidden states of a causal LM, and its mean NLL of each text from the second token on."""

    @torch.no_grad()
    def embed(texts: list[str], tick=None) -> Embedded:
        vectors = np.zeros((len(texts), llm.config.hidden_size), dtype=np.float32)
        nll, head = np.full(len(texts), np.nan), head_of(llm)
        for group, inputs, mask in _padded(texts, tokenizer, batch, llm.device):
            hidden = llm.get_decoder()(input_ids=inputs, use_cache=False).last_hidden_state
            targets = torch.where(mask[:, 1:, 0] > 0, inputs[:, 1:], -1)
            before = before_head(llm, hidden[:, :-1].flatten(0, 1))
            loss = distillation_loss(
                before, head, before, head, targets.flatten(), alpha=0.0, vocab_size=len(tokenizer), reduction="none"
            )
            count = (targets >= 0).sum(1)
            mean = loss.nll.view(targets.shape).sum(1) / count
            nll[group] = torch.where(count > 0, mean, torch.nan).double().cpu().numpy()
            vectors[group] = _pooled(hidden, mask)
            if tick is not None:
                tick(len(group))
        return Embedded(vectors, nll)

    return embed


def of_decoder(decoder, tokenizer, batch: int = 64) -> Embedder:
    """Mean-pooled last hidden states of a text decoder: the language model inside a speech LLM."""

    @torch.no_grad()
    def embed(texts: list[str], tick=None) -> Embedded:
        vectors: list[np.ndarray] = [np.zeros(0)] * len(texts)
        for group, inputs, mask in _padded(texts, tokenizer, batch, next(decoder.parameters()).device):
            pooled = _pooled(decoder(input_ids=inputs, use_cache=False).last_hidden_state, mask)
            for row, i in enumerate(group):
                vectors[i] = pooled[row]
            if tick is not None:
                tick(len(group))
        return Embedded(np.stack(vectors), None)

    return embed


def _padded(texts: list[str], tokenizer, batch: int, device) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Batches of texts of like length: (their numbers, token ids [B, T] padded on the right, a mask [B, T, 1])."""
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    order = sorted(range(len(texts)), key=lambda i: (len(ids[i]), i))
    for start in range(0, len(order), batch):
        group = order[start : start + batch]
        longest = max(len(ids[i]) for i in group) or 1
        inputs, mask = torch.zeros(len(group), longest, dtype=torch.long), torch.zeros(len(group), longest, 1)
        for row, i in enumerate(group):
            inputs[row, : len(ids[i])] = torch.tensor(ids[i], dtype=torch.long)
            mask[row, : len(ids[i])] = 1
        yield group, inputs.to(device), mask.to(device)


def _pooled(hidden: torch.Tensor, mask: torch.Tensor) -> np.ndarray:
    """The mean over a text's positions, of unit length, [B, H]."""
    pooled = (hidden.float() * mask).sum(1) / mask.sum(1).clamp_min(1)
    return torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()


def of_sentences(name: str, lab: Path | str | None = None) -> Embedder:
    """A sentence-transformers model, by folder or hub name (the paper's: BAAI/bge-large-en-v1.5)."""
    from salad.models.names import loading, quiet, resolve

    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise SaladError(f"embeddings by {name} need sentence-transformers: pip install 'salad-workbench[embed]'") from None
    folder = resolve(name, lab)
    quiet()
    with loading(f"the sentence model {name!r}"):
        model = SentenceTransformer(folder, model_kwargs={"use_safetensors": True})

    def embed(texts: list[str], tick=None) -> Embedded:
        vectors = model.encode(texts, normalize_embeddings=True, show_progress_bar=False, convert_to_numpy=True)
        if tick is not None:
            tick(len(texts))
        return Embedded(vectors.astype(np.float32), None)

    return embed


def embed(
    lab: Path | str,
    load: Callable[[], Embedder],
    corpus: str,
    model_name: str,
    shard: int = 0,
    shards: int = 1,
    progress: Progress | None = None,
) -> None:
    """Publish `embeddings` of the corpus's speakable samples under `model_name`, PART texts a unit.

    Texts with a flag (formula, code, url …) are left out. `load` makes the embedder, when it is needed. SaladError
    where the corpus has no such text."""
    run_parts(lab, parts(lab, load, corpus, model_name), shard, shards, progress)


def parts(lab: Path | str, load: Callable[[], Embedder], corpus: str, model_name: str,
          only: Collection[str] | None = None) -> list[Part]:  # fmt: skip
    """The pass's parts. `only`: of these samples alone."""
    rows = store.connect(lab).execute(
        "select sample_id, text from samples where corpus = ? and len(coalesce(flags, [])) = 0 order by sample_id",
        [corpus],
    ).fetchall()  # fmt: skip
    rows = rows if only is None else [row for row in rows if row[0] in only]
    if not rows:
        there = store.connect(lab).execute("select distinct corpus from samples order by all").fetchall()
        hint = f"it has {', '.join(str(name) for (name,) in there)}" if there else "`salad prepare text` makes one"
        raise SaladError(f"{lab} has no speakable text of a corpus {corpus!r}; {hint}")
    whole = digest([r[0] for r in rows])
    made: list[Callable] = []

    def of(start: int) -> Part:
        batch = rows[start : start + PART]
        made_from = {"pass": "embed", "corpus": corpus, "model": model_name, "samples": whole, "part": start // PART}

        def make(tick) -> None:
            if not made:
                made.append(load())
            embeddings = made[0]([text for _, text in batch], tick)
            table = {
                "sample_id": [s for s, _ in batch],
                "model": [model_name] * len(batch),
                "vector": pa.array(list(embeddings.vectors), pa.list_(pa.float32())),
            }
            if embeddings.nll is not None:
                table["nll"] = pa.array(embeddings.nll, from_pandas=True)
            store.publish(lab, "embeddings", pa.table(table), made_from)

        return Part(made_from, ("embeddings",), len(batch), make)

    return [of(start) for start in range(0, len(rows), PART)]
