"""Tools that a test needs beyond pip: each has a marker, and where one is missing the test is skipped, saying so.

`make test` on a machine with Python, make and git alone runs everything that bears none of these markers. With
SALAD_REQUIRE_ALL=1 every skip is a failure (conftest.py), but for `data` and `real` where ../shared is absent."""

import contextlib
import ctypes
import fnmatch
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

sys.modules["tools"] = sys.modules["tests.tools"] = sys.modules[__name__]  # imported by either name, one state
ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
TINY = "tests.tiny_run"  # a small real run, started as `python -m tests.tiny_run`
PACKAGES = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]  # of this environment
MODELS = Path(os.environ.get("SALAD_MODELS") or "~/.cache/salad/models").expanduser()

# the marker of each tool; pyproject.toml says what the markers mean
MARKER_OF = {
    "chromium": "chromium", "g++": "compiler", "rsync": "rsync",
    "munged": "slurm", "sbatch": "slurm", "slurmctld": "slurm", "slurmd": "slurm",
    "ssh": "sshd", "ssh-keygen": "sshd", "sshd": "sshd", "useradd": "sshd", "fish": "sshd", "tcsh": "sshd",
}  # fmt: skip
MARKERS = {*MARKER_OF.values(), "sky", "root", "onnx", "data", "real"}
NEEDS_SHARED = {"data", "real"}
ROUNDS = int(os.environ.get("SALAD_FAULT_ROUNDS", "1"))  # how often faults are repeated: once, or 20 times in `make test-all`
LONG = ROUNDS >= 20
running: pytest.Item | None = None  # the test that runs now; conftest.py keeps it


def require(*tools: str) -> None:
    """Skip unless every tool is on the PATH (or where Debian keeps daemons); fail where the test lacks its marker."""
    for tool in tools:
        if tool not in MARKER_OF:
            pytest.fail(f"tests/tools.py has no marker for {tool}; add one to MARKER_OF, and to pyproject.toml")
        demand_marker(MARKER_OF[tool], f"require({tool!r})")
    for folder in ("/usr/sbin", "/sbin"):
        if folder not in os.environ["PATH"].split(os.pathsep):
            os.environ["PATH"] += f"{os.pathsep}{folder}"
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        refuse(f"{', '.join(missing)} not installed; .ci/tools.sh installs it on Debian", MARKER_OF[missing[0]])


def refuse(reason: str, marker: str) -> None:
    """Skip this test, which bears `marker`, for a reason."""
    demand_marker(marker, f"refuse({reason!r})")
    pytest.skip(reason)


def demand_marker(marker: str, caller: str) -> None:
    """Fail the running test unless it bears the marker: without it, it would run where the tool cannot be."""
    if running is not None and running.get_closest_marker(marker) is None:
        pytest.fail(f"{running.nodeid} calls {caller}, so it needs @pytest.mark.{marker}", pytrace=False)


@contextlib.contextmanager
def obeying_permissions():
    """This thread, and what it starts, may write and read only what the modes of files allow, root too.

    Root stays root and so the owner of its files: it can still read a checkout in a folder that is closed to others."""

    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

    libc, header, sets = ctypes.CDLL(None, use_errno=True), Header(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(ctypes.byref(header), sets) == 0
    before = sets[0]
    sets[0] &= ~0b110  # of the effective ones, CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert libc.capset(ctypes.byref(header), sets) == 0
    try:
        yield
    finally:
        sets[0] = before
        assert libc.capset(ctypes.byref(header), sets) == 0


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    """A disk of `size` (2m) mounted on the folder; skips unless root may mount, so the marker is `root`."""
    demand_marker("root", "small_disk()")
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        refuse("only root may mount a disk, and not everywhere", "root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def die_at(number: int, name: str = "*") -> None:
    """Kill this process with -9 just before it opens for writing, or renames to, a file called `name` (a pattern) for the
    `number`-th time from now: the same place on a machine of any speed. Call it in a process that is there to be killed."""
    seen = 0

    def count(event: str, details: tuple) -> None:
        nonlocal seen
        if event == "os.rename":
            path = details[1]
        elif event == "open" and details[2] & (os.O_WRONLY | os.O_RDWR):
            path = details[0]
        else:
            return
        seen += fnmatch.fnmatch(os.path.basename(os.fsdecode(path)) if not isinstance(path, int) else "", name)
        if seen >= number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def compiler() -> None:
    """What torch.compile needs on CPU: a C++ compiler, and Python's headers, which its kernels include."""
    require("g++")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        refuse("Python's headers are not installed (python3-dev); .ci/tools.sh installs them on Debian", "compiler")


def onnx() -> None:
    """Skip unless the extra `onnx` is installed."""
    demand_marker("onnx", "onnx()")
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        refuse(f"{', '.join(missing)} not installed: pip install -e '.[onnx]'", "onnx")


def shared(name: str) -> Path:
    """A file or folder of ../shared (`data/piqa`, `cases/choices.jsonl`); the marker is `data`."""
    demand_marker("data", f"shared({name!r})")
    if not (SHARED / name).exists():
        refuse(f"../shared/{name} is not here", "data")
    return SHARED / name


def real_model(name: str) -> Path:
    """The folder of real weights `name` (such as `whisper-tiny.en`), made by ../shared/tools/real_models.py in
    $SALAD_MODELS, by default ~/.cache/salad/models; the marker is `real`."""
    demand_marker("real", f"real_model({name!r})")
    if not (MODELS / name).is_dir():
        refuse(f"{MODELS / name} is not here; ../shared/tools/real_models.py {MODELS} makes it", "real")
    return MODELS / name


class Lines(NamedTuple):
    """What a command line printed."""

    code: int
    out: str
    err: str


def mangled(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to three bits flipped, or parts of it removed, repeated, cut off, or put in at random."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 3))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at : at + rng.randrange(1, 40)]
        elif kind == 2:
            data[at:at] = rng.randbytes(rng.randrange(1, 40))
        elif kind == 3:
            data[at:at] = data[max(0, at - rng.randrange(1, 300)) : at]
        else:
            data = data[:at]
    return bytes(data)
