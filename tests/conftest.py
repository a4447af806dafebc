"""Environment of every test: offline, no telemetry, one thread, no user settings, Ctrl-C as in a terminal.

With SALAD_REQUIRE_ALL=1 (CI) a skipped test is a failed one: see tests/tools.py."""

import atexit
import os
import shutil
import signal
import tempfile

import pytest
import tools

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
}
os.environ.pop("SALAD_LAB", None)
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="salad-state-")  # what launches note of the user is not this user's
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)
# what a script starts in the background inherits an ignored SIGINT, and would hand it on to whatever a test starts
signal.signal(signal.SIGINT, signal.default_int_handler)


# files that take a minute or more begin first, so that at the end no worker waits for one of them
LONGEST = (
    "test_demo_interrupted.py", "test_findings.py", "test_passes.py", "test_training_faults.py", "test_store_faults.py",
    "test_notebooks.py", "test_demo.py", "test_docs_run.py", "test_browser.py", "test_launch_slurm.py", "test_launch_ssh.py",
)  # fmt: skip


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))  # pytest-xdist keeps this order: Makefile


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """The finished lab of `salad demo --smoke` (demo_lab.Demo); a test that changes it takes a copy."""
    import demo_lab

    return demo_lab.finished(tmp_path_factory)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    tools.running = item
    try:
        return (yield)
    finally:
        tools.running = None
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a run in this process has latched it, and forks would inherit that


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    if item.get_closest_marker("chromium"):  # before its fixtures make a lab and start a server
        tools.require("chromium")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("SALAD_REQUIRE_ALL") == "1":
        markers = {mark.name for mark in item.iter_markers()}
        if not (markers & tools.NEEDS_SHARED and not tools.SHARED.is_dir()):
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            report.outcome, report.longrepr = "failed", f"{item.nodeid}: SALAD_REQUIRE_ALL=1, but {reason}"
    return report
