"""The teacher kept on disk, for ablations: where the head is frozen and shared, a text's next seed needs no teacher.

With logits W h and e = softmax(W h_t) W, KL(Q || P) = lse(W h_s) - e . h_s + c, and its gradient is softmax(W h_s) W - e:
H + 1 numbers a position stand for the teacher's V probabilities. The idea is public: "KL Cache Trick", jonathanc.net, 2026.
Both halves of that gradient nearly cancel where P is close to Q, so the teacher's most probable ids are kept apart and
computed in float32, e without them in float16, and c is what makes the record's own KL vanish at h_s = h_t.
`objective.teacher_cache=true` trains with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from salad.errors import SaladError
from salad.objective.checks import check_mixture, check_pair, chunk_size, rows_with_loss
from salad.objective.loss import DistillationLoss
from salad.objective.projection import HEAD_TILE, Head, Projection, as_head, project, sum_dtype, wide_tile, without_autocast
from store import atomic

if TYPE_CHECKING:
    from salad.config import RunConfig
    from salad.data.batches import Batch
    from salad.data.loading import Loader

TOP = 8  # ids of the teacher that are kept apart
FLUSH_BYTES = 256 * 2**20  # of new records wait in memory for a file of their own
OPEN_FILES = 64
LAYOUT = 2  # raised when a record's meaning changes


class TeacherRecord(NamedTuple):
    """What is kept of the teacher at N positions: e without its `TOP` likeliest ids is `scale_N * rest_NH`.

    `rest_NH` float16 in [-1, 1], `scale_N` and `offset_N` (c) float32; `ids_NK` int32 and `probabilities_NK` float32,
    the likeliest ids. 2 H + 8 K + 8 bytes a position."""

    rest_NH: Tensor
    scale_N: Tensor
    offset_N: Tensor
    ids_NK: Tensor
    probabilities_NK: Tensor


def bytes_per_position(width: int, top: int = TOP) -> int:
    """Bytes of a record at one position, for hidden states of this width."""
    return 2 * width + 8 * top + 8


@torch.no_grad()
def cache_rows(
    teacher_hidden_NH: Tensor, head_VH: Tensor | Head, vocab_size: int | None = None, *, chunk_rows: int | None = None
) -> TeacherRecord:
    """The record of N teacher positions: hidden states (after the final norm) [N, H], the shared head [V, H].

    Ids at or above `vocab_size` are ignored. `[N, V]` logits are never whole. Raises SaladError on shapes that do not fit.
    """
    head = _linear(head_VH)
    vocab_size = check_pair("teacher", teacher_hidden_NH, head, vocab_size, head)
    n, width, device = *teacher_hidden_NH.shape, teacher_hidden_NH.device
    teacher = Projection(teacher_hidden_NH, head, vocab_size)
    dtype, top = sum_dtype(teacher), min(TOP, vocab_size)
    record = TeacherRecord(
        torch.empty(n, width, dtype=torch.float16, device=device),
        torch.empty(n, dtype=torch.float32, device=device),
        torch.empty(n, dtype=torch.float32, device=device),
        torch.empty(n, top, dtype=torch.int32, device=device),
        torch.empty(n, top, dtype=torch.float32, device=device),
    )
    size = min(n, chunk_size(chunk_rows, device))
    logits, spare = torch.empty(2, size, vocab_size, dtype=dtype, device=device)
    wide = wide_tile((teacher,), dtype)
    for start in range(0, n, size or 1):
        at = slice(start, min(start + size, n))
        part, work = logits[: at.stop - start], spare[: at.stop - start]
        with without_autocast(device):
            project((teacher,), at, (part,), wide)
            likeliest = part.topk(top, dim=1)
            lse = _softmax_(part)
            kept = part.gather(1, likeliest.indices)
            rest = _times_head(teacher, part.scatter_(1, likeliest.indices, 0), spare=work)
        scale = rest.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
        record.rest_NH[at] = (rest / scale.unsqueeze(1)).half()
        record.scale_N[at], record.ids_NK[at], record.probabilities_NK[at] = scale, likeliest.indices, kept
        here = TeacherRecord(*(x[at] for x in record))
        record.offset_N[at] = _expected_logit(here, likeliest.values, teacher.rows(at), teacher.scale) - lse
    return record


def cached_distillation_loss(
    student_hidden_NH: Tensor,
    head_VH: Tensor | Head,
    record: TeacherRecord,
    targets_N: Tensor,
    alpha: float = 1.0,
    vocab_size: int | None = None,
    reduction: str = "mean",
    *,
    chunk_rows: int | None = None,
    per_position: bool = False,
) -> DistillationLoss:
    """`salad.objective.distillation_loss` with the teacher's record in place of its hidden states and head.

    The gradient goes to the student's hidden states, through `loss` only. Within 1 % of float64's from bfloat16 inputs
    (Frobenius; tests/test_teacher_cache.py). Raises SaladError where the head trains, since a record holds for the head
    that it was made with, and else as `distillation_loss`.
    """
    if as_head(head_VH).weight.requires_grad:
        raise SaladError(
            "teacher cache: the output head trains, and what is cached holds for a frozen head that teacher and student "
            "share: train LoRA on the projections, or set objective.teacher_cache=false"
        )
    head = _linear(head_VH)
    vocab_size = check_pair("student", student_hidden_NH, head, vocab_size, head)
    n = student_hidden_NH.shape[0]
    if record.rest_NH.shape != student_hidden_NH.shape or targets_N.shape != (n,):
        raise SaladError(
            f"teacher cache: student positions of shape {tuple(student_hidden_NH.shape)}, a record of shape "
            f"{tuple(record.rest_NH.shape)} and targets of shape {tuple(targets_N.shape)} do not fit"
        )
    check_mixture("teacher cache", alpha, reduction)
    loss, d, nll, kept = _CachedLoss.apply(
        student_hidden_NH, head, record, targets_N, float(alpha), vocab_size, chunk_rows, torch.is_grad_enabled()
    )
    if reduction == "none":
        return DistillationLoss(loss, d, nll)
    scale = 1.0 / max(kept, 1) if reduction == "mean" else 1.0
    if not per_position:
        d, nll = d.sum() * scale, nll.sum() * scale
    return DistillationLoss(loss.sum() * scale, d, nll)


class _CachedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, head, record, targets, alpha, vocab_size, chunk_rows, grad_enabled):
        rows = rows_with_loss(targets, vocab_size)
        total = targets.numel() if rows is None else rows.numel()
        student = Projection(hidden, head, vocab_size)
        dtype, device = sum_dtype(student), hidden.device
        d, nll = torch.zeros(2, targets.numel(), dtype=dtype, device=device)
        wants = grad_enabled and ctx.needs_input_grad[0]
        gradient = torch.zeros_like(hidden) if wants else None
        size = min(total, chunk_size(chunk_rows, device))
        logits = torch.empty(size, vocab_size, dtype=dtype, device=device)
        wide = wide_tile((student,), dtype)
        with without_autocast(device):
            for start in range(0, total, size or 1):
                chunk = slice(start, min(start + size, total))
                at = chunk if rows is None else rows[chunk]
                part = logits[: chunk.stop - start]
                here = TeacherRecord(*(x[at] for x in record))
                ids, target = here.ids_NK.long(), targets[at].unsqueeze(1)
                project((student,), at, (part,), wide)
                likeliest, wanted = part.gather(1, ids), part.gather(1, target).squeeze(1)
                lse = _softmax_(part)
                nll[at] = lse - wanted
                d[at] = (lse - _expected_logit(here, likeliest, student.rows(at), student.scale) + here.offset_N).clamp_min_(0.0)
                if not wants:
                    continue
                # (p - alpha q - (1 - alpha) onehot) W; the teacher's likeliest ids and the target in float32
                apart = part.gather(1, ids) - alpha * here.probabilities_NK
                cached_logits = _times_head(student, part.scatter_(1, ids, 0))
                cached_logits += torch.bmm(apart.unsqueeze(1), student.head[ids].to(dtype)).squeeze(1)
                cached_logits.addcmul_(here.rest_NH.to(dtype), here.scale_N.to(dtype).unsqueeze(1), value=-alpha)
                cached_logits.sub_(student.head[target.squeeze(1)].to(dtype), alpha=1.0 - alpha)
                gradient[at] = (cached_logits if student.scale == 1.0 else cached_logits * student.scale).to(gradient.dtype)
        ctx.gradient = gradient
        ctx.mark_non_differentiable(d, nll)
        return alpha * d + (1.0 - alpha) * nll, d, nll, total

    @staticmethod
    def backward(ctx, grad_loss, *_):
        if torch.is_grad_enabled():
            raise SaladError("cached_distillation_loss has no double backward; call backward without create_graph")
        return ctx.gradient * grad_loss.to(ctx.gradient.dtype).unsqueeze(1), *(None,) * 7


def _softmax_(logits: Tensor) -> Tensor:
    """Logits become probabilities, in place; returns their log-sum-exp [R]."""
    largest = logits.amax(1, keepdim=True)
    total = logits.sub_(largest).exp_().sum(1, keepdim=True)
    logits.div_(total)
    return (largest + total.log()).squeeze(1)


def _linear(head: Tensor | Head) -> Head:
    """The head, which must be linear: a record stands for the teacher only while logits are linear in hidden states."""
    head = as_head(head)
    if head.soft_cap is not None:
        raise SaladError(
            "objective.teacher_cache: this LLM bends its logits (a soft cap), and the cache needs them linear in the hidden "
            "states: set objective.teacher_cache=false"
        )
    return head


def _expected_logit(record: TeacherRecord, likeliest_NK: Tensor, hidden: Tensor, scale: float) -> Tensor:
    """e . h [R]: the teacher's mean of the logits of `hidden`, whose values at the kept ids are `likeliest_NK`. The mean of
    the other ids' biases is left out, on both sides: it is the same for teacher and student."""
    dtype = likeliest_NK.dtype
    rest = (record.rest_NH.to(dtype) * hidden.to(dtype)).sum(1) * record.scale_N * scale
    return rest + (record.probabilities_NK * likeliest_NK).sum(1)


def _times_head(projection: Projection, weights: Tensor, spare: Tensor | None = None) -> Tensor:
    """weights [R, V] @ head, in the sums' type. With `spare`, a buffer like `weights`, what the products' type rounds off
    them is multiplied too."""
    sums = torch.zeros(len(weights), projection.head.shape[1], dtype=weights.dtype, device=weights.device)
    widens, parts = projection.widens(weights.dtype), [weights]
    if spare is not None and projection.dtype != weights.dtype:
        rounded = weights.to(projection.dtype)
        parts = [rounded.to(weights.dtype), torch.sub(weights, rounded, out=spare)]
    step = HEAD_TILE if widens else weights.shape[1]
    for part in parts:
        narrow = part if widens else part.to(projection.dtype)
        for start in range(0, part.shape[1], step):
            ids = slice(start, start + step)
            projection.add_product(sums, part[:, ids], narrow[:, ids], projection.head[ids])
    return sums


class TeacherCache:
    """Records of texts in lab/caches/teacher/<teacher>/, made when a text is first met and read ever after.

    A record is a function of the teacher and of a text's token ids, whatever batch it is met in: another seed, epoch,
    pattern or alpha finds it. Files are safetensors; one that was cut short is left out, and its texts are made again.
    Each record has a checksum (XXH3), looked at whenever it is read: a flipped bit is a SaladError that names the file."""

    def __init__(self, lab: Path | str, model):
        """`model`: a SpeechLM whose teacher is its own LLM under LoRA; any other is a SaladError."""
        _linear(model.output_head)
        if model.original is not None or model.output_head.weight.requires_grad:
            raise SaladError(
                "objective.teacher_cache: the output head trains, or is not the teacher's; the cache needs one frozen head "
                "for both (llm.finetune=lora on the original LLM): set objective.teacher_cache=false"
            )
        frozen, name = model.frozen()["llm"], model.settings["llm"]["name"]
        version = frozen["sha256"] or getattr(model.llm.config, "_commit_hash", None)
        if version is None:
            raise SaladError(f"objective.teacher_cache: the version of LLM {name!r} is not known; give it as a folder")
        made_with = json.dumps([LAYOUT, TOP, version, model.settings["llm"]["dtype"], model.vocab_size])
        self.folder = Path(lab) / "caches" / "teacher" / hashlib.sha256(made_with.encode()).hexdigest()[:12]
        self.width = model.head.shape[1]
        self._texts: dict[str, tuple[Path, int, int, str]] = {}
        self._new: dict[str, TeacherRecord] = {}
        self._new_bytes = 0
        self._open: dict[Path, Any] = {}  # safetensors handles
        for path in sorted(self.folder.glob("part-*.safetensors")):
            try:
                with safe_open(path, "pt") as file:
                    texts = json.loads(file.metadata()["texts"])
                    texts = {key: (path, int(first), int(last), str(sum)) for key, (first, last, sum) in texts.items()}
            except (SafetensorError, OSError, RecursionError, AttributeError, KeyError, TypeError, ValueError):
                print(f"{path} is damaged and is left out", file=sys.stderr)
                continue
            self._texts |= texts

    def __len__(self) -> int:
        return len(self._texts) + len(self._new)

    def check_size(self, loader: Loader, config: RunConfig) -> str:
        """How large it becomes, in words; a SaladError above `objective.teacher_cache_gb`. An estimate from some texts."""
        positions = 0.0
        for source in loader.sources.values():
            if not source:
                continue
            some = [source[i] for i in range(0, len(source), max(1, len(source) // 256))]
            lengths = [len(loader.frames.prompt.write(row.text, row.answer).ids) for row in some]
            positions += min(sum(lengths) / len(some), config.sequences.context) * len(source)
        if config.optim.batch_tokens:
            positions = min(positions, config.optim.steps * config.optim.batch_tokens)
        size_gb = positions * bytes_per_position(self.width) / 1e9
        limit_gb = config.objective.teacher_cache_gb
        there_gb = sum(path.stat().st_size for path in self.folder.glob("part-*.safetensors")) / 1e9
        size = f"{size_gb:.3g} GB ({positions:,.0f} positions of {bytes_per_position(self.width):,} bytes)"
        if size_gb > limit_gb:
            raise SaladError(
                f"objective.teacher_cache would grow to {size} in {self.folder}, and {limit_gb:g} GB are allowed: agree with "
                f"--set objective.teacher_cache_gb={int(size_gb) + 1}, or set objective.teacher_cache=false"
            )
        return f"teacher cache: up to {size} in {self.folder}; {len(self):,} texts, {there_gb:.3g} GB, are there"

    def record(self, batch: Batch, model: Any) -> TeacherRecord:
        """The record at the batch's N positions, on the batch's device; the teacher reads only texts that are new."""
        rows, samples = batch.text_rows_N.cpu(), batch.sample_N.cpu()
        device = batch.text_rows_N.device
        parts = [_nothing(self.width)]
        for number, (key, start, length) in enumerate(batch.texts):
            wanted = rows[samples == number] - start
            if not len(wanted):
                continue
            if key not in self._texts and key not in self._new:
                self._make(key, batch.text_ids_BS.flatten()[start : start + length], model)
            known = self._new.get(key) or self._read(key)
            parts.append(TeacherRecord(*(x[wanted] for x in known)))
        with without_autocast(device):  # which has no way to join float16
            return TeacherRecord(*(torch.cat([p.to(device) for p in some]) for some in zip(*parts, strict=True)))

    def _make(self, key: str, ids: Tensor, model) -> None:
        teacher = model.teacher
        record = cache_rows(teacher.hidden(ids[None])[0, :-1], teacher.output_head, model.vocab_size)
        self._new[key] = TeacherRecord(*(x.cpu() for x in record))
        self._new_bytes += sum(x.nbytes for x in record)
        if self._new_bytes > FLUSH_BYTES:
            self.write()

    def _read(self, key: str) -> TeacherRecord:
        path, start, stop, checksum = self._texts[key]
        try:
            if path not in self._open:
                if len(self._open) == OPEN_FILES:
                    self._open.pop(next(iter(self._open)))
                self._open[path] = safe_open(path, "pt").__enter__()
            record = TeacherRecord(*(self._open[path].get_slice(name)[start:stop] for name in TeacherRecord._fields))
        except (SafetensorError, OSError, IndexError, TypeError) as error:
            raise SaladError(f"{path} cannot be read ({error}): remove it, and its texts are made again") from None
        if _checksum(record) != checksum:
            raise SaladError(
                f"{path} has changed since it was written (the checksum of a record is wrong): remove it, and its texts are "
                "made again"
            )
        return record

    def write(self) -> None:
        """Write what is new. Raises SaladError where the disk does not take it."""
        if not self._new:
            return
        texts, at = {}, 0
        for key, record in self._new.items():
            texts[key] = (at, at + len(record.scale_N), _checksum(record))
            at += len(record.scale_N)
        joined = [torch.cat(some) for some in zip(*self._new.values(), strict=True)]
        path = self.folder / f"part-{uuid.uuid4().hex[:12]}.safetensors"
        try:
            atomic.write_bytes(path, save(dict(zip(TeacherRecord._fields, joined, strict=True)), {"texts": json.dumps(texts)}))
        except OSError as error:
            raise SaladError(f"{path} cannot be written: {os.strerror(error.errno or 0)}; make room and resume") from None
        self._texts |= {key: (path, *where) for key, where in texts.items()}
        self._new, self._new_bytes = {}, 0


def _checksum(record: TeacherRecord) -> str:
    total = xxhash.xxh3_128()
    for tensor in record:
        total.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _nothing(width: int) -> TeacherRecord:
    return TeacherRecord(
        torch.empty(0, width, dtype=torch.float16),
        torch.empty(0),
        torch.empty(0),
        torch.empty(0, TOP, dtype=torch.int32),
        torch.empty(0, TOP),
    )
