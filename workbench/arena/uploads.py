"""The one folder that the app serves: uploads and sounds. It goes when the app ends; what a killed app has left, the next
start removes. And the check that a path which a visitor names is a file of that folder."""

import atexit
import fcntl
import os
import re
import shutil
import stat
import tempfile
from pathlib import Path

import store

PREFIX, LOCK = "salad-arena-", ".lock"
_held: dict[Path, int] = {}  # folders of this process, and their locks


def folder() -> Path:
    """This process's folder, made when it is first asked for, and named in GRADIO_TEMP_DIR."""
    given = os.environ.get("GRADIO_TEMP_DIR")
    if given and Path(given) in _held:
        return Path(given)
    parent = Path(given or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(parent)
    made = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent)).resolve()
    descriptor = os.open(made / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    _held[made] = descriptor
    os.environ["GRADIO_TEMP_DIR"] = str(made)
    atexit.register(remove, made)
    return made


def remove(made: Path) -> None:
    """Remove a folder of this process, with all that is in it."""
    shutil.rmtree(made, ignore_errors=True)
    if (descriptor := _held.pop(made, None)) is not None:
        os.close(descriptor)


def remove_abandoned(parent: Path) -> list[Path]:
    """Remove this account's folders that no process holds: their apps were killed. Returns them."""
    removed = []
    for folder in parent.glob(PREFIX + "*"):
        try:
            about = folder.lstat()
            if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
                continue
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # no lock yet: one that is being made, or a folder of someone else's
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
        except OSError:  # its app is running
            pass
        finally:
            os.close(descriptor)
    return removed


def size(made: Path) -> int:
    """The bytes of a folder's files."""
    total = 0
    for place, _, names in os.walk(made):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # gone meanwhile
                continue
    return total


def uploaded(path: object) -> Path:
    """`path`, where it names a regular file that was uploaded to this app; else a StoreError in one line.

    Where the file is used this is asked, whatever has been asked before: a path is a string, leads to this process's
    folder without a link on its way out, and is no folder, pipe, device or link."""
    if not isinstance(path, str):
        raise store.StoreError("a recording is named by the path that its upload gave")
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:", path):
        raise store.StoreError("addresses are not fetched: upload the file")
    try:
        own = folder()
        whole = Path(os.path.abspath(path))
        about = whole.lstat()
        inside = whole.is_relative_to(own) and whole.resolve() == whole
    except (OSError, ValueError):  # not there, too long a name, a NUL
        raise store.StoreError("only an uploaded file can be asked: upload it first") from None
    if not inside or not stat.S_ISREG(about.st_mode) or whole.name == LOCK:
        raise store.StoreError("only an uploaded file can be asked: upload it first")
    return whole
