"""`Run`: the one handle on a run, wherever it runs. Every answer comes from the run's own files and its engine."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import store
from salad import parts
from salad.engines import base, codesync, targets
from salad.engines.fetching import verified_checkpoints
from salad.engines.spec import Spec, secrets
from salad.engines.supervisor import clear_failures
from salad.errors import SaladError
from salad.runs import ENDED, RunFolder, now, seconds_since

if TYPE_CHECKING:
    import pandas as pd

SILENT_S = 45.0  # a heartbeat older than this is no sign of life (a run beats every 5 s)
STARTS_S = 20.0
GOES_S = 10.0
LOST_S = 30.0


class Run:
    """A launched run. `.run_id`, `.lab`, `.folder` (its files here), `.spec` (how it was launched)."""

    def __init__(self, folder: RunFolder, spec: Spec | None = None):
        self.folder, self.run_id, self.lab = folder, folder.run_id, folder.lab
        self.spec, self.refused = spec or Spec.of(folder), None
        if spec is None and self.spec is not None:  # as its launch.json has it: data
            try:
                parts.check(self.spec.target.engine, str(folder.path / "launch.json"))
                targets.check_own(self.spec.on, self.spec.target, str(folder.path / "launch.json"))
            except SaladError as error:
                self.refused = error
        self.engine = base.load(self.spec.target) if self.spec and self.refused is None else None

    @classmethod
    def open(cls, lab: Path | str, run_id: str) -> Run:
        """The handle of an existing run. Raises SaladError if the lab has no such run."""
        return cls(RunFolder.open(Path(lab), run_id))

    def __repr__(self) -> str:
        status = self.status()
        description = f"{self.run_id} on {status.get('on', 'here')}: {status['state']}"
        if status.get("step") is not None:
            description += f", step {status['step']}" + (f" of {status['max_steps']}" if status.get("max_steps") else "")
        return description + (f" ({status['error']})" if status.get("error") else "")

    def status(self) -> dict:
        """The fields of status.json, reconciled with the engine's view; `state` is one of `salad.runs.STATES`.
        A run whose process is gone is recorded as failed."""
        life = self._look()
        status = reconcile_status(self.folder, self.spec, self.engine, life, write=self.engine is None or self.engine.shares_lab)
        return status | ({"on": self.spec.on} if self.spec else {})

    def logs(self, follow: bool = False) -> str | Iterator[str]:
        """log.txt as it stands; with `follow`, its lines as they come until the run has ended."""
        if follow:
            return self._follow()
        self._look()
        path = self.folder.path / "log.txt"
        return path.read_text(errors="replace") if path.exists() else ""

    def _follow(self) -> Iterator[str]:
        path, at, rest = self.folder.path / "log.txt", 0, ""
        while True:
            ended = self.status()["state"] in ENDED
            if path.exists():
                if path.stat().st_size < at:
                    at, rest = 0, ""
                with open(path, errors="replace") as file:
                    file.seek(at)
                    rest += file.read()
                    at = file.tell()
                *lines, rest = rest.split("\n")
                yield from lines
            if ended:
                if rest:
                    yield rest
                return
            time.sleep(0.5)

    def metrics(self) -> pd.DataFrame:
        """The logged values as a DataFrame like the table `metrics`: run_id, step, tokens, name, value, at."""
        import pandas as pd

        self._look()
        rows = [
            {"run_id": self.run_id, "step": row["step"], "tokens": row["tokens"], "name": name, "value": value, "at": row["at"]}
            for row in self.folder.metrics()
            for name, value in row["values"].items()
        ]
        return pd.DataFrame(rows, columns=["run_id", "step", "tokens", "name", "value", "at"])

    def stop(self, wait_s: float = 0) -> dict:
        """Ask the run to write a checkpoint and end; wait up to `wait_s` seconds for it. Returns the status."""
        if self.status()["state"] in ENDED:
            return self.status()
        if self.engine is None or self.spec is None:
            raise SaladError(f"{self.run_id} was not started by launch_gpu.py; end its process where it was started")
        self.engine.stop(self.folder, self.spec)
        return self.wait(wait_s) if wait_s else self.status()

    def wait(self, timeout_s: float = float("inf")) -> dict:
        """Wait until the run has ended, at most `timeout_s` seconds. Returns the status."""
        until = time.monotonic() + timeout_s
        while True:
            status = self.status()
            if status["state"] in ENDED or time.monotonic() >= until:
                return status
            time.sleep(min(0.5, max(until - time.monotonic(), 0)))

    def resume(self, **changes) -> Run:
        """Resume the run from its last checkpoint, on the same target. Does nothing if the run is alive or done.

        `changes`: fields of the launch to change, such as max_hours, budget or stall_minutes."""
        if self.refused is not None:
            raise self.refused
        engine, spec = self.engine, self.spec
        if engine is None or spec is None:
            raise SaladError(f"{self.run_id} was not started by launch_gpu.py; launch its config.json to continue it")
        parts.check_module(spec.module, str(self.folder.path / "launch.json"))
        status = self.status()
        if status["state"] == "done" or self.lives():
            return self
        self.spec = spec = spec.model_copy(update={**changes, "launched_at": now()})
        reached = spec.limits.reason(float(status.get("ran_s") or 0))
        if reached:
            raise SaladError(f"{self.run_id}: {reached}")
        secrets(spec.env)
        engine.preflight(spec)
        spec.save(self.folder)
        clear_failures(self.folder)
        if not engine.runs_recorded_code:
            for line in codesync.differs(self.folder, spec.code):
                self.folder.log(f"resumed with a difference: {line}")
        self.folder.reread()
        start(engine, self.folder, spec)
        return self

    def _look(self) -> base.Life | None:
        """What the engine says of the run; None for a run that was started by hand, or where the engine cannot be asked."""
        return None if self.engine is None or self.spec is None else self.engine.look(self.folder, self.spec)

    def lives(self) -> bool:
        """Whether the engine has the run, queued or started. A run that has ended is given a few seconds to disappear."""
        until = time.monotonic() + GOES_S
        while self._look() in ("alive", "queued"):
            if self.folder.read_status().get("state") not in ENDED or time.monotonic() > until:
                return True
            time.sleep(0.1)
        return False

    def fetch(self, tables_only: bool = False) -> dict:
        """Copy the run's units and checkpoints into this lab and verify the SHA-256 of each.

        May be interrupted and repeated: files that are already here are not copied again. Returns {"checkpoints", "units":
        numbers of complete ones, "damaged": a line for each damaged one}."""
        remote = None if self.engine is None or self.engine.shares_lab else self.engine
        if remote and self.spec:
            remote.look(self.folder, self.spec)
            remote.fetch(self.folder, self.spec, tables_only)
        whole, damaged = verified_checkpoints(self.folder)
        units, bad = store.units.scan(store.lab_path(self.lab))
        if (damaged or bad) and remote and self.spec:  # once more, comparing every byte
            remote.fetch(self.folder, self.spec, tables_only, compare=True)
            whole, damaged = verified_checkpoints(self.folder)
            units, bad = store.units.scan(store.lab_path(self.lab))
        if remote:
            store.renew(self.lab)
        damaged += [f"{item.path}: {item.reason}" for item in bad]
        return {"checkpoints": whole, "units": sum(map(len, units.values())), "damaged": damaged}


def start(engine: base.Engine, run: RunFolder, spec: Spec) -> None:
    """`engine.start`, the run queued before it; where it does not start, its status is again what it was, or failed."""
    before = run.read_status()
    run.status(state="queued", engine=spec.engine, error=None, ended_at=None)
    try:
        engine.start(run, spec)
    except BaseException as error:
        before = {"state": "failed", "error": str(error), "ended_at": now()} | before
        run.reread()
        run.status(**{name: before.get(name) for name in ("state", "engine", "error", "ended_at")})
        raise


def reconcile_status(
    run: RunFolder, spec: Spec | None, engine: base.Engine | None, life: base.Life | None, write: bool = True
) -> dict:
    """The status as `infer_status`; a run that vanished is written down as ended, where this is the folder to write."""
    status = infer_status(run.read_status(), life, spec, engine)
    if status.pop("vanished", False) and write:
        run.reread()
        run.status(state=status["state"], error=status["error"], settled=True, ended_at=now())
    return status


def infer_status(status: dict, life: base.Life | None, spec: Spec | None, engine: base.Engine | None) -> dict:
    """`status` with the state that the engine's word and the age of the heartbeat allow.

    `spec`, `engine`: None for a run that was started by hand. `life`: what the engine says, None where it cannot be
    asked. "vanished" is set where the run is gone for certain and its own files do not say so."""
    status = {"state": "queued", "error": None} | status
    state, silent = status["state"], seconds_since(status.get("heartbeat_at"))
    if state == "failed" and life == "alive" and not status.get("settled"):
        return status | {"state": "starting"}  # its supervisor is about to try again
    if state in ENDED:
        return status
    launched = seconds_since(spec.launched_at) if spec else float("inf")
    if state == "preempted":
        since = seconds_since(status.get("ended_at") or status.get("heartbeat_at"))
        # between its end and its place in the queue a job can be in neither for a moment
        if life == "gone" and spec and engine and engine.requeues and since > LOST_S:
            reason = f"cancelled on {spec.on}; resume the run to continue"
            return status | {"state": "stopped", "error": reason, "vanished": True}
        return status
    if life == "queued":
        return status | ({} if state == "queued" else {"state": "preempted"})
    if life == "gone":
        if launched < STARTS_S and state == "queued":
            return status
        reason = "the process ended before it wrote a status; see its log"
        if state == "running":
            reason = f"the process ended without a message at step {status.get('step') or 0}; resume the run to continue"
        return status | {"state": "failed", "error": status.get("error") or reason, "vanished": True}
    if state == "running" and silent > SILENT_S:
        if life is None and (engine is None or engine.shares_lab):
            reason = f"no heartbeat for {silent:.0f} s; resume the run to continue"
            return status | {"state": "failed", "error": reason}
        reason = "the process is alive but silent" if life == "alive" else f"{spec.on if spec else 'its engine'} cannot be asked"
        return status | {"state": "stalled", "error": f"no heartbeat for {silent:.0f} s: {reason}"}
    still = seconds_since(status.get("progress_at") or (spec.launched_at if spec else None))
    limit = 60 * (spec.stall_minutes if spec else 15.0)
    if state in ("running", "starting") and limit < still < float("inf"):
        return status | {"state": "stalled", "error": f"no step for {still / 60:.0f} minutes"}
    if state == "queued" and life == "alive":
        return status | {"state": "starting"}
    return status


def runs(lab: Path | str) -> list[Run]:
    """Every run of the lab, newest first; folders that are damaged are left out."""
    handles = []
    for path in Path(lab).glob("runs/r*/config.json"):
        try:
            run = Run.open(lab, path.parent.name)
        except SaladError:
            continue
        handles.append((run.folder.read_status().get("started_at") or "", run))
    return [run for _, run in sorted(handles, key=lambda pair: pair[0], reverse=True)]
