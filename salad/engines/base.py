"""What an engine is: where a run runs. An engine of one's own is a class like these, named package.module:Class."""

import importlib
from typing import Literal, NamedTuple

from salad import parts
from salad.engines.spec import Spec
from salad.engines.targets import ENGINES, Target
from salad.errors import SaladError
from salad.runs import RunFolder

Life = Literal["queued", "alive", "gone"]


class Finding(NamedTuple):
    """One line of `check`: what was looked at, and whether it would do."""

    ok: bool
    message: str


class Engine:
    """Starts, watches, stops one run. The run folder in the lab at hand is what people see of it."""

    shares_lab = True  # the run writes this very lab; else `look` and `fetch` bring what it wrote
    runs_recorded_code = True  # the code and package versions recorded at launch; else what this process runs
    requeues = False  # the engine itself starts a preempted run again
    knows_prices = False  # it asks for prices; else they are the target's `price_per_hour`

    def __init__(self, target: Target):
        self.target = target

    def check(self) -> list[Finding]:
        """Whether a launch would work, line by line; starts nothing."""
        raise NotImplementedError

    def preflight(self, spec: Spec) -> None:
        """SaladError, in one line, where this launch cannot work. Asked before anything is written."""

    def plan(self, run: RunFolder, spec: Spec) -> str:
        """What `start` would do, for --dry-run."""
        raise NotImplementedError

    def start(self, run: RunFolder, spec: Spec) -> None:
        """Start the run so that it outlives this process. SaladError where it did not start."""

    def look(self, run: RunFolder, spec: Spec) -> Life | None:
        """What the engine says of the run, its small files brought here first; None where it cannot be asked."""

    def stop(self, run: RunFolder, spec: Spec) -> None:
        """Ask the run to write a checkpoint and end, and the engine not to start it again."""

    @staticmethod
    def rendezvous(spec: Spec) -> tuple[list[str], bool]:
        """torchrun's arguments on this node of the run, and whether this is its first node. Asked by the supervisor
        (`python -m salad.engines`), on the machine where the run runs."""
        return [], True

    def fetch(self, run: RunFolder, spec: Spec, tables_only: bool = False, compare: bool = False) -> None:
        """Bring units and, unless `tables_only`, checkpoints and audio. Can be interrupted and repeated. `compare`
        looks at the bytes of what is here already, not only at sizes and times."""


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
