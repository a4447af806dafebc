"""Tools that a test needs beyond pip: where one is missing the test is skipped, saying so, or in CI it fails."""

import os
import shutil
import sysconfig
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
os.environ["PATH"] += f"{os.pathsep}/usr/sbin{os.pathsep}/sbin"  # where Debian keeps daemons
TINY = "tests.tiny_run"  # a small real run, started as `python -m tests.tiny_run`


def require(*tools: str) -> None:
    """Skip unless every tool is on the PATH (or a path that exists); with SALAD_REQUIRE_ALL=1 fail instead."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        refuse(f"{', '.join(missing)} not installed; .ci/tools.sh installs it on Debian")


def refuse(reason: str) -> None:
    """Skip this test for a reason; with SALAD_REQUIRE_ALL=1 fail it."""
    if os.environ.get("SALAD_REQUIRE_ALL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def compiler() -> None:
    """What torch.compile needs on CPU: a C++ compiler, and Python's headers, which its kernels include."""
    require("g++")
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        refuse("Python's headers are not installed (python3-dev); .ci/tools.sh installs them on Debian")


class Lines(NamedTuple):
    """What a command line said."""

    code: int
    out: str
    err: str
