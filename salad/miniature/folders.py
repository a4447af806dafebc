"""Model folders that are there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from store.atomic import fsync_folder


def save_folder(folder: Path | str, *saves: Callable[[Path], object]) -> Path:
    """Let each of `saves` write into a new folder, then put that in the place of `folder`.

    A reader sees the old folder, for an instant none, or the new one; never half of one."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The old folder waits inside this one, so that a kill at any moment leaves one hidden folder at most.
    workplace = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
    try:
        new = workplace / "new"
        new.mkdir()
        for save in saves:
            save(new)
        for file in (path for path in new.rglob("*") if path.is_file()):
            with open(file, "rb") as handle:
                os.fsync(handle.fileno())
        if folder.exists():
            folder.rename(workplace / "old")
        new.rename(folder)
        fsync_folder(folder.parent)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    return folder
