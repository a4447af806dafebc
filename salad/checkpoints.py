"""A run's checkpoints: `checkpoints/step-<n>/`, safetensors and JSON only, whole or not there.

model/ (trained tensors; names and SHA-256 of the frozen parts) · optimizer.safetensors · state.json (optimizer
settings, sampler, counters) · manifest.json, written last, with the SHA-256 of every file.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from salad.errors import SaladError
from store import atomic


def save(run_path: Path, step: int, model, optimizer, state: dict) -> Path:
    """Write a checkpoint under a temporary name and rename it. `state` is JSON-able. Returns its folder."""
    folder = run_path / "checkpoints" / f"step-{step}"
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        model.save_trained(temporary / "model")
        kept = optimizer.state_dict()
        tensors = {f"{i}.{name}": torch.as_tensor(x) for i, s in kept["state"].items() for name, x in s.items()}
        save_file(tensors or {"empty": torch.zeros(1)}, temporary / "optimizer.safetensors")
        atomic.write_json(temporary / "state.json", state | {"step": step, "param_groups": kept["param_groups"]})
        files = sorted(p for p in temporary.rglob("*") if p.is_file())
        told = {str(p.relative_to(temporary)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
        for path in files:
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        atomic.write_json(temporary / "manifest.json", {"step": step, "sha256": told})
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
        atomic.fsync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise SaladError(f"checkpoint {folder} could not be written: {error.strerror or error}") from error
    return folder


def verify(folder: Path) -> None:
    """SaladError unless the checkpoint is whole: every file of its manifest, with its SHA-256."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, told in manifest["sha256"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != told:
                raise SaladError(f"checkpoint {folder} is damaged: {name} has changed")
    except (OSError, ValueError, KeyError) as error:
        raise SaladError(f"checkpoint {folder} is damaged: {error}") from None


def restore(folder: Path, optimizer) -> dict:
    """Fill `optimizer` from a checkpoint and return its state.json."""
    state = json.loads((folder / "state.json").read_text())
    tensors = load_file(folder / "optimizer.safetensors")
    kept: dict = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        if key:
            kept.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": kept, "param_groups": state["param_groups"]})
    return state


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
    """Delete the checkpoints whose step is not in `keep`."""
    for folder in run_path.glob("checkpoints/step-*"):
        if _step(folder) not in keep:
            shutil.rmtree(folder)


def _step(folder: Path) -> int:
    return int(folder.name.partition("-")[2])
