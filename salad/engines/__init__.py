"""Where a run runs: this machine, a machine by SSH, Slurm, any cloud. One specification, one handle.

run = launch("miniature_stage1", on="here", overrides={"optim.steps": 100})
run.status(), run.logs(follow=True), run.metrics(), run.stop(), run.resume(), run.fetch()
"""

from salad.engines.handle import Run, runs
from salad.engines.launch import configuration, launch, launch_run
from salad.engines.spec import Spec
from salad.engines.targets import Target

__all__ = ["Run", "Spec", "Target", "configuration", "launch", "launch_run", "runs"]
