"""The miniature's teacher: a tiny Qwen2 trained on the world's text, saved as a Hugging Face folder."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from salad.config import Frozen
from salad.miniature.folders import save_folder
from store import atomic, ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class TeacherConfig(Frozen):
    """Shape and training of the teacher: about 1 M parameters, under half a minute on one core."""

    seed: int = 0
    width: int = 128
    layers: int = Field(4, gt=0)
    heads: int = 4
    mlp: int = 384
    steps: int = Field(450, gt=1)
    batch: int = Field(24, gt=0, description="documents a step")
    lr: float = Field(4e-3, gt=0, description="peak of the one-cycle schedule")
    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = Field(1.0, gt=0)
    max_tokens: int = Field(128, gt=1, description="longer texts are cut")


def train_teacher(
    config: TeacherConfig,
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | str,
    on_step: Callable[[int, float], None] | None = None,
) -> dict:
    """Train a Qwen2ForCausalLM on `texts` and save it with its tokenizer in `folder`, as safetensors.

    Next-token cross-entropy in nats over every token and the end of the document (the BOS again), float32, CPU.
    The same arguments and thread count give the same bytes. An interrupted training starts again; a finished
    one, with the same arguments, is left as it is. `on_step(step, loss)` is called after each step, from 1.
    Returns what `folder`/training.json says: made_from, loss (mean of the last tenth of the steps)."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = Path(folder)
    made_from = {
        "config": config.model_dump(mode="json"),
        "texts": ids.digest(texts),
        "tokenizer": ids.digest(tokenizer.backend_tokenizer.to_str()),
    }
    done = folder / "training.json"
    if done.exists() and (record := atomic.load_json(done)).get("made_from") == made_from:
        return record

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=len(tokenizer),
                hidden_size=config.width,
                intermediate_size=config.mlp,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                max_position_embeddings=2048,
                tie_word_embeddings=True,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                initializer_range=config.width**-0.5 / 4,
            )
        )
    model.train()
    encoded = [[*row[: config.max_tokens], tokenizer.eos_token_id] for row in tokenizer(list(texts))["input_ids"]]
    optimizer = torch.optim.AdamW(model.parameters(), config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, total_steps=config.steps, pct_start=0.1, cycle_momentum=False
    )
    losses = []
    for step, rows in zip(range(1, config.steps + 1), batches(encoded, config.batch, config.seed), strict=False):
        tokens_BT = torch.full((len(rows), max(map(len, rows))), -100)
        for place, row in enumerate(rows):
            tokens_BT[place, : len(row)] = torch.tensor(row)
        targets_N = tokens_BT[:, 1:].flatten()
        kept = targets_N != -100
        inputs_BT = tokens_BT[:, :-1].clamp(min=0)
        # Padding stands on the right of a causal model: no mask is needed. Only real positions meet the head.
        hidden_NH = model.model(input_ids=inputs_BT, use_cache=False).last_hidden_state.flatten(0, 1)[kept]
        loss = torch.nn.functional.cross_entropy(model.lm_head(hidden_NH), targets_N[kept])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if on_step:
            on_step(step, losses[-1])

    tail = losses[-max(1, config.steps // 10) :]
    record = {"made_from": made_from, "loss": sum(tail) / len(tail)}
    save_folder(
        folder,
        model.eval().save_pretrained,
        tokenizer.save_pretrained,
        lambda new: atomic.write_json(new / done.name, record),
    )
    return record


def batches(encoded: list[list[int]], size: int, seed: int) -> Iterator[list[list[int]]]:
    """Endless batches of `size` texts of like length, so that little is padding; every text once an epoch."""
    rng = random.Random(f"batches/{seed}")
    pool = 10 * size
    while True:
        order = rng.sample(range(len(encoded)), len(encoded))
        for start in range(0, len(order), pool):
            near = sorted(order[start : start + pool], key=lambda n: len(encoded[n]))
            cut = [near[place : place + size] for place in range(0, len(near), size)]
            rng.shuffle(cut)
            for batch in cut:
                yield [encoded[n] for n in batch]


def load_teacher(folder: Path | str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """(model, tokenizer) as any Hugging Face folder is loaded, from local files only."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
    )
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
