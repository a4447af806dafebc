"""Runs a run and decides what its end means; the same on every engine, on the machine where the run is.

    python -m salad.engines --lab LAB RUN_ID [--secrets-on-stdin] [--detach]

Preempted alone: started again at once. Told to go itself (SIGTERM): lets the run write its checkpoint and exits 75,
for the engine to start it again. Failed: started again, until it has failed three times at the same step. Killed
with -9: left as failed, for memory does not grow by trying again. Time and money: the run stops itself; one that
does not is made to.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from salad.engines import processes
from salad.engines.spec import Spec, command
from salad.runs import ENDED, PREEMPTED_CODE, STATUS_SECONDS, RunFolder, now, read_json
from store import atomic

FAILURES = 3
GRACE_S = 120.0
POLL_S = 0.25
USER_ERROR_CODE = 2


def supervise(run: RunFolder, spec: Spec, shard: int = 0, rendezvous: Sequence[str] = (), first: bool = True) -> int:
    """Run until the end. Returns 0 (done or stopped), 75 (to be started again), else failed.

    `first` is False on the further nodes of a multi-node run: they start their processes and write nothing."""
    if _other_is_alive(run, shard):
        return 0
    if spec.workers > 1:  # this process and its run report on their shard; `merge` reports on all
        os.environ["SALAD_SHARD"] = str(shard)
    if run.read_status().get("state") == "done":
        return 0
    try:
        return _until_the_end(run, spec, shard, rendezvous, first)
    finally:
        merge(run, spec)


def _until_the_end(run: RunFolder, spec: Spec, shard: int, rendezvous, first: bool) -> int:
    stop_requested = False

    def on_signal(number, frame):
        nonlocal stop_requested
        stop_requested = True

    signal.signal(signal.SIGTERM, on_signal)
    while True:
        if (run.path / "stop").exists():
            return _end(run, spec, first, "stopped", run.read_status().get("error") or "stopped by hand", 0)
        code = _attempt(run, spec, shard, rendezvous, first, lambda: stop_requested)
        if not first:
            return PREEMPTED_CODE if stop_requested else code
        run.reread()
        status = run.read_status()
        state, error = status.get("state"), status.get("error")
        if code == 0:
            if state not in ENDED:  # a custom module that does not use salad.runs.running
                return _end(run, spec, first, "done", None, 0)
            return 0
        if state == "stopped":
            return 0
        if state == "preempted" or code == PREEMPTED_CODE:
            if stop_requested:
                return PREEMPTED_CODE
            continue
        if stop_requested:  # it fell over on the way out: its last checkpoint stands
            return _end(run, spec, first, "preempted", "ended by SIGTERM before it could write a checkpoint", 75)
        if state != "failed":
            error = _how_it_ended(run, code)
        if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
            step = status.get("step") or 0
            error = f"killed (signal 9) at step {step}: by hand, or out of memory; resume the run to continue"
            return _end(run, spec, first, "failed", error, 1)
        if code == USER_ERROR_CODE or status.get("mendable"):
            return _end(run, spec, first, "failed", error, 1)
        error = _enough(run, status.get("step") or 0, error)
        if error is not None:
            return _end(run, spec, first, "failed", error, 1)
        run.log("starting again from the last checkpoint")


def _attempt(run: RunFolder, spec: Spec, shard: int, rendezvous, first: bool, stop_requested) -> int:
    """Start the run's processes once and wait for them; returns the exit code (negative for a signal)."""
    if first:
        run.reread()
        run.status(
            state="starting",
            engine=spec.engine,
            error=None,
            mendable=False,
            settled=False,
            ended_at=None,
            pid=None,
        )
    left = spec.limits.seconds - run.ran_s
    # inherited: "the walltime ends" is for this process alone (no preexec_fn, which can hang among threads)
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    with open(run.path / "log.txt", "ab") as log:
        child = subprocess.Popen(
            command(spec, str(run.lab), shard=shard, rendezvous=rendezvous),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,  # a cluster signals whole groups: what goes on to the run is decided here
        )
    signal.signal(signal.SIGUSR2, before)
    if first:
        with contextlib.suppress(Exception):  # it may be gone already
            _write_mark(run, shard, child.pid)
    began, merged, asked = time.monotonic(), 0.0, None
    while True:
        try:
            return child.wait(POLL_S)
        except subprocess.TimeoutExpired:
            pass
        if time.monotonic() - merged > STATUS_SECONDS:
            merge(run, spec)
            merged = time.monotonic()
        over = time.monotonic() - began - left
        if asked is None and (stop_requested() or (run.path / "stop").exists() or over > GRACE_S / 2):
            child.send_signal(signal.SIGTERM)
            asked = time.monotonic()
        if asked is not None and time.monotonic() - asked > GRACE_S:
            child.kill()
            asked = float("inf")
            if over > 0:
                run.request_stop()


def _end(run: RunFolder, spec: Spec, first: bool, state: str, error: str | None, code: int) -> int:
    if first:
        run.reread()
        run.status(state=state, error=error, settled=True, ended_at=now())
        if error and state == "failed":
            run.log(error)
    return code


def _enough(run: RunFolder, step: int, error: str | None) -> str | None:
    """Note a failure; what to say if it is the third at this step, or the third without a new checkpoint."""
    kept = run.checkpoints()
    latest = kept[-1].name if kept else None
    shard = os.environ.get("SALAD_SHARD")
    path = run.path / ("attempts.jsonl" if shard is None else f"attempts-{shard}.jsonl")
    with open(path, "a") as file:
        file.write(json.dumps({"at": now(), "step": step, "checkpoint": latest, "error": error}) + "\n")
    failures: list[dict] = []
    for line in path.read_text().splitlines():
        row = _failure(line)
        failures = [] if row.get("resumed") else [*failures, row]
    if [row["step"] for row in failures[-FAILURES:]] == [step] * FAILURES:
        return f"failed {FAILURES} times at step {step}: {error}"
    if len(failures) >= FAILURES and all(row["checkpoint"] == latest for row in failures[-FAILURES:]):
        return f"failed {FAILURES} times without a new checkpoint, last at step {step}: {error}"
    return None


def _failure(line: str) -> dict:
    """A line of attempts.jsonl; one that was torn counts as a failure at a step and checkpoint of its own."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    return {"step": None, "checkpoint": None, **row} if isinstance(row, dict) else {"step": line, "checkpoint": line}


def clear_failures(run: RunFolder) -> None:
    """Forget earlier failures and an earlier `stop`, because a user resumes the run."""
    (run.path / "stop").unlink(missing_ok=True)
    for path in run.path.glob("attempts*.jsonl"):
        with open(path, "a") as file:
            file.write(json.dumps({"at": now(), "resumed": True}) + "\n")


def merge(run: RunFolder, spec: Spec) -> None:
    """Write status.json of a run whose shards report in status-<i>.json. Any process that writes it writes the same."""
    if spec.workers == 1:
        return
    parts = [read_json(run.path / f"status-{shard}.json") or {} for shard in range(spec.workers)]
    states = [part.get("state") or "queued" for part in parts]
    ended = all(state in ENDED for state in states)
    order = ("failed", "stopped", "done") if ended else ("running", "starting", "preempted", "queued")
    known = [part for part in parts if part]

    def over(name, how):
        values = [part[name] for part in known if part.get(name) is not None]
        return how(values) if values else None

    merged = {
        "state": next((state for state in order if state in states), "running"),
        "error": next((part["error"] for part in parts if part.get("error")), None),
        "shards": {state: states.count(state) for state in sorted(set(states))},
        "started_at": over("started_at", min),
        "ended_at": over("ended_at", max) if ended else None,
    }
    merged |= {name: over(name, sum) for name in ("step", "max_steps", "tokens")}
    merged |= {name: over(name, max) for name in ("heartbeat_at", "progress_at", "seconds_left", "ran_s", "attempt")}
    merged |= {name: over(name, lambda values: values[0]) for name in ("engine", "device", "host", "git_commit")}
    atomic.write_json(run.path / "status.json", merged)


def _how_it_ended(run: RunFolder, code: int) -> str:
    if code < 0:
        return f"ended by signal {-code} ({signal.Signals(-code).name})"
    lines = (run.path / "log.txt").read_text(errors="replace").strip().splitlines()
    return f"exit code {code}: {lines[-1].strip() if lines else 'nothing in the log'}"


# which processes a run has


def _mark_path(run: RunFolder, shard: int) -> Path:
    return run.path / (f"supervisor-{shard}.json" if shard else "supervisor.json")


def _write_mark(run: RunFolder, shard: int, child: int | None = None) -> None:
    marked = {"supervisor": processes.mark()} | ({"child": processes.mark(child)} if child else {})
    atomic.write_json(_mark_path(run, shard), marked)


def mark_supervisor(run: RunFolder, shard: int, pid: int) -> None:
    """Write down the supervisor that was just started, unless it has already done so itself."""
    marked = read_json(_mark_path(run, shard)) or {}
    if (marked.get("supervisor") or {}).get("pid") != pid:
        atomic.write_json(_mark_path(run, shard), {"supervisor": processes.mark(pid)})


def _other_is_alive(run: RunFolder, shard: int) -> bool:
    marked = read_json(_mark_path(run, shard)) or {}
    if processes.alive(marked.get("child")):
        return True
    own = marked.get("supervisor") or {}
    return own.get("pid") != os.getpid() and bool(processes.alive(own))


def is_alive(run: RunFolder) -> bool | None:
    """Whether any process of the run lives: True, False, or None where it ran on another machine."""
    records = [read_json(path) or {} for path in run.path.glob("supervisor*.json")]
    alive = [processes.alive(marked[part]) for marked in records for part in marked]
    return True if True in alive else None if None in alive or not alive else False


def signal_processes(run: RunFolder, number: int = signal.SIGTERM) -> None:
    """Signal the run's supervisors that live on this machine, and where one is gone, its run itself."""
    for path in run.path.glob("supervisor*.json"):
        marked = read_json(path) or {}
        for part in ("supervisor", "child"):
            if processes.alive(marked.get(part)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(marked[part]["pid"], number)
                if number != signal.SIGKILL:
                    break
