"""The tests' own rules: a tool is asked for under its marker, and where everything must run a skip is a failure."""

import signal
import subprocess
import sys

import pytest
import tools
from tools import ROOT

MODULE = """
import signal
import pytest
import tools

def test_unmarked():
    tools.require({tool!r})

@pytest.mark.{marker}
def test_marked():
    tools.require({tool!r})

def test_skips():
    pytest.skip("no reason")

@pytest.mark.data
def test_data():
    tools.SHARED = tools.Path("/nowhere")
    tools.shared("data")

def test_ctrl_c():
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""


def outcomes(folder, path: str, **env) -> dict[str, str]:
    """Run MODULE under tests/conftest.py as a script's background job does, with SIGINT ignored: {test: outcome}."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "--rootdir", folder, "-c", "/dev/null", folder],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PATH": path, "HOME": str(folder), **env},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    by_name = {}
    for line in done.stdout.splitlines():
        outcome, _, rest = line.partition(" ")
        if outcome in ("PASSED", "FAILED", "SKIPPED", "ERROR") and "::" in rest:
            by_name[rest.partition("::")[2].partition(" ")[0]] = outcome
        elif outcome == "SKIPPED":
            by_name[f"skipped {rest.partition(': ')[2]}"] = outcome
    assert by_name, done.stdout + done.stderr
    return by_name


@pytest.fixture
def folder(tmp_path):
    for name in ("conftest.py", "tools.py"):
        (tmp_path / name).symlink_to(ROOT / "tests" / name)
    return tmp_path


@pytest.mark.parametrize(("tool", "marker"), [("rsync", "rsync"), ("sshd", "sshd"), ("sbatch", "slurm")])
def test_a_tool_is_asked_for_under_its_marker_or_the_test_fails(folder, tool, marker):
    (folder / "test_it.py").write_text(MODULE.format(tool=tool, marker=marker))
    binaries = folder / "bin"
    binaries.mkdir()
    (binaries / tool).write_text("#!/bin/sh\n")
    (binaries / tool).chmod(0o755)
    there = outcomes(folder, str(binaries))
    assert there["test_unmarked"] == "FAILED" and there["test_marked"] == "PASSED"
    assert there["test_ctrl_c"] == "PASSED"  # SIGINT was ignored by whoever started this


def test_where_everything_must_run_a_skip_is_a_failure_but_for_absent_shared_data(folder):
    (folder / "test_it.py").write_text(MODULE.format(tool="rsync", marker="rsync").replace("rsync'", "sbatch-none'"))
    result = outcomes(folder, "/nowhere")
    assert result["test_unmarked"] == "FAILED"  # a tool without a marker of its own
    (folder / "test_it.py").write_text(MODULE.format(tool="rsync", marker="rsync"))
    relaxed, strict = outcomes(folder, "/nowhere"), outcomes(folder, "/nowhere", SALAD_REQUIRE_ALL="1")
    assert [name for name, outcome in relaxed.items() if outcome == "FAILED"] == ["test_unmarked"]
    assert strict["test_marked"] == strict["test_skips"] == "FAILED"
    assert "test_data" not in strict and any("../shared/data is not here" in name for name in strict)


def test_every_marker_of_a_tool_is_declared(pytestconfig):
    declared = {line.partition(":")[0] for line in pytestconfig.getini("markers")}
    assert tools.MARKERS <= declared


def test_the_two_runs_of_ci_share_no_test_and_leave_none_out():
    line = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith("MARKED := "))
    assert set(line.removeprefix("MARKED := ").split(" or ")) == tools.MARKERS
