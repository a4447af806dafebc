"""Steps of a study that depend on each other, run side by side in processes forked from one warm parent."""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from typing import Any, cast

from salad.errors import SaladError
from store.errors import UserError

WARM = ["salad.training", "salad.passes.score", "salad.evaluation.run", "salad.study.steps"]


@dataclass(frozen=True)
class Step:
    """`work(progress, *arguments)` runs when the steps named in `after` are done; steps listed first go first.

    `work` is a module-level function; `progress(done, total)` tells how far it is. What it returns is shown as what
    was done. `key`: the step's name within its seed's lab, where it is not `name`. `device`: it computes on the machine's
    accelerator, which one step has at a time where there is one."""

    name: str
    title: str
    work: Callable
    arguments: tuple = ()
    after: tuple[str, ...] = ()
    key: str = ""
    device: bool = False

    @property
    def lab(self) -> str:
        """The lab that it works in."""
        return self.arguments[0]

    @property
    def own_name(self) -> str:
        return self.key or self.name


@dataclass(frozen=True)
class Outcome:
    name: str
    seconds: float
    message: str
    failed: bool = False


def _child(connection, work, arguments) -> None:
    from salad.models.names import quiet

    quiet()
    last = 0.0

    def send(*message) -> None:
        try:
            connection.send(message)
        except BrokenPipeError:
            os._exit(1)  # whoever asked for it is gone

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 0.2 or done >= total:
            last = time.monotonic()
            send("progress", done, total)

    send("begins")
    try:
        message = str(work(progress, *arguments) or "")
    except UserError as error:
        send("failed", str(error), "")
    except MemoryError:
        send("failed", "out of memory", "")
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        send("failed", f"{error.strerror or error}{where}", traceback.format_exc())
    except Exception as error:
        send("failed", f"{type(error).__name__}: {error}", traceback.format_exc())
    else:
        send("done", message)


def _warm_parent():
    """The context whose processes are forked from one that has imported what they need, and that a Ctrl-C does not
    reach, wherever they are: it is the caller's to hear, who ends them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(WARM)
    resource_tracker.ensure_running()  # it would unblock what is blocked below
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited; one that comes now comes after
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def run(steps: Sequence[Step], workers: int, watch: Callable, keep_going: bool = False, one_device: bool = False,
        threads: int = 1) -> list[Outcome]:  # fmt: skip
    """Run all steps, at most `workers` at once. `watch(event, step, *details)` hears "start", "progress" (done,
    total), "done" and "failed" (outcome). A step that fails ends the others; its error is raised as SaladError, in one
    line, with the traceback of an unexpected one in `__notes__`. With `keep_going` it is an outcome that `failed`, as
    are the steps that wait for it, and the others go on. Ctrl-C ends the children and goes on its way. `one_device`: steps
    that compute on the accelerator go one at a time. `threads`: of each process."""
    # one thread each: two OpenMP threads on a busy machine can fall to a fraction of one thread's speed
    os.environ |= {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    context = _warm_parent()
    waiting, outcomes = list(steps), list[Outcome]()
    done: set[str] = set()
    live: dict[Any, tuple[Step, Any, float]] = {}

    def failed(step: Step, seconds: float, message: str, cause: str | None = None) -> None:
        outcomes.append(Outcome(step.name, seconds, message, failed=True))
        watch("failed", step, outcomes[-1])
        cause = cause or f"{step.title}: {message}"
        for other in [s for s in waiting if step.name in s.after]:
            if other in waiting:  # it may wait for two that failed
                waiting.remove(other)
                failed(other, 0.0, cause, cause)

    try:
        while waiting or live:
            for step in [s for s in waiting if done.issuperset(s.after)]:
                if len(live) >= workers:
                    break
                if one_device and step.device and any(other.device for other, _, _ in live.values()):
                    continue
                waiting.remove(step)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_child, args=(theirs, step.work, step.arguments), daemon=True)
                process.start()
                theirs.close()
                live[ours] = (step, process, time.monotonic())
                watch("start", step)
            if not live:
                names = ", ".join(s.name for s in waiting)
                raise SaladError(f"these steps wait for steps that do not exist: {names}")
            for connection in cast(list[Any], wait(list(live))):
                step, process, started = live[connection]
                try:
                    kind, *details = connection.recv()
                except EOFError:
                    process.join()
                    kind, details = "failed", [
                        f"its process was ended from outside (exit status {process.exitcode}); "
                        "rerun the command to resume", "",
                    ]  # fmt: skip
                if kind == "begins":
                    continue
                if kind == "progress":
                    watch("progress", step, *details)
                    continue
                process.join()
                del live[connection]
                if kind == "failed" and keep_going:
                    failed(step, time.monotonic() - started, details[0])
                    continue
                if kind == "failed":
                    error = SaladError(f"{step.title}: {details[0]}")
                    if details[1]:
                        error.add_note(details[1])
                    raise error
                outcomes.append(Outcome(step.name, time.monotonic() - started, details[0]))
                done.add(step.name)
                watch("done", step, outcomes[-1])
    finally:
        for _, process, _ in live.values():
            process.terminate()  # a training writes a checkpoint first
        for _, process, _ in live.values():
            process.join(15)
            process.kill()
            process.join()
    return outcomes
