"""From a causal LM's last hidden states to its logits, for everything here that computes logits by itself.

Most models multiply by a matrix. Granite divides the product by `logits_scaling`, HyperCLOVA X multiplies by a number of that
name, Cohere multiplies by `logit_scale`, MiniCPM3 divides the hidden states before it, Phi and GPT-J add a bias, Gemma 2 and
RecurrentGemma bend large values with a tanh, BERT's family transforms the hidden states first. What a model does is therefore
found by running it, not by names, and what was found is compared with the model's own logits: a head that is not understood is
refused where the model is loaded, never computed wrongly.
"""

import math
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from salad.errors import SaladError
from salad.models.packing import decode
from salad.objective.projection import Head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE = 12  # tokens that a model reads for this
LOUD = 1e4  # how much larger than its own the head's input is made, to see whether large logits are bent
TOLERANCE = {torch.float32: 2e-4, torch.float64: 2e-4, torch.bfloat16: 3e-2, torch.float16: 1e-2}  # of the largest logit


@dataclass(frozen=True)
class HeadForm:
    """logits = bend(scale * (W @ before(h)) + bias_scale * b): what a model does besides its matrix W and bias b.

    `before`: a module between the decoder and the matrix, or None. `soft_cap`: c of bend(x) = c * tanh(x / c), or None."""

    before: nn.Module | None = None
    scale: float = 1.0
    bias_scale: float = 1.0
    soft_cap: float | None = None


_forms: "weakref.WeakKeyDictionary[nn.Module, HeadForm]" = weakref.WeakKeyDictionary()


def understand(llm: "PreTrainedModel", name: str) -> None:
    """Find out how `llm` makes logits, once, and check it against its own forward pass; SaladError where that fails."""
    if llm not in _forms and not any(parameter.is_meta for parameter in llm.parameters()):
        try:
            _forms[llm] = _found(llm)
        except (_NotUnderstood, RuntimeError, TypeError, ValueError, AttributeError) as error:  # what its own code may raise
            raise SaladError(
                f"LLM {name!r} ({type(llm).__name__}) cannot be used: how it makes logits of its hidden states is not "
                f"understood ({_line(error)}), so its divergences would be wrong; take another LLM"
            ) from None


def form_of(llm: "PreTrainedModel") -> HeadForm:
    """What `understand` found; for a model on the meta device, where nothing can be run, a plain matrix."""
    if llm not in _forms:
        understand(llm, type(llm).__name__)
    return _forms.get(llm, HeadForm())


def hidden_of(llm: "PreTrainedModel", **inputs) -> torch.Tensor:
    """The hidden states [B, T, H] that the output matrix is multiplied with. `inputs`: those of `salad.models.packing.decode`."""
    return before_head(llm, decode(llm, **inputs))


def before_head(llm: "PreTrainedModel", last_hidden: torch.Tensor) -> torch.Tensor:
    """The decoder's last hidden states as the output matrix takes them."""
    before = form_of(llm).before
    return last_hidden if before is None else before(last_hidden)


def head_of(llm: "PreTrainedModel") -> Head:
    """The output head as `salad.objective` takes it, LoRA on it included where that is switched on."""
    form, out = form_of(llm), llm.get_output_embeddings()
    weight, bias = out.weight, getattr(out, "bias", None)
    if isinstance(out, BaseTunerLayer) and not out.disable_adapters:
        for adapter in out.active_adapters:
            weight = weight + cast(Any, out).get_delta_weight(adapter).to(weight.dtype)
    return Head(weight, None if bias is None else bias * form.bias_scale, form.scale, form.soft_cap)


# --- finding out ---


class _NotUnderstood(Exception):
    pass


def _line(error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return reason if isinstance(error, _NotUnderstood) else f"it cannot be run: {reason}"


@torch.no_grad()
def _found(llm: "PreTrainedModel") -> HeadForm:
    out = llm.get_output_embeddings()
    if not isinstance(getattr(out, "weight", None), torch.Tensor):
        raise _NotUnderstood("it has no output matrix")
    weight, bias = out.weight, getattr(out, "bias", None)
    size = min(weight.shape[0], cast(torch.Tensor, llm.get_input_embeddings().weight).shape[0])
    ids = torch.linspace(0, size - 1, PROBE, device=weight.device).long()[None]
    other = ids.clone()
    other[0, -1] = ids[0, 0]
    trains = llm.training
    llm.eval()
    try:
        quiet, loud = _run(llm, out, ids), _run(llm, out, ids, LOUD)
        earlier = llm.get_decoder()(input_ids=other, use_cache=False).last_hidden_state[:, :-1]
        embedded = llm.get_input_embeddings()(ids)
        given = llm.get_decoder()(inputs_embeds=embedded, use_cache=False).last_hidden_state
        try:  # what speech gives it is no token's embedding
            llm.get_decoder()(inputs_embeds=embedded * 1.5, use_cache=False)
        except RuntimeError:
            raise _NotUnderstood("it reads the embeddings of tokens only, which speech has none of") from None
    finally:
        llm.train(trains)
    tolerance = TOLERANCE[weight.dtype]
    if not _close(earlier, quiet.hidden[:, :-1], tolerance):
        raise _NotUnderstood("it reads the tokens that come after: it is no causal LM")
    if not _close(given, quiet.hidden, tolerance):
        raise _NotUnderstood("it reads token ids otherwise than their embeddings")
    before, scale_in = _before(quiet)
    plain = nn.functional.linear(quiet.into, weight, bias)
    if not _close(quiet.out, plain, tolerance):
        raise _NotUnderstood(f"its {type(out).__name__} is no matrix with a bias")
    if quiet.logits.shape[-1] != weight.shape[0]:
        raise _NotUnderstood(f"it has {quiet.logits.shape[-1]} logits and an output matrix of {weight.shape[0]} rows")
    numbers = _numbers(llm.config)
    cap = _soft_cap(loud, numbers)
    scale_out = _scale(quiet, cap, numbers)
    # by the measured numbers: computed anew from the decoder's hidden states, at both loudnesses
    form = HeadForm(before, _exact(scale_in * scale_out, numbers, weight.dtype), scale_out, cap)
    head = Head(weight, None if bias is None else bias * form.bias_scale, form.scale, form.soft_cap)
    mine = head.logits(quiet.hidden if before is None else before(quiet.hidden))
    if not _close(mine, quiet.logits, tolerance):
        gap = float((mine - quiet.logits.float()).abs().max())
        raise _NotUnderstood(f"its logits differ by up to {gap:.3g} from those computed here")
    return form


@dataclass
class _Run:
    """What passed by: the decoder's hidden states, what went into the output matrix and came out, and the logits."""

    hidden: torch.Tensor
    into: torch.Tensor
    out: torch.Tensor
    logits: torch.Tensor
    between: list[tuple[nn.Module, torch.Tensor, torch.Tensor]]


def _run(llm: "PreTrainedModel", out: nn.Module, ids: torch.Tensor, louder: float = 1.0) -> _Run:
    seen: dict = {"between": []}
    decoder = llm.get_decoder()
    inside = set(decoder.modules())

    def after_decoder(module, args, result):
        seen["hidden"] = result.last_hidden_state if hasattr(result, "last_hidden_state") else result[0]

    def into_head(module, args):
        seen["into"] = args[0] * louder
        return (seen["into"], *args[1:])

    def after_head(module, args, result):
        seen["out"] = result

    def after_other(module, args, result):
        if args and isinstance(args[0], torch.Tensor) and isinstance(result, torch.Tensor):
            seen["between"].append((module, args[0], result))

    hooks = [decoder.register_forward_hook(after_decoder), out.register_forward_pre_hook(into_head),
             out.register_forward_hook(after_head)]  # fmt: skip
    hooks += [m.register_forward_hook(after_other) for m in llm.modules() if m not in inside and m is not llm and m is not out]
    try:
        logits = llm(input_ids=ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    missing = [part for part in ("hidden", "into", "out") if part not in seen]
    if missing:
        raise _NotUnderstood("its forward pass does not go through its decoder and its output matrix")
    return _Run(logits=logits, **seen)


def _before(run: _Run) -> tuple[nn.Module | None, float]:
    """What makes the matrix's input of the hidden states: (a module or None, a factor)."""
    if run.into.shape == run.hidden.shape:
        if torch.equal(run.into, run.hidden):
            return None, 1.0
        ratio = _ratio(run.hidden, run.into)
        if _close(run.hidden * ratio, run.into, TOLERANCE[run.into.dtype]):
            return None, ratio
    for module, given, made in run.between:
        if given.shape == run.hidden.shape and torch.equal(given, run.hidden) and torch.equal(made, run.into):
            return module, 1.0
    raise _NotUnderstood("what it does to the hidden states before its output matrix is not one module")


def _soft_cap(loud: _Run, numbers: list[float]) -> float | None:
    """The largest logit where the matrix gives far larger ones; None where logits grow with it."""
    largest, reached = float(loud.out.abs().max()), float(loud.logits.abs().max())
    grown = loud.out.abs() > 0.1 * largest
    ratios = loud.logits[grown].float().abs() / loud.out[grown].float().abs()
    if not math.isfinite(reached) or reached == 0:
        raise _NotUnderstood("its logits are not finite where the output matrix gives large values")
    return None if float(ratios.max() / ratios.min()) < 1.05 else _exact(reached, numbers, loud.logits.dtype)


def _scale(run: _Run, cap: float | None, numbers: list[float]) -> float:
    """The factor between what the matrix gives and the logits, before they are bent."""
    made, logits = run.out.float().flatten(), run.logits.float().flatten()
    if cap is not None:
        some = (logits.abs() < 0.9 * cap) & (logits.abs() > 1e-4 * cap)
        if not some.any():
            raise _NotUnderstood(f"all of its logits lie at its soft cap of {cap:g}")
        made, logits = made[some], cap * torch.atanh(logits[some] / cap)
    return _exact(_ratio(made, logits), numbers, run.logits.dtype)


def _ratio(one: torch.Tensor, other: torch.Tensor) -> float:
    """The least-squares factor from `one` to `other`."""
    one, other = one.double().flatten(), other.double().flatten()
    return float((one @ other) / (one @ one).clamp_min(torch.finfo(torch.float64).tiny))


def _numbers(config) -> list[float]:
    """1, and the numbers of a configuration with their inverses: what a measured factor may really be."""
    values = {**config.to_dict(), **config.get_text_config().to_dict()}.values()
    plain = [float(v) for v in values if isinstance(v, (int, float)) and not isinstance(v, bool) and v]
    return [1.0, *(number for v in plain for number in (v, 1 / v))]


def _exact(measured: float, numbers: list[float], dtype: torch.dtype) -> float:
    """The configuration's number that a measured one is, rounding aside; else the measured one."""
    near = min(numbers, key=lambda number: abs(number - measured))
    limit = 1e-4 if dtype in (torch.float32, torch.float64) else 1e-2
    return near if abs(near - measured) <= limit * abs(measured) else measured


def _close(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> bool:
    one, other = one.float(), other.float()
    return bool((one - other).abs().max() <= tolerance * other.abs().max().clamp_min(1e-6))
