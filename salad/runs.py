"""The run folder lab/runs/<run_id>/: configuration, heartbeat, metrics, log, checkpoints, and how a run ends.

Only the run's own process writes there while it lives (its first rank where there are several); everything that
watches a run, here or on another machine, reads these files. A trainer is written against them like this:

    run = RunFolder.open(lab, run_id)
    with running(run, device="cuda"):
        writer = run.metrics_writer(first_step)
        for step in range(first_step, steps):
            ...
            writer.log(step + 1, tokens, loss=loss)
            run.status(step=step + 1, max_steps=steps, tokens=tokens)
            if (end := run.should_stop()) is not None:
                save_checkpoint()
                raise end
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import store
from salad.errors import SaladError
from store import atomic, ids
from store.errors import UserError
from store.lab import seal, seal_line

STATES = ("queued", "starting", "running", "preempted", "stalled", "stopped", "failed", "done")
ENDED = ("stopped", "failed", "done")
PREEMPTED_CODE = 75  # EX_TEMPFAIL: what the engines take for "start me again"
BEAT_SECONDS = 5.0
STATUS_SECONDS = 2.0


class Preempted(SystemExit):
    """The process was asked to go (SIGTERM) and has written its checkpoint: exit code 75, to be started again."""

    def __init__(self, message: str = "asked to end by SIGTERM"):
        super().__init__(PREEMPTED_CODE)
        self.message = message


class Stopped(Preempted):
    """Raised like `Preempted`, for a run that must not restart automatically: a user stopped it, or it reached a limit."""


@contextlib.contextmanager
def renewing(lab: Path | str) -> Iterator[None]:
    """lab/store.duckdb is renewed when this block ends, however it ends; not where it will go on (`Preempted`)."""
    again = False
    try:
        yield
    except Preempted as end:
        again = not isinstance(end, Stopped)
        raise
    finally:
        if not again:
            with contextlib.suppress(UserError):  # a full disk is told by whoever has something to lose
                store.renew(lab)


class Latch:
    """Remembers that SIGTERM came, so that a trainer can finish its step and write a checkpoint."""

    def __init__(self):
        self.set = False

    def install(self) -> Callable | None:
        """Take SIGTERM over; does nothing outside the main thread, where Python forbids it.

        Returns the handler of the program around it (a notebook's server), None where there is none but the default."""
        if threading.current_thread() is not threading.main_thread():
            return None
        before = signal.getsignal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, self._latch)
        return before if callable(before) and before != self._latch else None

    def _latch(self, number: int, frame: object) -> None:
        self.set = True

    def give_back(self, before: Callable | None) -> None:
        """Let the program around it have SIGTERM again. A process of the run's own keeps it latched: it is about to end, and
        a signal that comes now must not cost what it still writes."""
        if before is not None:
            signal.signal(signal.SIGTERM, before)


_latch = Latch()


def stop_requested() -> bool:
    """Whether this process was asked to end (SIGTERM, or the run's `stop` file) since `running` began."""
    return _latch.set


def now() -> str:
    """The time as ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_since(at: str | None) -> float:
    """Seconds since an ISO time written by `now`; infinite for None."""
    if at is None:
        return float("inf")
    return (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()


def read_json(path: Path) -> dict | None:
    """The JSON object in a file; None if the file is missing or incomplete."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def git_commit() -> str | None:
    """The commit of the working tree that this code was imported from; None outside git."""
    root = Path(__file__).resolve().parent.parent
    try:
        completed = subprocess.run(
            ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return completed.stdout.strip()


class Limits:
    """A run's hard limits over all its attempts: hours, and money (hours × price per hour).

    max_hours, budget: None means no limit. budget and price_per_hour are in the same currency."""

    def __init__(self, max_hours: float | None = None, budget: float | None = None, price_per_hour: float = 0.0):
        self.max_hours, self.budget, self.price_per_hour = max_hours, budget, price_per_hour

    @property
    def seconds(self) -> float:
        """The seconds that the run may last in all; infinite without a limit."""
        hours = [float("inf") if self.max_hours is None else self.max_hours]
        if self.budget is not None and self.price_per_hour > 0:
            hours.append(self.budget / self.price_per_hour)
        return min(hours) * 3600

    def reason(self, ran_s: float) -> str | None:
        """Which limit a run that lasted `ran_s` seconds has reached, in words; None if none."""
        if self.max_hours is not None and ran_s >= self.max_hours * 3600:
            return f"time limit of {self.max_hours:g} h reached; resume with a higher --max-hours to go on"
        if ran_s >= self.seconds:
            return f"budget of {self.budget:g} reached at {self.price_per_hour:g} an hour; resume with a higher --budget to go on"
        return None


class MetricsWriter:
    """metrics-<first step>.jsonl: one line a logged step, flushed per line.

    status.json's metrics_files names the files that hold lines, so that a reader misses one that is lost."""

    def __init__(self, run: "RunFolder", first_step: int):
        self._run, self._file, self._named = run, None, False
        if run.leader:
            # a file that starts later than this attempt holds steps that are about to be done again
            again = [path for start, path in run._metric_files() if start >= first_step]
            if again:
                self._name(lambda names: names - {path.name for path in again})
            for path in again:
                path.unlink()
            self._file = open(run.path / f"metrics-{first_step}.jsonl", "w")

    def _name(self, change) -> None:
        self._run.status(metrics_files=sorted(change(set(self._run.status().get("metrics_files") or ()))))

    def log(self, step: int, tokens: int, **values: float) -> None:
        """Add a line: `tokens` are the text tokens and speech frames fed so far, without padding."""
        if self._file is None:
            return
        values = {name: float(value) for name, value in values.items()}
        line = {"step": int(step), "tokens": int(tokens), "at": now(), "values": values}
        self._file.write(seal_line(line).decode())
        self._file.flush()
        if not self._named:
            self._named = True
            self._name(lambda names: names | {Path(self._file.name).name})

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class RunFolder:
    """One run's folder. `create` makes it or finds it again; `open` takes an existing one.

    .path folder · .run_id · .lab · .config the configuration (dict) · .record the whole of config.json"""

    def __init__(self, lab: Path, run_id: str, record: dict):
        self.lab, self.run_id, self.record = lab, run_id, record
        self.config: dict = record["config"]
        self.path = lab / "runs" / run_id
        self._lock = threading.RLock()
        self._fields: dict | None = None
        self._written = 0.0
        self._began: float | None = None  # monotonic, while `running`
        self._limits = Limits()
        self._ran_before = 0.0
        self._pace: tuple[int, float] | None = None  # first step of this attempt, and when

    @classmethod
    def get_or_create(
        cls,
        lab: Path | str,
        kind: str,
        recipe: str,
        config: dict,
        parent_run_id: str | None = None,
        selection_id: str | None = None,
        repetition: int = 0,
    ) -> "RunFolder":
        """The run folder of a configuration, created if it does not exist. The run id is a hash of configuration, parent and
        repetition, so repeating the call resumes the same run. Raises SaladError if the folder cannot be written."""
        lab = Path(lab)
        run_id = ids.run_id(config, parent_run_id, repetition)
        path = lab / "runs" / run_id
        if read_json(path / "config.json") is None:
            record = {
                "run_id": run_id,
                "kind": kind,
                "recipe": recipe,
                "config": config,
                "parent_run_id": parent_run_id,
                "selection_id": selection_id,
                "repetition": repetition,
            }
            try:
                (path / "checkpoints").mkdir(parents=True, exist_ok=True)
                atomic.write_json(path / "config.json", seal(record))
            except OSError as error:
                raise SaladError(f"cannot write the run's folder {path}: {error.strerror or error}") from None
        return cls.open(lab, run_id)

    @classmethod
    def open(cls, lab: Path | str, run_id: str) -> "RunFolder":
        """The existing run; SaladError if the lab has no such run or its config.json is damaged."""
        lab = Path(lab)
        path = lab / "runs" / run_id / "config.json"
        if not re.fullmatch(r"r[0-9a-f]{12}", run_id) or not path.exists():
            raise SaladError(f"no run {run_id!r} in {lab}; `launch_gpu.py list --lab {lab}` shows those there are")
        record = read_json(path)
        if record is None or not isinstance(record.get("config"), dict):
            raise SaladError(f"{path} is damaged; delete the run's folder and launch it again")
        return cls(lab, run_id, record)

    @property
    def leader(self) -> bool:
        """Whether this process writes the folder: the only one, or torchrun's rank 0."""
        return os.environ.get("RANK", "0") == "0"

    @property
    def _status_path(self) -> Path:
        shard = os.environ.get("SALAD_SHARD")  # a worker of a pass reports on its own shard only
        return self.path / ("status.json" if shard is None else f"status-{shard}.json")

    def reread(self) -> None:
        """Discard the cached status, because another process has written status.json since."""
        with self._lock:
            self._fields = None

    # what it says of itself

    def status(self, **fields) -> dict:
        """Merge `fields` into status.json (atomically) and set heartbeat_at; returns the whole status.

        A step that moves sets progress_at, and seconds_left from this attempt's pace unless it is given. Within
        2 s of the last write, a call that only tells numbers is kept in memory for the next one."""
        with self._lock:
            if self._fields is None:
                self._fields = self.read_status()
            urgent = any(
                name not in ("step", "max_steps", "tokens", "seconds_left") and self._fields.get(name) != value
                for name, value in fields.items()
            )
            step = fields.get("step")
            if step is not None and step != self._fields.get("step"):
                self._fields["progress_at"] = now()
            self._fields.update(fields)
            if step is not None and "seconds_left" not in fields:
                self._fields["seconds_left"] = self._seconds_left(step)
            if urgent or time.monotonic() - self._written >= STATUS_SECONDS:
                self._write()
            return dict(self._fields)

    def heartbeat(self) -> None:
        """Write a heartbeat. Thread-safe; writes at most every 2 s."""
        with self._lock:
            if time.monotonic() - self._written >= STATUS_SECONDS:
                self.status()

    def read_status(self) -> dict:
        """The content of status.json; {} before it is first written."""
        return read_json(self._status_path) or {}

    @property
    def ran_s(self) -> float:
        """Seconds that the run has lasted, over all its attempts."""
        if self._began is None:
            return float(self.read_status().get("ran_s") or 0.0)
        return self._ran_before + time.monotonic() - self._began

    def _seconds_left(self, step: int) -> float | None:
        if self._pace is None or step < self._pace[0]:
            self._pace = (step, time.monotonic())
        first, since = self._pace
        fields = self._fields or {}
        steps = fields.get("max_steps")
        if steps is None or step <= first:
            return fields.get("seconds_left")
        return round((steps - step) * (time.monotonic() - since) / (step - first), 1)

    def _write(self) -> None:
        assert self._fields is not None
        self._fields["heartbeat_at"] = now()
        if self._began is not None:
            self._fields["ran_s"] = round(self.ran_s, 3)
        self._written = time.monotonic()
        if self.leader:
            atomic.write_json(self._status_path, self._fields)

    # metrics, log, checkpoints

    def metrics_writer(self, first_step: int) -> MetricsWriter:
        """A writer for an attempt that starts after `first_step` (0, or the checkpoint's step)."""
        return MetricsWriter(self, first_step)

    def metrics(self) -> list[dict]:
        """The logged rows in order of step; where attempts overlap, those of the later attempt."""
        rows, files = [], self._metric_files()
        for index, (_, path) in enumerate(files):
            end = files[index + 1][0] if index + 1 < len(files) else float("inf")
            for line in path.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):  # cut short by a kill
                    row = json.loads(line)
                    if row["step"] < end:
                        rows.append(row)
        return rows

    def _metric_files(self) -> list[tuple[int, Path]]:
        return sorted((int(path.stem.split("-")[1]), path) for path in self.path.glob("metrics-*.jsonl"))

    def log(self, text: str) -> None:
        """Append lines to log.txt, each with the time."""
        if self.leader:
            at = now()
            with open(self.path / "log.txt", "a") as file:
                file.write("".join(f"{at} {line}\n" for line in text.splitlines()))

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints (manifest.json is written last) in order of step."""
        folders = [path.parent for path in self.path.glob("checkpoints/step-*/manifest.json")]
        return sorted(folders, key=lambda path: int(path.name.split("-")[1]))

    # limits, and being asked to end

    def limits(self) -> Limits:
        """The limits in launch.json; no limits for a run that was started by hand."""
        launch = read_json(self.path / "launch.json") or {}
        return Limits(launch.get("max_hours"), launch.get("budget"), launch.get("price_per_hour") or 0.0)

    def request_stop(self) -> None:
        """Leave the `stop` file: the run ends as `stopped` at its next step, and nothing starts it again."""
        atomic.write_json(self.path / "stop", {"at": now(), "host": socket.gethostname()})

    def should_stop(self) -> Preempted | None:
        """The exception to raise after writing a checkpoint; None to continue. Cheap enough to call at every step."""
        if self._began is not None:
            reason = self._limits.reason(self.ran_s)
            if reason is not None:
                return Stopped(reason)
        if not stop_requested():
            return None
        return Stopped("stopped by hand") if (self.path / "stop").exists() else Preempted()


def last_line(error: BaseException) -> str:
    """An exception in one line: the first line of a user's error; the type and last line of any other."""
    lines = str(error).strip().splitlines()
    if isinstance(error, UserError) and lines:
        return lines[0]
    return f"{type(error).__name__}: {lines[-1]}" if lines else type(error).__name__


@contextlib.contextmanager
def running(run: RunFolder, engine: str | None = None, device: str | None = None) -> Iterator[RunFolder]:
    """Context in which a run is alive: SIGTERM is latched, a thread writes heartbeats, and the end is recorded.

    State: running, then done; stopped or preempted for `Stopped` and `Preempted`; stopped for Ctrl-C; else failed,
    with the last line of the error. Exceptions propagate."""
    launch = read_json(run.path / "launch.json") or {}
    _latch.set = False
    handler = _latch.install()
    before = run.read_status()
    run.reread()
    run._limits = run.limits()
    run._ran_before, run._began, run._pace = float(before.get("ran_s") or 0.0), time.monotonic(), None
    run.status(
        state="running",
        engine=engine or launch.get("engine") or before.get("engine") or "here",
        device=device or before.get("device"),
        host=socket.gethostname(),
        pid=os.getpid(),
        git_commit=(launch.get("code") or {}).get("commit") or git_commit(),
        started_at=before.get("started_at") or now(),
        attempt=int(before.get("attempt") or 0) + 1,
        progress_at=now(),
        ended_at=None,
        error=None,
    )
    ended = threading.Event()

    def beat():
        while not ended.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):  # a full disk must not end the heartbeat
                run.heartbeat()
            if (run.path / "stop").exists():
                _latch.set = True

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    state, mendable = "done", False
    error: str | None = None
    try:
        yield run
    except Stopped as stop:
        state, error = "stopped", stop.message
        raise
    except Preempted as preemption:
        state, error = "preempted", preemption.message
        raise
    except KeyboardInterrupt:
        state, error = "stopped", "interrupted from the keyboard"
        raise
    except BaseException as failure:
        if not (isinstance(failure, SystemExit) and not failure.code):
            state, error, mendable = "failed", last_line(failure), isinstance(failure, UserError)
        raise
    finally:
        ended.set()
        thread.join()
        end = {"seconds_left": 0} if state == "done" else {}
        # a run that a user has to fix first is not retried automatically
        try:
            run.status(state=state, error=error, mendable=mendable, ended_at=now(), **end)
        except OSError as full:  # a full disk must not hide what ended the run
            print(f"{run.path}: the end of the run could not be written down: {full.strerror}", file=sys.stderr)
        run._began = None
        _latch.give_back(handler)
