"""What a launch asks for, as data: launch.json in the run's folder. It names secrets, it never holds them."""

import os
import sys
from collections.abc import Sequence

from pydantic import Field

from salad import parts
from salad.config import Frozen, validate
from salad.engines.targets import Target, remember
from salad.errors import SaladError
from salad.runs import Limits, RunFolder, now, read_json
from store import atomic


class Spec(Frozen):
    """One run, one place. `module` is what runs: `python -m module --lab LAB RUN_ID [arguments]`."""

    run_id: str
    on: str
    engine: str
    target: Target
    module: str = "salad.training"
    arguments: tuple[str, ...] = ()
    gpus: int | None = Field(None, ge=0, description="per node; None takes what a single process finds")
    gpu_type: str | None = None
    nodes: int = Field(1, ge=1)
    workers: int = Field(1, ge=1, description="a pass's shards, worked on side by side")
    max_hours: float | None = Field(None, gt=0)
    budget: float | None = Field(None, gt=0)
    price_per_hour: float = 0.0
    max_hourly_cost: float | None = None
    stall_minutes: float = Field(15.0, gt=0)
    code: dict = {}
    launched_at: str = Field(default_factory=now)

    @property
    def env(self) -> tuple[str, ...]:
        """Names of the environment variables that the run receives."""
        handed = (parts.VARIABLE,) if parts.VARIABLE in os.environ and parts.VARIABLE not in self.target.env else ()
        return self.target.env + handed

    @property
    def limits(self) -> Limits:
        """The limits on hours and cost."""
        return Limits(self.max_hours, self.budget, self.price_per_hour)

    def save(self, run: RunFolder) -> None:
        """Write launch.json, and note in the user's own folder that they have launched on this target."""
        remember(self.target)
        atomic.write_json(run.path / "launch.json", self.model_dump(mode="json"))

    @classmethod
    def of(cls, run: RunFolder) -> "Spec | None":
        """The spec that `run` was launched with; None for a run that was started by hand."""
        data = read_json(run.path / "launch.json")
        return None if data is None else validate(cls, data)


def secrets(names: tuple[str, ...]) -> dict[str, str]:
    """The values of the named environment variables; one that is not set is a SaladError before anything starts."""
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise SaladError(f"the target wants {', '.join(missing)} from the environment, where it is not set; export it")
    return {name: os.environ[name] for name in names}


def command(spec: Spec, lab: str, python: str = sys.executable, shard: int = 0, rendezvous: Sequence[str] = ()) -> list[str]:
    """The run's own command line; torchrun before it where several GPUs or nodes work together."""
    head = [python]
    if (spec.gpus or 1) > 1 or spec.nodes > 1:
        head += ["-m", "torch.distributed.run", "--nproc_per_node", str(spec.gpus or 1)]
        head += list(rendezvous) or ["--standalone"]
    tail = ["-m", spec.module, "--lab", str(lab), spec.run_id, *spec.arguments]
    if spec.workers > 1:
        tail += ["--shard", f"{shard}/{spec.workers}"]
    return head + tail
