"""The interface of an engine, which runs a run somewhere. A custom engine is a subclass, named as package.module:Class."""

import importlib
from typing import Literal, NamedTuple

from salad import parts
from salad.engines.spec import Spec
from salad.engines.targets import ENGINES, Target
from salad.errors import SaladError
from salad.runs import RunFolder

Life = Literal["queued", "alive", "gone"]


class Finding(NamedTuple):
    """One line of `check`: whether a requirement is met (`ok`), and what was found (`message`)."""

    ok: bool
    message: str


class Engine:
    """Starts, watches and stops runs. Users see a run through its folder in the local lab."""

    shares_lab = True  # the run writes this very lab; else `look` and `fetch` bring what it wrote
    runs_recorded_code = True  # the code and package versions recorded at launch; else what this process runs
    requeues = False  # the engine itself starts a preempted run again
    knows_prices = False  # it asks for prices; else they are the target's `price_per_hour`

    def __init__(self, target: Target):
        self.target = target

    def check(self) -> list[Finding]:
        """Whether a launch would work, one finding per requirement. Starts nothing."""
        raise NotImplementedError

    def preflight(self, spec: Spec) -> None:
        """Raise SaladError, in one line, if this launch cannot work. Called before anything is written."""

    def plan(self, run: RunFolder, spec: Spec) -> str:
        """What `start` would do, for --dry-run."""
        raise NotImplementedError

    def start(self, run: RunFolder, spec: Spec) -> None:
        """Start the run so that it outlives this process. Raises SaladError if it did not start."""

    def look(self, run: RunFolder, spec: Spec) -> Life | None:
        """Copy the run's small files here and return its state as the engine reports it; None if the engine cannot be reached."""

    def stop(self, run: RunFolder, spec: Spec) -> None:
        """Ask the run to write a checkpoint and end, and the engine not to restart it."""

    @staticmethod
    def rendezvous(spec: Spec) -> tuple[list[str], bool]:
        """torchrun's arguments on this node of the run, and whether this is its first node. Asked by the supervisor
        (`python -m salad.engines`), on the machine where the run runs."""
        return [], True

    def fetch(self, run: RunFolder, spec: Spec, tables_only: bool = False, compare: bool = False) -> None:
        """Copy units and, unless `tables_only`, checkpoints and audio into this lab. May be interrupted and repeated.
        `compare`: compare existing files byte by byte, not only by size and time."""


def load(target: Target) -> Engine:
    """The engine of a target."""
    name = target.engine
    if name in ENGINES:
        module = importlib.import_module(f"salad.engines.{name}")
        return getattr(module, name.capitalize())(target)
    try:
        return parts.load(name)(target)
    except (SaladError, TypeError):
        raise SaladError(f"unknown engine {name!r}; there are {', '.join(ENGINES)}, or package.module:Class") from None
