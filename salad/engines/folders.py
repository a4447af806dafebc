"""Copies what is new of a folder to another folder on this machine's disks, as `rsync -rt` would, without needing it."""

import contextlib
import filecmp
import fnmatch
import os
import shutil
import tempfile
from pathlib import Path

LAST = ("manifest.json", "unit-*.json")  # what says that the files beside it are whole


def copy_new(source: Path | str, to: Path | str, only: tuple[str, ...] = (), compare: bool = False) -> None:
    """Make `to` hold every regular file of `source` (a file or a folder, with its subfolders); nothing is deleted.

    A file that has the same size and time there is left alone; with `compare`, the one that has the same bytes.
    `only`: patterns of names; then only files of the top folder that match one are copied. Each file appears whole,
    under its own name at once, and files that vouch for others come last. A file that vanishes meanwhile is skipped.
    Raises OSError."""
    source, to = Path(source), Path(to)
    if source.is_file():
        _copy_file(source, to, compare)
        return
    paths = []
    for folder, folders, names in os.walk(source):
        if only:
            folders.clear()
            names = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in only)]
        folders.sort()
        paths += [Path(folder, name) for name in sorted(names)]
    paths.sort(key=lambda path: any(fnmatch.fnmatch(path.name, pattern) for pattern in LAST))
    for path in paths:
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(FileNotFoundError):
                _copy_file(path, to / path.relative_to(source), compare)


def _copy_file(source: Path, to: Path, compare: bool) -> None:
    source_stat = source.stat()
    if to.exists():
        ours = to.stat()
        if ours.st_size == source_stat.st_size and (
            filecmp.cmp(source, to, shallow=False) if compare else ours.st_mtime_ns == source_stat.st_mtime_ns
        ):
            return
    to.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=to.parent, prefix=f".{to.name}.", suffix=".tmp")
    os.close(handle)
    try:
        shutil.copyfile(source, temporary)
        shutil.copymode(source, temporary)
        os.utime(temporary, ns=(source_stat.st_atime_ns, source_stat.st_mtime_ns))
        os.replace(temporary, to)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
