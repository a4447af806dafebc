"""Warm start of the adapter (`adapter.warm_start`): before Stage I, words are drawn to the embeddings of their tokens.

An adapter trained from scratch stays deaf for long: the student predicts from the text spans alone, and the divergence is
flat. Word times are known, so the adapter's outputs for a word's frames are averaged and drawn to the mean embedding of the
word's tokens: a contrastive loss (InfoNCE) among the words of a step, and a squared error for the scale. There is no LLM in
the loop. Only Stage I's own natural speech is used. This is not in the paper, and every report says where it was used.

`loss="ctc"` is its control: the same spans, embeddings, steps and rate, and no word times. Each frame's output is compared
with the embeddings of the speech's tokens (cosine over the temperature; a blank stands at 0), and the span's tokens are its
CTC target.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from safetensors import safe_open

from salad.config import RunConfig
from salad.data.corpora import SpokenText
from salad.data.frame_source import FrameSource
from salad.data.interleaving import Span
from salad.data.layout import Layout, Member
from salad.errors import SaladError
from salad.models.speech_lm import SpeechLM
from salad.runs import RunFolder
from store import atomic
from store.ids import digest

HELD_OUT = 20  # every so many recordings, one is held out, to say how many unheard words are found
ENCODED = 64  # spans that are encoded together while the bank is filled
RESULT = "warm-start.json"  # in the run's folder: what the warm start cost and reached
STATE = "warm-start.safetensors"


class WordSpan(NamedTuple):
    """A span of speech and its words. `frames` [F, D]; `words` [W, 2]: each word's frames (first, end); `tokens`: each
    word's token ids."""

    frames: np.ndarray
    words: list[tuple[int, int]]
    tokens: list[tuple[int, ...]]


def warm_start(
    model: SpeechLM,
    natural: Sequence,
    frames: FrameSource,
    config: RunConfig,
    run: RunFolder,
    progress: Callable[[int, int, dict], None] | None = None,
) -> dict:
    """Train `model.adapter` on the recordings `natural` in place; resumes what was stopped, and is done once a run.

    Returns what stands in the run's warm-start.json: steps, seconds, words and seconds of speech that supervised it, the last
    loss, and the share of held-out words whose nearest embedding among all held-out words is their own. Raises SaladError
    where the recordings hold too few words, `Preempted` after its state was written when the run is asked to end."""
    settings, device = config.adapter.warm_start, next(model.adapter.parameters()).device
    if (run.path / RESULT).exists():
        _load(run.path / STATE, model.adapter, None)
        return atomic.load_json(run.path / RESULT)
    began = time.monotonic()
    bank, held_out = _fill(natural, frames, config, progress)
    embeddings = model.llm.get_input_embeddings()
    with torch.no_grad():  # called, not its weights taken: some scale what they hold
        table_VH = embeddings(torch.arange(embeddings.num_embeddings, device=embeddings.weight.device)).to(device)
    centre_H = table_VH.float().mean(0)
    adapter = model.adapter.train()
    weights = [p for p in adapter.parameters() if p.requires_grad]
    for weight in weights:
        weight.data = weight.data.float()
    optimizer = torch.optim.AdamW(weights, lr=settings.lr, betas=config.optim.betas, weight_decay=config.optim.weight_decay)
    ids_K = sorted({token for span in bank for ids in span.tokens for token in ids})
    step, before_s = _load(run.path / STATE, adapter, optimizer)
    loss = torch.tensor(math.nan)
    while step < settings.steps:
        rng = np.random.default_rng([config.seed, step, 0x5A1AD])
        chosen = [bank[i] for i in rng.integers(0, len(bank), settings.spans)]
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * (1 - step / settings.steps)
        if settings.loss == "ctc":
            loss = _ctc_loss(adapter, chosen, ids_K, table_VH, centre_H, settings.temperature, device)
        else:
            words_WH, targets_WH, same_WW = _words(adapter, chosen, table_VH, device)
            loss = _loss(words_WH, targets_WH, centre_H, same_WW, settings.temperature, settings.squared_weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, config.optim.clip)
        if not math.isfinite(loss.item()):
            raise SaladError(f"warm start: the loss is {loss.item()} at step {step + 1}; lower adapter.warm_start.lr")
        optimizer.step()
        step += 1
        if progress is not None and run.leader:
            progress(step, settings.steps, {"warm_start_loss": loss.item()})
        end = run.should_stop()
        if run.leader and (step % settings.save_every == 0 or step == settings.steps or end is not None):
            kept = None if step == settings.steps else optimizer
            _save(run.path / STATE, adapter, kept, step, before_s + time.monotonic() - began)
        if end is not None and step < settings.steps:
            raise end
    result = {
        "steps": settings.steps,
        "loss_kind": settings.loss,
        "seconds": round(before_s + time.monotonic() - began, 1),
        "words": sum(len(span.words) for span in bank),
        "speech_s": round(sum(len(span.frames) for span in bank) / model.encoder.frame_rate, 1),
        "loss": None if math.isnan(loss.item()) else round(loss.item(), 4),
        "held_out": _found(adapter, held_out, table_VH, centre_H, device),
    }
    if run.leader:
        atomic.write_json(run.path / RESULT, result)
        share = result["held_out"]["share"]
        coverage = "" if share is None else f", {100 * share:.0f} % of {result['held_out']['words']} held-out words found"
        run.log(f"warm start of the adapter: {settings.steps} steps in {result['seconds']:.0f} s{coverage}")
    return result


def _fill(natural, frames: FrameSource, config: RunConfig, progress) -> tuple[list[WordSpan], list[WordSpan]]:
    """The recordings cut once into spans, encoded and kept: those to train on and those held out. As many recordings as
    `data.keep_gb` has room for, in an order drawn from the seed."""
    order = np.random.default_rng([config.seed, 0xBA17]).permutation(len(natural))
    encoder, room = frames.encoder, config.data.keep_gb * 1e9
    bank: list[WordSpan] = []
    held_out: list[WordSpan] = []
    waiting: list[tuple[Layout, list[Span], bool]] = []

    def encode() -> None:
        nonlocal room
        members = [
            Member(layout.sequence(spans), layout.spoken.sample_id, layout.spoken.folder, spans, layout.spoken)
            for layout, spans, _ in waiting
        ]
        for (layout, spans, held), sound in zip(waiting, frames.frames_of(members, {}), strict=True):
            assert sound is not None
            cut = [_words_of(layout, span, sound, encoder.is_causal) for span in spans if span.speech]
            (held_out if held else bank).extend(span for span in cut if span.words)
            room -= 0 if held else sum(span.frames.nbytes for span in cut)
        waiting.clear()

    for number, i in enumerate(order):
        spoken: SpokenText = natural[int(i)]
        layout = frames.layout(spoken)
        if layout.units:
            rng = np.random.default_rng([config.seed, int(digest(spoken.synthesis_id), 16)])
            waiting.append((layout, _cut(layout, rng, config), number % HELD_OUT == HELD_OUT - 1))
        if len(waiting) == ENCODED or number == len(order) - 1:
            encode()
            if progress is not None:
                progress(number + 1, len(order), {})
        if room <= 0:
            break
    if sum(len(span.words) for span in bank) < 2:
        raise SaladError("warm start: the natural speech has no two words with times; set adapter.warm_start.steps=0")
    return bank, held_out


def _cut(layout: Layout, rng: np.random.Generator, config: RunConfig) -> list[Span]:
    """All units of a recording as speech, in spans of lengths drawn as training draws them."""
    shortest, longest = config.sequences.span_units
    spans: list[Span] = []
    at, units, rate = 0, layout.units, layout.frame_rate
    last = int(layout.spoken.duration_s * rate + 1e-6)
    while at < len(units):
        end = min(at + int(rng.integers(shortest, longest + 1)), len(units))
        first, stop = int(units[at].start_s * rate + 1e-6), min(int(units[end - 1].end_s * rate + 1e-6), last)
        if stop > first:
            spans.append(Span(True, units[at].token_start, units[end - 1].token_end, first, stop))
        at = end
    return spans


def _words_of(layout: Layout, span: Span, sound: np.ndarray, causal: bool) -> WordSpan:
    """A span's frames and its words. Under a causal encoder the adapter hears the recording from its start, as in training."""
    start = 0 if causal else span.frame_start
    words, tokens = [], []
    for unit in layout.units:
        if span.token_start <= unit.token_start and unit.token_end <= span.token_end:
            first, end = (int(at * layout.frame_rate + 1e-6) for at in (unit.start_s, unit.end_s))
            first, end = max(first, span.frame_start) - start, min(end, span.frame_end) - start
            if end > first:
                words.append((first, end))
                tokens.append(tuple(layout.prompt_layout.ids[unit.token_start : unit.token_end]))
    return WordSpan(sound[start : span.frame_end], words, tokens)


def _outputs(adapter, spans: list[WordSpan], device) -> torch.Tensor:
    """The adapter's outputs for each span's frames, float32 [B, F, H], padded at the end."""
    longest = max(len(span.frames) for span in spans)
    batch = np.zeros((len(spans), longest, spans[0].frames.shape[1]), np.float32)
    for row, span in enumerate(spans):
        batch[row, : len(span.frames)] = span.frames
    return adapter(torch.from_numpy(batch).to(device)).float()


def _ctc_loss(adapter, spans: list[WordSpan], ids_K: list[int], table_VH, centre_H, temperature: float, device) -> torch.Tensor:
    """CTC of each span's tokens over the embeddings of `ids_K` and a blank, nats a token, spans averaged; one with more tokens
    than its frames can hold counts as 0."""
    out_BFH = _outputs(adapter, spans, device)
    unit = torch.nn.functional.normalize
    embeddings_KH = unit(table_VH[ids_K].float() - centre_H, dim=-1)
    logits_BFK = unit(out_BFH - centre_H, dim=-1) @ embeddings_KH.T / temperature
    scores_FBK = torch.nn.functional.pad(logits_BFK, (1, 0)).log_softmax(-1).transpose(0, 1)
    number = {token: k for k, token in enumerate(ids_K, 1)}
    targets = [[number[token] for ids in span.tokens for token in ids] for span in spans]
    lengths = torch.tensor([len(target) for target in targets])
    frames = torch.tensor([len(span.frames) for span in spans])
    flat = torch.tensor([k for target in targets for k in target], device=device)
    return torch.nn.functional.ctc_loss(scores_FBK, flat, frames, lengths, blank=0, zero_infinity=True)


def _words(adapter, spans: list[WordSpan], table_VH: torch.Tensor, device):
    """Of W words: the adapter's vectors [W, H], the mean embeddings [W, H] of their tokens, and which are the same word
    [W, W]. A word's vector is the mean of its frames' mean and of its last frame, which predicts what follows."""
    out_BFH = _outputs(adapter, spans, device)
    places = [(row, first, end) for row, span in enumerate(spans) for first, end in span.words]
    words_WH = torch.stack([(out_BFH[row, first:end].mean(0) + out_BFH[row, end - 1]) / 2 for row, first, end in places])
    tokens = [ids for span in spans for ids in span.tokens]
    targets_WH = torch.stack([table_VH[list(ids)].float().mean(0) for ids in tokens])
    number: dict[tuple[int, ...], int] = {}
    kind_W = torch.tensor([number.setdefault(ids, len(number)) for ids in tokens], device=device)
    return words_WH, targets_WH, kind_W[:, None] == kind_W


def _loss(words_WH, targets_WH, centre_H, same_WW, temperature: float, squared_weight: float) -> torch.Tensor:
    """InfoNCE of each word against the step's embeddings, other places of the same word left out of its negatives, and the
    squared error relative to the embeddings' own variance."""
    unit = torch.nn.functional.normalize
    logits_WW = unit(words_WH - centre_H, dim=-1) @ unit(targets_WH - centre_H, dim=-1).T / temperature
    own = torch.eye(len(words_WH), dtype=torch.bool, device=words_WH.device)
    logits_WW = logits_WW.masked_fill(same_WW & ~own, -math.inf)
    contrastive = torch.nn.functional.cross_entropy(logits_WW, torch.arange(len(words_WH), device=words_WH.device))
    variance = (targets_WH - centre_H).square().mean().clamp_min(1e-12)
    return contrastive + squared_weight * (words_WH - targets_WH).square().mean() / variance


@torch.no_grad()
def _found(adapter, held_out: list[WordSpan], table_VH, centre_H, device) -> dict:
    """Of the held-out words, how many are nearest to their own embedding among those of all held-out words."""
    if not held_out:
        return {"words": 0, "kinds": 0, "share": None}
    unit = torch.nn.functional.normalize
    parts = [_words(adapter, held_out[i : i + ENCODED], table_VH, device)[:2] for i in range(0, len(held_out), ENCODED)]
    words_WH, targets_WH = (torch.cat(column) for column in zip(*parts, strict=True))
    kinds_KH, kind_W = torch.unique(targets_WH, dim=0, return_inverse=True)
    nearest_W = (unit(words_WH - centre_H, dim=-1) @ unit(kinds_KH - centre_H, dim=-1).T).argmax(-1)
    share = (nearest_W == kind_W).float().mean().item()
    return {"words": len(words_WH), "kinds": len(kinds_KH), "share": round(share, 4)}


def _save(path: Path, adapter, optimizer, step: int, seconds: float) -> None:
    """Adapter and, where more steps follow, optimizer in one safetensors file, whole or not there."""
    tensors = {f"adapter.{name}": tensor.detach().contiguous() for name, tensor in adapter.state_dict().items()}
    for i, state in ({} if optimizer is None else optimizer.state_dict()["state"]).items():
        tensors |= {f"optimizer.{i}.{name}": value.detach().contiguous() for name, value in state.items()}
    atomic.write_bytes(path, safetensors.torch.save(tensors, {"step": str(step), "seconds": str(seconds)}))


def _load(path: Path, adapter, optimizer) -> tuple[int, float]:
    """Restore what `_save` wrote; returns the steps done and their seconds, (0, 0) where nothing was written."""
    if not path.exists():
        return 0, 0.0
    with safe_open(path, framework="pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    adapter.load_state_dict({name.removeprefix("adapter."): t for name, t in tensors.items() if name.startswith("adapter.")})
    if optimizer is not None:
        state: dict[int, dict] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, i, key = name.split(".", 2)
                state.setdefault(int(i), {})[key] = tensor
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return int(about["step"]), float(about["seconds"])
