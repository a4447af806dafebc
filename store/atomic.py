"""Write a file so that a reader sees the old bytes or the new ones, never a half of either."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from .errors import StoreError


def fsync_folder(folder: Path) -> None:
    """Flush a folder's entries, so that a rename survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path | str, data: bytes) -> Path:
    """Write `data` to `path` through a temporary name in the same folder: flushed, renamed, folder flushed.

    Raises OSError as the file system gives it; the temporary file is removed and the old file stays."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)
    return path


def load_json(path: Path | str) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises StoreError, in one line that names the file, where it cannot be read or holds anything else."""
    try:
        value = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: it is not JSON ({str(error).splitlines()[0]:.80})") from None
    if not isinstance(value, dict):
        raise StoreError(f"{path} is damaged: it holds no JSON object")
    return value


def write_json(path: Path | str, value: Any) -> Path:
    """`write_bytes` of `value` as JSON: UTF-8, keys sorted, indented, so that equal values are equal bytes."""
    text = json.dumps(value, ensure_ascii=False, sort_keys=True, indent=1, allow_nan=False)
    return write_bytes(path, (text + "\n").encode())
