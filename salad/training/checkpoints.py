"""A run's checkpoints: `checkpoints/step-<n>/`, safetensors and JSON only, whole or not there.

model/ (trained tensors; names and SHA-256 of the frozen parts) · optimizer.safetensors, of several processes one each
(AdamW's moments, and the float32 weights where the model computes in bfloat16) · state.json (sampler, counters, how it
was made) · manifest.json, written last, with the SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from salad.errors import SaladError
from salad.training.distributed import Processes, local, whole
from store import StoreError, atomic

if TYPE_CHECKING:
    from salad.models.speech_lm import SpeechLM


def save(
    run_path: Path, step: int, model: SpeechLM, optimizer: torch.optim.Optimizer, state: dict, processes: Processes | None = None
) -> Path:
    """Write a checkpoint under a temporary name and rename it; all processes of a run call it together.

    `state` is JSON-able. Returns its folder. A file that cannot be written (a full disk) is a SaladError in every
    process; what was written is removed, and the checkpoints before it stay."""
    processes = processes or Processes()
    folder = run_path / "checkpoints" / f"step-{step}"
    temporary = folder.with_name(f".{folder.name}.tmp")
    leads = processes.rank == 0
    trained = _trained(model, keep=leads)  # together: shards are put together

    def prepare():
        if leads:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)

    def write():
        save_file(_optimizer_tensors(model, optimizer), temporary / _optimizer_file(processes))
        if leads:
            model.save_trained(temporary / "model", trained)
            atomic.write_json(temporary / "state.json", state | {"step": step})

    def finish():
        if not leads:
            return
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        manifest = {}
        for path in files:
            with open(path, "rb") as file:
                manifest[str(path.relative_to(temporary))] = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
        atomic.write_json(temporary / "manifest.json", {"step": step, "sha256": manifest})
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        atomic.fsync_folder(folder.parent)

    for part in (prepare, write, finish):
        failure = None
        try:
            part()
        except (OSError, SafetensorError) as error:
            if leads:
                shutil.rmtree(temporary, ignore_errors=True)
            why = getattr(error, "strerror", None) or error
            before = latest(run_path)
            stands = f"{before.name} stands" if before else "there is none before it"
            failure = SaladError(f"checkpoint {folder} could not be written: {why}; {stands}. Make room and resume the run")
        processes.agree(failure)
    return folder


def _trained(model, keep: bool) -> dict[str, torch.Tensor]:
    """What is trained, by its name in the model, on the CPU in the type that the model is loaded in; {} without `keep`."""
    tensors = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            tensor = whole(parameter.detach())
            if keep:
                tensors[name] = tensor.to("cpu", model.dtype).contiguous()
    return tensors


def _optimizer_file(processes: Processes) -> str:
    if processes.world == 1:
        return "optimizer.safetensors"
    return f"optimizer-{processes.rank:04d}-of-{processes.world:04d}.safetensors"


def _parameters(optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _optimizer_tensors(model, optimizer) -> dict[str, torch.Tensor]:
    """`<number>.<name>`: this process's shards of the state of each parameter, in the optimizer's order."""
    tensors: dict[str, torch.Tensor] = {}
    for i, parameter in enumerate(_parameters(optimizer)):
        kept = {name: torch.as_tensor(x) for name, x in optimizer.state.get(parameter, {}).items()}
        if model.dtype != parameter.dtype:  # model/ is in its type: the float32 weights would be lost
            kept["weight"] = parameter.detach()
        tensors |= {f"{i}.{name}": local(tensor).contiguous() for name, tensor in kept.items()}
    return tensors or {"empty": torch.zeros(1)}


def verify(folder: Path) -> None:
    """SaladError unless the checkpoint is whole: every file of its manifest, with its SHA-256."""
    try:
        manifest = atomic.load_json(folder / "manifest.json")
        for name, expected in manifest["sha256"].items():
            with open(folder / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    raise SaladError(f"checkpoint {folder} is damaged: {name} has changed")
    except (OSError, StoreError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SaladError(f"checkpoint {folder} is damaged: {error}") from None


def state_of(folder: Path) -> dict:
    """Its state.json."""
    return atomic.load_json(folder / "state.json")


def restore(folder: Path, optimizer: torch.optim.Optimizer, processes: Processes | None = None) -> None:
    """Fill `optimizer`, and the parameters that it trains in float32, from a checkpoint of as many processes."""
    tensors = load_file(folder / _optimizer_file(processes or Processes()))
    parameters = _parameters(optimizer)
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        if not key:
            continue
        parameter = parameters[int(index)]
        if key == "weight":
            with torch.no_grad():
                local(parameter).copy_(tensor)
        elif tensor.shape == ():
            optimizer.state[parameter][key] = tensor.to(parameter.device)
        else:
            optimizer.state[parameter][key] = torch.zeros_like(parameter.detach())
            local(optimizer.state[parameter][key]).copy_(tensor)


def latest(run_path: Path) -> Path | None:
    """The newest whole checkpoint; damaged ones are passed over."""
    folders = sorted(run_path.glob("checkpoints/step-*/manifest.json"), key=lambda p: -_step(p.parent))
    for manifest in folders:
        try:
            verify(manifest.parent)
            return manifest.parent
        except SaladError:
            continue
    return None


def at(run_path: Path, step: int) -> Path:
    """The checkpoint of `step`, verified."""
    folder = run_path / "checkpoints" / f"step-{step}"
    if not (folder / "manifest.json").is_file():
        have = ", ".join(str(_step(p.parent)) for p in sorted(run_path.glob("checkpoints/step-*/manifest.json")))
        raise SaladError(f"run {run_path.name} has no checkpoint of step {step}; it has {have or 'none'}")
    verify(folder)
    return folder


def prune(run_path: Path, keep: set[int]) -> None:
    """Delete the checkpoints whose step is not in `keep`, and what a killed process left half-written."""
    for folder in run_path.glob("checkpoints/step-*"):
        if _step(folder) not in keep:
            shutil.rmtree(folder)
    for folder in run_path.glob("checkpoints/.step-*.tmp"):
        shutil.rmtree(folder, ignore_errors=True)


def _step(folder: Path) -> int:
    return int(folder.name.partition("-")[2])
