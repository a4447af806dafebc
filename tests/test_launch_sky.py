"""Engine `sky`: the YAML under SkyPilot's own classes, and a stand-in `sky` that plays back what clouds do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_launch_here as here
import yaml
from tools import PACKAGES, ROOT, refuse

import launch_gpu
import store
from salad.engines import Run
from salad.engines import sky as engine
from salad.engines.spec import Spec
from salad.engines.targets import Target
from salad.errors import SaladError
from salad.runs import RunFolder

VALIDATE = """
import json, sys
import sky
from sky import jobs
task = sky.Task.from_yaml(sys.argv[1])
task.validate()
resources = list(task.resources)[0]
print(json.dumps({"nodes": task.num_nodes, "spot": resources.use_spot, "accelerators": resources.accelerators,
                  "recovery": resources.job_recovery, "mounts": sorted(task.storage_mounts),
                  "modes": [s.mode.value for s in task.storage_mounts.values()], "name": task.name}))
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A target whose `sky` is the stand-in, its bucket a folder."""
    folder = tmp_path / "sky"
    folder.mkdir()
    command = folder / "sky"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests" / "stand_in_sky.py"} "$@"\n')
    command.chmod(0o755)
    (folder / "play").write_text("RUNNING")
    monkeypatch.setenv("SKY_STAND_IN", str(folder))
    monkeypatch.setenv("SKY_STAND_IN_PACKAGES", os.pathsep.join(PACKAGES))
    monkeypatch.setattr(engine, "LOOK_S", 0.0)
    return Target(engine="sky", sky=str(command), bucket=f"file://{tmp_path / 'bucket'}")


def play(*states: str) -> None:
    Path(os.environ["SKY_STAND_IN"], "play").write_text("\n".join(states))


def calls() -> list[list[str]]:
    return [json.loads(line) for line in Path(os.environ["SKY_STAND_IN"], "calls").read_text().splitlines()]


def start(lab, target, fields=None, **config) -> Run:
    return here.start(lab, on="sky", target=target, fields=fields, **config)


def in_bucket(run: Run, **status) -> None:
    """What the run would have written through the bucket."""
    folder = Path(json.loads((run.folder.path / "sky.json").read_text())["bucket"].removeprefix("file://"))
    there = RunFolder.open(folder, run.run_id)
    there.status(**status)


@pytest.mark.sky
def test_the_yaml_is_valid_under_skypilots_own_classes(tmp_path):
    python = os.environ.get("SALAD_SKY_PYTHON") or str(Path.home() / ".cache/salad/skypilot/bin/python")
    if not Path(python).exists():
        refuse(f"SkyPilot's environment is not there ({python}); .ci/tools.sh makes it", "sky")
    target = Target(
        engine="sky", bucket="s3://somebody/salad", spot=True, container="nvcr.io/nvidia/pytorch:25.01-py3", env=("HF_TOKEN",)
    )
    run = RunFolder.get_or_create(tmp_path, "stage1", "tiny", {"steps": 1})
    spec = Spec(run_id=run.run_id, on="sky", engine="sky", target=target, gpus=8, gpu_type="H200", nodes=2, max_hourly_cost=50.0)
    engine._scheme, own = lambda bucket: "s3", engine._scheme  # aws itself is not needed to write YAML
    try:
        task = engine.Sky(target).task(run, spec, str(ROOT / "salad"))
    finally:
        engine._scheme = own
    path = tmp_path / "task.yaml"
    path.write_text(engine._yaml(task))
    home = tmp_path / "home"
    catalog = home / ".sky" / "catalogs" / "v8" / "common"  # else it is looked for on the network
    catalog.mkdir(parents=True)
    (catalog / "accelerators.csv").write_text("AcceleratorName,Clouds\nH200,\"['AWS']\"\n")
    (catalog / "metadata.csv").write_text("GPU,MemoryGB,Manufacturer\nH200,141,NVIDIA\n")
    env = os.environ | {"HOME": str(home), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}
    done = subprocess.run([python, "-c", VALIDATE, path], capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.strip().splitlines()[-1]) == {
        "nodes": 2, "spot": True, "accelerators": {"H200": 8}, "name": f"salad-{run.run_id}",
        "recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [75], "strategy": None},
        "mounts": ["~/salad-lab"], "modes": ["MOUNT_CACHED"],
    }  # fmt: skip


def test_a_run_goes_through_the_bucket_and_comes_back(tmp_path, cloud, monkeypatch):
    monkeypatch.setenv("TINY_TOKEN", value := f"hush-{os.urandom(8).hex()}")
    Path(os.environ["SKY_STAND_IN"], "RUN").touch()
    plain = here.start(tmp_path / "plain", steps=12)
    target = cloud.model_copy(update={"env": ("TINY_TOKEN",)})
    run = start(tmp_path / "lab", target, steps=12, say="TINY_TOKEN", unit=5)
    play("STARTING", "RUNNING")
    status = run.wait(60)
    assert status["state"] == "done", (run.logs(), Path(os.environ["SKY_STAND_IN"], "output").read_text())
    assert plain.wait(60)["state"] == "done" and here.losses(run) == here.losses(plain)
    assert run.fetch(tables_only=True)["units"] == 1 and not run.folder.checkpoints()
    assert run.fetch() == {"checkpoints": 2, "units": 1, "damaged": []}
    launched = next(words for words in calls() if words[:2] == ["jobs", "launch"])
    assert launched[launched.index("--secret") + 1] == "TINY_TOKEN"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and value.encode() in path.read_bytes()]


def test_the_workers_of_a_pass_have_a_machine_each_and_a_failed_one_does_not_end_the_others(tmp_path, cloud):
    Path(os.environ["SKY_STAND_IN"], "RUN").touch()
    run = start(tmp_path / "lab", cloud, steps=3, fields={"workers": 3})
    assert yaml.safe_load((run.folder.path / "sky.yaml").read_text())["num_nodes"] == 3
    status = run.wait(60)
    output = Path(os.environ["SKY_STAND_IN"], "output").read_text()
    assert status["state"] == "done" and status["shards"] == {"done": 3}, output
    assert run.fetch()["units"] == 3 and run.fetch()["units"] == 3
    counted = store.connect(tmp_path / "lab").execute("select count(*), count(distinct sample_id) from samples").fetchone()
    assert counted == (12, 12)
    failing = start(tmp_path / "lab", cloud, steps=4, refuse=True, fields={"workers": 2})
    here.until(failing, lambda status: status.get("shards") == {"failed": 2}, 60)
    play("SUCCEEDED")  # what sky makes of nodes that exit 0
    broken = failing.status()
    assert broken["state"] == "failed" and "teacher is missing" in broken["error"]
    with pytest.raises(SaladError, match="each worker has a node of its own"):
        start(tmp_path / "lab", cloud, steps=5, fields={"workers": 2, "nodes": 2})


@pytest.mark.parametrize(
    ("states", "state", "message"),
    [
        (["PENDING"], "queued", None),
        (["STARTING"], "queued", None),
        (["FAILED_NO_RESOURCE no H200 anywhere"], "failed", "no capacity: no H200 anywhere"),
        (["FAILED_SETUP"], "failed", "failed_setup"),
        (["FAILED_PRECHECKS bad name"], "failed", "bad name"),
        (["LOST"], "failed", "no longer knows the job"),
        (["CANCELLED"], "stopped", "cancelled"),
        (["SUCCEEDED"], "done", None),
    ],
)
def test_what_sky_says_of_a_job_that_says_nothing_itself(tmp_path, cloud, states, state, message):
    run = start(tmp_path / "lab", cloud)
    play(*states)
    status = run.status()
    assert status["state"] == state
    assert (message is None and status["error"] is None) or message in status["error"]


def test_running_recovering_a_cut_log_stream_and_running_again(tmp_path, cloud):
    run = start(tmp_path / "lab", cloud)
    play("RUNNING", "RECOVERING", "DOWN", "RUNNING", "CANCELLING")
    in_bucket(run, state="running", step=7, max_steps=20)
    assert run.status()["state"] == "running" and run.folder.read_status()["step"] == 7
    assert run.status()["state"] == "preempted"
    assert run.status()["state"] == "running"  # sky cannot be asked, but the run was heard a moment ago
    in_bucket(run, state="running", step=9)
    assert run.status()["step"] == 9
    assert run.stop()["state"] == "stopped"
    assert ["jobs", "cancel", "--yes", "1"] in calls()
    play("CANCELLED")
    run.resume()
    assert json.loads((run.folder.path / "sky.json").read_text())["job_id"] == 2


def test_dry_run_shows_the_yaml_and_the_command_and_starts_nothing(tmp_path, cloud, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("targets.toml").write_text(
        f'[spot]\nengine = "sky"\nsky = "{cloud.sky}"\nbucket = "{cloud.bucket}"\nspot = true\nenv = ["TINY_TOKEN"]\n'
    )
    monkeypatch.setenv("TINY_TOKEN", "hush-1")
    argv = ["miniature_stage1", "--on", "spot", "--gpus", "H200:8", "--max-hourly-cost", "9", "--dry-run"]
    code = launch_gpu.main([*argv, "--lab", str(tmp_path / "lab")])
    output = capsys.readouterr()
    assert code == 0, output.err
    task = yaml.safe_load(output.out)
    assert task["resources"]["accelerators"] == "H200:8" and task["resources"]["use_spot"] is True
    assert task["resources"]["max_hourly_cost"] == 9 and task["resources"]["autostop"]["down"] is True
    assert "jobs launch --yes" in output.out and "--secret TINY_TOKEN" in output.out and "hush-1" not in output.out
    assert not [words for words in calls() if words[0] == "jobs"] and not (tmp_path / "lab").exists()


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        ({"sky": "/no/sky"}, {}, "no sky here"),
        ({"bucket": None}, {}, "no bucket"),
        ({"bucket": "ftp://x"}, {}, "s3://"),
        ({}, {"gpus": 8}, "name the type"),
        ({}, {"gpus": 8, "gpu_type": "Z9"}, "no cloud that sky knows"),
        (
            {},
            {"gpus": 8, "gpu_type": "H200", "max_hourly_cost": 31.0},
            "cheapest 1 × H200:8 costs 32 an hour",
        ),
        ({"spot": True}, {"gpus": 8, "gpu_type": "H200", "max_hourly_cost": 7.0}, "costs 8 an hour"),
        ({"env": ("NOT_SET_ANYWHERE",)}, {}, "NOT_SET_ANYWHERE"),
    ],
)
def test_what_cannot_work_is_one_line_and_launches_nothing(tmp_path, cloud, change, fields, message):
    with pytest.raises(SaladError, match=message) as caught:
        start(tmp_path / "lab", cloud.model_copy(update=change), fields=fields)
    assert "\n" not in str(caught.value)
    assert not Path(os.environ["SKY_STAND_IN"], "jobs").exists()


def test_a_launch_that_sky_refuses_is_one_line(tmp_path, cloud):
    Path(os.environ["SKY_STAND_IN"], "refuse").touch()
    with pytest.raises(SaladError, match="no credentials"):
        start(tmp_path / "lab", cloud)
