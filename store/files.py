"""The files of a lab that are neither units nor events: checkpoints and encoder frames, by the manifests beside them; corpora,
tasks, models and cuts, by what the log says that they were.

`salad verify` reads all of them. What it sees of a corpus, task, model or list of cuts for the first time it logs, with its
sha256; a file whose bytes changed while its time stood still was changed by no program, and is told as damaged. One that was
written anew is logged anew."""

import json
import re
from pathlib import Path

from . import history
from .errors import Damage
from .verification import relative, sha256

ROOMS = {
    "corpora": "corpora/**/*.parquet",
    "tasks": "tasks/**/*.jsonl",
    "models": "models/**/*",
    "cuts": "speech/**/*.jsonl",
}  # table name in `damaged` -> what is looked at


def _manifest(path: Path) -> dict | str:
    try:
        manifest = json.loads(path.read_bytes())
        return manifest if isinstance(manifest, dict) else "is no manifest"
    except (ValueError, RecursionError):
        return "is not JSON"
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _compare(lab: Path, table: str, path: Path, told: str) -> list[Damage]:
    try:
        if sha256(path) == told:
            return []
        reason = "its bytes changed: sha256 does not agree with its manifest"
    except FileNotFoundError:
        reason = "is missing"
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
    return [Damage(table, relative(lab, path), reason)]


def checkpoints(lab: Path) -> list[Damage]:
    """Files of checkpoints that are not what `manifest.json`, written last, says."""
    found = []
    for path in sorted(lab.glob("runs/*/checkpoints/*/manifest.json")):
        manifest = _manifest(path)
        listed = manifest.get("sha256") if isinstance(manifest, dict) else None
        if not isinstance(listed, dict):
            found.append(Damage("checkpoints", relative(lab, path), manifest if isinstance(manifest, str) else "lists no files"))
            continue
        for name, told in sorted(listed.items()):
            if Path(name).is_absolute() or ".." in Path(name).parts:
                found.append(Damage("checkpoints", relative(lab, path), f"names {name!r:.80}, which is outside its folder"))
            else:
                found += _compare(lab, "checkpoints", path.parent / name, str(told))
    return found


def frames(lab: Path) -> list[Damage]:
    """Encoder frames that are not what the manifest beside them says."""
    found = []
    for path in sorted(lab.glob("frames/*/*/*.json")):
        manifest = _manifest(path)
        told = manifest.get("sha256") if isinstance(manifest, dict) else None
        if isinstance(told, str) and re.fullmatch("[0-9a-f]{64}", told):
            found += _compare(lab, "frames", path.with_suffix(".safetensors"), told)
        else:
            why = manifest if isinstance(manifest, str) else "has no sha256"
            found.append(Damage("frames", relative(lab, path), why))
    return found


def rooms(lab: Path, past: history.History) -> tuple[list[Damage], list[dict]]:
    """Corpora, tasks, models and cuts whose bytes changed by themselves, and entries for the log of what is new."""
    damaged, entries = [], []
    for table, pattern in ROOMS.items():
        for path in sorted(lab.glob(pattern)):
            if not path.is_file() or path.is_symlink() or path.name.startswith("."):
                continue
            name = relative(lab, path)
            try:
                stat, sha = path.stat(), sha256(path)
            except OSError as error:
                damaged.append(Damage(table, name, f"cannot be read ({error.strerror})"))
                continue
            known = past.files.get(name, (None, {}))[1]
            if known.get("sha256") == sha:
                continue
            if known.get("mtime_ns") == stat.st_mtime_ns:
                seen = str(known.get("at", ""))[:19]
                reason = f"its bytes changed since {seen} while its time stood still; prepare it again, or copy it back"
                damaged.append(Damage(table, name, reason))
            else:
                entries.append({"op": "file", "path": name, "sha256": sha, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns})
    return damaged, entries
