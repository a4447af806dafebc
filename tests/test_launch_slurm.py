"""Engine `slurm` on a real Slurm that lives for these tests on this machine."""

import os
import subprocess
import sys
import time
from importlib.metadata import version

import pytest
import test_launch_here as here
from slurm_here import require_slurm, slurm
from tools import PACKAGES

import store
from salad.engines import Run, codesync
from salad.engines.targets import Target
from salad.errors import SaladError

pytestmark = pytest.mark.slurm
SLURM = Target(engine="slurm", partition="debug")


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    require_slurm()
    with slurm(tmp_path_factory.mktemp("slurm")) as conf:
        yield conf


def start(lab, target=SLURM, fields=None, **config) -> Run:
    return here.start(lab, on="slurm", target=target, fields=fields, **config)


def job_of(run: Run) -> str:
    return store.lab_path(run.lab).joinpath("runs", run.run_id, "slurm.json").read_text().split('"')[3]


def hurry(run: Run, seconds: float = 30.0) -> None:
    """Slurm lets a requeued job wait two minutes: not in a test.

    Nor at once: within the second in which its node let the job go, the node refuses it ("already killed, do not launch
    batch job"), and slurmctld then ends it as one that cannot be started."""
    end = time.monotonic() + seconds
    while True:
        completed = subprocess.run(["scontrol", "show", "job", job_of(run)], capture_output=True, text=True).stdout
        if "JobState=PENDING" in completed:
            update = ["scontrol", "update", f"JobId={job_of(run)}", "StartTime=now+3"]
            if subprocess.run(update, capture_output=True).returncode == 0:
                return
        assert time.monotonic() < end, completed
        time.sleep(0.3)


def test_submit_requeue_mid_run_and_it_goes_on_by_itself_to_equal_losses(tmp_path):
    plain = here.start(tmp_path / "plain", steps=80)
    run = start(tmp_path / "lab", steps=80, pause=0.05)
    here.reach(run, 12)
    assert "from step 0" in run.logs() and str(run.folder.path / "code" / "tests") in run.logs()
    assert subprocess.run(["scontrol", "requeue", job_of(run)]).returncode == 0
    status = here.until(run, lambda status: status["state"] == "preempted", 30)
    assert status["step"] > 0
    hurry(run)
    status = run.wait(90)
    assert (status["state"], status["attempt"]) == ("done", 2), run.logs()
    assert plain.wait(60)["state"] == "done"
    assert here.losses(run) == here.losses(plain)


def test_stop_cancels_after_a_checkpoint_and_resume_submits_again(tmp_path):
    run = start(tmp_path, steps=200, pause=0.05)
    here.reach(run, 3)
    status = run.stop(wait_s=30)
    assert status["state"] == "stopped" and len(run.folder.checkpoints()) >= 1
    assert run.resume().status()["state"] in ("queued", "starting")
    here.reach(run, status["step"] + 1)
    subprocess.run(["scancel", job_of(run)])  # by somebody else
    status = run.wait(60)
    assert status["state"] == "stopped" and "cancelled on slurm" in status["error"]


def test_a_resume_runs_under_the_versions_that_the_run_began_with(tmp_path, monkeypatch):
    """The whole install is 2.4 GB: pip itself is replaced, the environment is a real one."""
    run = start(tmp_path, steps=60, pause=0.05)
    here.reach(run, 2)
    assert run.stop(wait_s=30)["state"] == "stopped"
    recorded = run.folder.path / "packages.txt"
    before = recorded.read_text()
    recorded.write_text(before.replace(f"jiwer=={version('jiwer')}", "jiwer==0.0.1"))
    monkeypatch.setattr(codesync, "install_script", lambda *words: "echo no matching jiwer==0.0.1 >&2; exit 1")
    with pytest.raises(SaladError, match="installing the run's own versions.*jiwer==0.0.1"):
        run.resume()
    assert run.status()["state"] == "stopped"  # as it was: nothing was started
    asked = []

    def install(python, env, code, constraints):
        asked.append((code, constraints))
        packages = f"{env}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/all.pth"
        return f"{python} -m venv --without-pip {env} && printf '%s\\n' {' '.join(PACKAGES)} > {packages}"

    monkeypatch.setattr(codesync, "install_script", install)
    status = run.resume().wait(60)
    assert status["state"] == "done", run.logs()
    assert asked == [(str(run.folder.path / "code"), str(recorded))] and "jiwer 0.0.1 → " in run.logs()
    env = tmp_path / ".environments" / "env" / codesync.environment_id(run.folder)
    assert any(str(env) in path.read_text() for path in (run.folder.path / "slurm").glob("*.sh"))


def test_time_limit_of_the_run_and_a_walltime_that_only_puts_it_back(tmp_path, monkeypatch):
    from salad.engines import slurm as engine

    limited = start(tmp_path, steps=400, pause=0.05, fields={"max_hours": 2 / 3600})
    # a job of two minutes, of which Slurm looks at the clock each half: the signal comes after 30 to 60 s
    monkeypatch.setattr(engine, "SIGNAL_DELAY_S", 59)
    brief = start(tmp_path, target=SLURM.model_copy(update={"walltime_hours": 2 / 60}), steps=2000, pause=0.08)
    status = limited.wait(60)
    assert status["state"] == "stopped" and "time limit" in status["error"]
    status = here.until(brief, lambda status: status["state"] == "preempted", 100)
    assert status["error"] == "asked to end by SIGTERM" and brief.folder.checkpoints()
    hurry(brief)
    here.until(brief, lambda status: status.get("attempt") == 2, 60)
    assert brief.stop(wait_s=60)["state"] in ("stopped", "done")


def test_a_refused_requeue_is_reported_as_such_and_the_run_can_be_resumed(tmp_path):
    from salad.engines import slurm as engine

    run = start(tmp_path, steps=400, pause=0.05)
    here.reach(run, 2)
    job = job_of(run)
    assert subprocess.run(["scontrol", "update", f"JobId={job}", "Requeue=0"]).returncode == 0  # as where it is forbidden
    assert subprocess.run(["scancel", job]).returncode == 0  # SIGTERM, as before its walltime: a checkpoint, and 75
    here.until(run, lambda status: status["state"] in ("preempted", "stopped"), 60)
    while job in jobs():
        time.sleep(0.2)
    engine.requeue(run.folder, job)  # what the job itself does next
    status = run.status()
    assert status["state"] == "stopped" and "Slurm refused to requeue it: " in status["error"]
    assert "requeue" in status["error"] or "job" in status["error"].lower()
    assert "refused" in run.logs() and run.folder.checkpoints()
    assert run.resume().status()["state"] in ("queued", "starting")
    assert run.stop(wait_s=60)["state"] == "stopped"


def test_two_fake_gpus_are_two_ranks(tmp_path):
    run = start(tmp_path, steps=2, gang=True, fields={"gpus": 2})
    assert run.wait(120)["state"] == "done", run.logs()
    assert "2 ranks, CUDA_VISIBLE_DEVICES=0,1" in run.logs()


def test_an_array_pass_publishes_each_unit_once(tmp_path):
    run = start(tmp_path, steps=4, fields={"workers": 3})
    status = run.wait(120)
    assert status["state"] == "done" and status["shards"] == {"done": 3}
    result = store.connect(tmp_path).execute("select count(*), count(distinct sample_id) from samples").fetchone()
    assert result == (12, 12)


def test_secrets_reach_the_job_and_no_file_of_ours(tmp_path, monkeypatch):
    value = f"hush-{os.urandom(8).hex()}"
    monkeypatch.setenv("TINY_TOKEN", value)
    run = start(tmp_path, target=SLURM.model_copy(update={"env": ("TINY_TOKEN",)}), say="TINY_TOKEN", steps=3)
    assert run.wait(60)["state"] == "done"
    assert f"TINY_TOKEN has {len(value)} characters" in run.logs()
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or value.encode() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("target", "fields", "message"),
    [
        ({"partition": "gpu"}, {}, "no partition 'gpu'"),
        ({}, {"gpus": 3}, "more than 2"),
        ({}, {"gpus": 1, "gpu_type": "a100"}, "no type: write the number alone"),
        ({}, {"nodes": 2}, "the partition has 1"),
        ({"account": "nobody", "constraint": "h200"}, {}, "refused the job"),
    ],
)
def test_what_the_cluster_cannot_do_is_one_line_and_leaves_no_job(tmp_path, target, fields, message):
    before = jobs()
    with pytest.raises(SaladError, match=message):
        start(tmp_path, target=SLURM.model_copy(update=target), fields=fields)
    assert jobs() <= before


def jobs() -> set[str]:
    return set(subprocess.run(["squeue", "--noheader", "--format=%i"], capture_output=True, text=True).stdout.split())


def test_without_slurm_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SaladError, match="no Slurm here"):
        start(tmp_path)
    assert not (tmp_path / "slurm.json").exists()
