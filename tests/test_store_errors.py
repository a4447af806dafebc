"""Every call by which the store writes (open, write, fsync, rename, unlink, mkdir …), Parquet's and DuckDB's among them, fails in
turn with ENOSPC and with EIO: once, from then on, or after half of the bytes. Nothing is half-written, what is said is one line,
and the same call afterwards does what was asked. SALAD_FAULT_ROUNDS from 20 on tries every call."""

import json
import os
import subprocess
import sys

import pytest
from failing_writes import OPERATIONS
from tools import ROOT, require

ROUNDS = int(os.environ.get("SALAD_FAULT_ROUNDS", "3"))


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    require("g++")
    path = tmp_path_factory.mktemp("failing") / "failing_writes.so"
    source = ROOT / "tests/fixtures/failing_writes.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", path, source, "-ldl"], check=True)
    return path


@pytest.mark.compiler
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_write_that_fails_leaves_nothing_half_written_and_is_one_line(library, tmp_path, operation):
    command = [sys.executable, "-m", "tests.failing_writes", operation, str(tmp_path), str(ROUNDS)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"LD_PRELOAD": str(library)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["places"] >= 4 and result["tried"] >= min(4 * result["places"], 2 * ROUNDS)
    assert result["wrong"] == []
