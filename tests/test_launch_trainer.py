"""The real trainer under launch_gpu: kill -9 mid-run and a resume give the losses of a run that nothing disturbed."""

import json
import shutil

import pytest
import test_launch_here as here

import launch_gpu
from salad import recipes
from salad.engines import Run
from salad.study import steps

SET = {"optim.steps": 40, "optim.warmup": 5, "optim.decay": 10, "optim.checkpoint_every": 10, "optim.log_every": 1}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A lab with what Stage I reads: world, encoder, teacher and natural speech, at their smallest."""
    lab = tmp_path_factory.mktemp("trainer") / "lab"
    config = recipes.miniature().smoke()
    for step in (steps.world, steps.encoder, steps.teacher, steps.natural):
        step(lambda *progress: None, str(lab), config)
    return lab


def test_kill_9_and_resume_of_stage_1_from_the_command_line(lab, tmp_path, capsys):
    other = tmp_path / "lab"
    shutil.copytree(lab, other)
    plain = launch_gpu.launch("miniature_stage1", overrides=SET, lab=lab)
    assert plain.wait(200)["state"] == "done", plain.logs()

    words = [word for key, value in SET.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    assert launch_gpu.main(["miniature_stage1", "--on", "here", *words, "--lab", str(other)]) == 0
    run_id = capsys.readouterr().out.split()[0]
    assert run_id == plain.run_id
    run = Run.open(other, run_id)
    here.reach(run, 14, 200)
    here.kill_all(run)
    assert here.until(run, lambda status: status["state"] == "failed", 10)["error"]
    assert run.resume().wait(200)["state"] == "done", run.logs()
    assert "resumed from step-10" in run.logs()
    assert here.losses(run) == here.losses(plain) and len(here.losses(run)) == 40
    assert run.fetch()["damaged"] == []
