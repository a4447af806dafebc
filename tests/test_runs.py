"""The run folder: the same work is the same folder, and what a process says survives how it ends."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from salad.errors import SaladError
from salad.runs import PREEMPTED_CODE, Limits, Preempted, RunFolder, Stopped, running, seconds_since
from store import ids

CONFIG = {"kind": "stage1", "optim": {"steps": 4}}


@pytest.fixture
def run(tmp_path):
    return RunFolder.get_or_create(tmp_path, "stage1", "tiny", CONFIG)


def test_the_same_configuration_is_the_same_folder_and_a_repetition_another(tmp_path, run):
    assert run.run_id == ids.run_id(CONFIG, None, 0)
    run.status(state="queued")
    again = RunFolder.get_or_create(tmp_path, "stage1", "renamed", CONFIG)
    assert again.path == run.path and again.read_status()["state"] == "queued"
    assert again.record["recipe"] == "tiny"
    assert RunFolder.get_or_create(tmp_path, "stage1", "tiny", CONFIG, repetition=1).path != run.path
    assert RunFolder.get_or_create(tmp_path, "stage1", "tiny", CONFIG, parent_run_id="r1").path != run.path


def test_opening_what_is_not_there_or_damaged_is_one_line(tmp_path, run):
    for name in ("r000000000000", "../outside", "nonsense"):
        with pytest.raises(SaladError, match="no run"):
            RunFolder.open(tmp_path, name)
    (run.path / "config.json").write_text('{"config": ')
    with pytest.raises(SaladError, match="damaged"):
        RunFolder.open(tmp_path, run.run_id)


def test_status_merges_and_beats(run):
    run.status(state="starting", device="cpu")
    run.status(state="running", max_steps=10, step=0)
    content = run.read_status()
    assert (content["state"], content["device"], content["max_steps"]) == ("running", "cpu", 10)
    assert 0 <= seconds_since(content["heartbeat_at"]) < 5
    before = (run.path / "status.json").stat().st_mtime_ns
    for _ in range(2000):
        run.heartbeat()
    assert (run.path / "status.json").stat().st_mtime_ns == before


def test_status_is_whole_json_at_every_moment_though_threads_write_and_readers_read(run):
    run.status(state="running")
    stop = threading.Event()

    def write(number):
        while not stop.is_set():
            run.status(device=f"cpu{number}-{time.monotonic_ns()}")

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            assert json.loads((run.path / "status.json").read_text())["state"] == "running"
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_resume_supersedes_the_lines_that_it_does_again(run):
    first = run.metrics_writer(0)
    for step in range(1, 8):
        first.log(step, step * 10, loss=1.0)
    (run.path / "metrics-0.jsonl").open("a").write('{"step": 8, "tok')  # killed while writing
    second = run.metrics_writer(4)
    for step in range(4, 6):
        second.log(step, step * 10, loss=2.0)
    assert [(row["step"], row["values"]["loss"]) for row in run.metrics()] == [
        (1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0),
    ]  # fmt: skip
    run.metrics_writer(2).log(2, 20, loss=3.0)  # the later checkpoint was damaged: further back
    assert [(row["step"], row["values"]["loss"]) for row in run.metrics()] == [(1, 1.0), (2, 3.0)]


def test_only_complete_checkpoints_count_in_order_of_step(run):
    for step, complete in ((20, True), (100, True), (3, True), (200, False)):
        folder = run.path / "checkpoints" / f"step-{step}"
        folder.mkdir(parents=True)
        if complete:
            (folder / "manifest.json").write_text("{}")
    assert [path.name for path in run.checkpoints()] == ["step-3", "step-20", "step-100"]


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (None, "done", None),
        (SaladError("the teacher is missing: run prepare"), "failed", "the teacher is missing: run prepare"),
        (ValueError("shapes\ndo not fit"), "failed", "ValueError: do not fit"),
        (Preempted(), "preempted", "asked to end by SIGTERM"),
        (Stopped("time is up"), "stopped", "time is up"),
        (KeyboardInterrupt(), "stopped", "interrupted from the keyboard"),
    ],
)
def test_the_end_of_a_run_is_written_down(run, error, state, message):
    with pytest.raises(type(error)) if error else open(os.devnull):
        with running(run, device="cpu"):
            assert run.read_status()["state"] == "running"
            run.status(step=3)
            if error:
                raise error
    status = run.read_status()
    assert (status["state"], status["error"], status["step"]) == (state, message, 3)
    assert status["pid"] == os.getpid() and status["started_at"] and status["ended_at"]
    assert status["git_commit"] is None or len(status["git_commit"]) == 40


def test_limits_count_hours_and_money_over_all_attempts():
    assert Limits().reason(1e9) is None
    assert Limits(max_hours=1).reason(3599) is None and "time limit" in Limits(max_hours=1).reason(3600)
    money = Limits(max_hours=10, budget=6, price_per_hour=3)
    assert money.seconds == 7200 and money.reason(7199) is None and "budget" in money.reason(7200)


def test_a_run_that_reaches_its_limit_is_told_to_stop(run):
    (run.path / "launch.json").write_text(json.dumps({"max_hours": 1}))
    run.status(ran_s=3600.5)  # an attempt before this one
    with pytest.raises(Stopped), running(run):
        raise run.should_stop()
    assert run.read_status()["state"] == "stopped" and "time limit" in run.read_status()["error"]


def test_only_the_first_rank_writes(run, monkeypatch):
    run.status(state="running", device="cpu")
    monkeypatch.setenv("RANK", "1")
    other = RunFolder.open(run.lab, run.run_id)
    other.status(state="failed")
    other.log("not me")
    other.metrics_writer(0).log(1, 1, loss=1.0)
    assert run.read_status()["state"] == "running" and not (run.path / "log.txt").exists() and not run.metrics()


WAITS = """
    import sys, time
    from salad.runs import RunFolder, running
    run = RunFolder.open(sys.argv[1], sys.argv[2])
    with running(run, device="cpu"):
        for step in range(10_000):
            run.status(step=step, max_steps=10_000)
            if (end := run.should_stop()) is not None:
                raise end
            time.sleep(0.01)
"""


@pytest.mark.parametrize(("by_hand", "state"), [(False, "preempted"), (True, "stopped")])
def test_sigterm_ends_a_real_process_with_code_75(run, by_hand, state):
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(WAITS), str(run.lab), run.run_id])
    try:
        while run.read_status().get("state") != "running":
            assert process.poll() is None
            time.sleep(0.02)
        if by_hand:
            run.request_stop()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == PREEMPTED_CODE
    finally:
        process.kill()
    assert run.read_status()["state"] == state and run.read_status()["step"] >= 0


def test_a_program_around_a_run_has_its_sigterm_again_afterwards(tmp_path):
    run = RunFolder.get_or_create(tmp_path, "pass", "x", {"a": 1})
    heard = []

    def own(number, frame):
        heard.append(number)

    before = signal.signal(signal.SIGTERM, own)
    try:
        with running(run):
            os.kill(os.getpid(), signal.SIGTERM)
            assert run.should_stop() is not None and not heard
        assert signal.getsignal(signal.SIGTERM) is own
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
