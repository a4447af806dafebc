"""Engine `here`, on real processes: what outlives what, and what each end looks like from outside."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
from tools import ROOT, ROUNDS, TINY, Lines

import launch_gpu
import store
from salad import recipes
from salad.engines import Run, handle, launch_run
from salad.engines import targets as target_files
from salad.engines.base import Engine, load
from salad.engines.fetching import inputs
from salad.engines.spec import Spec
from salad.engines.targets import Target
from salad.errors import SaladError
from salad.runs import RunFolder


def start(lab, on="here", target=None, fields=None, **config) -> Run:
    run = RunFolder.get_or_create(lab, "stage1", "tiny", {"steps": 20, "pause": 0.015} | config)
    target = target or Target(engine="here")
    return launch_run(run, on, target, module=TINY, **({"engine": target.engine} | (fields or {})))


def until(run: Run, done, seconds=30.0) -> dict:
    end = time.monotonic() + seconds
    while not done(status := run.status()):
        assert time.monotonic() < end, (status, run.logs())
        time.sleep(0.05)
    return status


def reach(run: Run, step: int, seconds=60.0) -> dict:
    """Wait until the run has logged this step (its status is written every 2 s only)."""
    return until(run, lambda status: status["state"] == "running" and len(run.folder.metrics()) >= step, seconds)


def losses(run: Run) -> list[tuple]:
    return [(row["step"], row["values"]["loss"]) for row in run.folder.metrics()]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The losses of 80 steps that nothing disturbed."""
    run = start(tmp_path_factory.mktemp("lab"), steps=80, pause=0)
    assert run.wait(60)["state"] == "done"
    assert [step for step, _ in losses(run)] == list(range(1, 81))
    return losses(run)


def kill_all(run: Run) -> None:
    """As a power cut does: supervisor and run at once."""
    marked = json.loads((run.folder.path / "supervisor.json").read_text())
    for part in marked.values():
        os.kill(part["pid"], signal.SIGKILL)


def test_a_run_goes_from_start_to_done_and_tells_what_it_ran(tmp_path):
    run = start(tmp_path, steps=10)
    status = run.wait(60)
    assert (status["state"], status["step"], status["error"]) == ("done", 10, None)
    assert list(run.metrics().columns) == ["run_id", "step", "tokens", "name", "value", "at"]
    assert len(run.metrics()) == 10 and "from step 0" in run.logs()
    code = Spec.of(run.folder).code
    assert code["commit"] == status["git_commit"] and len(code["tree"]) == 40
    assert "torch==" in (run.folder.path / "packages.txt").read_text()
    assert run.fetch() == {"checkpoints": 2, "units": 0, "damaged": []}
    assert start(tmp_path, steps=10).status() == status  # done: launching it again does nothing
    assert repr(run) == f"{run.run_id} on here: done, step 10 of 10"


def test_it_outlives_the_notebook_kernel_that_started_it(tmp_path):
    cell = f"""
        import sys, time
        sys.path.insert(0, {str(ROOT / "tests")!r})
        import test_launch_here
        run = test_launch_here.start({str(tmp_path)!r}, steps=60, pause=0.05)
        print(run.run_id, flush=True)
        time.sleep(60)
    """
    kernel = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(cell)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        cwd=ROOT,
    )
    run = Run.open(tmp_path, kernel.stdout.readline().strip())
    reach(run, 2)
    os.killpg(kernel.pid, signal.SIGKILL)
    kernel.wait()
    assert run.wait(60)["state"] == "done"


def test_kill_9_of_everything_is_seen_at_once_and_a_resume_gives_equal_losses(tmp_path, undisturbed):
    for rounds in range(ROUNDS):
        run = start(tmp_path / str(rounds), steps=80)
        reach(run, 11 + 7 * rounds)
        kill_all(run)
        status = until(run, lambda status: status["state"] != "running", seconds=5)
        assert status["state"] == "failed" and "resume" in status["error"]
        assert store.connect(run.lab).execute("select status from runs").fetchall() == [("failed",)]
        assert Run.open(run.lab, run.run_id).resume().wait(60)["state"] == "done"
        assert losses(run) == undisturbed
        steps = store.connect(run.lab).execute("select count(*), count(distinct step) from metrics").fetchone()
        assert steps == (80, 80)


def test_kill_9_of_the_run_alone_is_failed_and_resumes(tmp_path, undisturbed):
    run = start(tmp_path, steps=80)
    os.kill(reach(run, 12)["pid"], signal.SIGKILL)
    status = until(run, lambda status: status["state"] == "failed", seconds=10)
    assert "signal 9" in status["error"]
    assert run.resume().wait(60)["state"] == "done" and losses(run) == undisturbed


def test_sigterm_to_the_run_is_a_preemption_from_which_it_goes_on_by_itself(tmp_path, undisturbed):
    run = start(tmp_path, steps=80)
    os.kill(reach(run, 12)["pid"], signal.SIGTERM)
    status = run.wait(60)
    assert (status["state"], status["attempt"]) == ("done", 2)
    assert losses(run) == undisturbed


def test_stop_writes_a_checkpoint_and_resume_goes_on_from_it(tmp_path, undisturbed):
    run = start(tmp_path, steps=80)
    reach(run, 12)
    status = run.stop(wait_s=30)
    assert (status["state"], status["error"]) == ("stopped", "stopped by hand")
    step = status["step"]
    assert run.folder.checkpoints()[-1].name == f"step-{step}"
    assert run.resume().wait(60)["state"] == "done" and losses(run) == undisturbed
    assert f"from step {step} " in run.logs()


def test_three_failures_at_the_same_step_end_it_and_a_resume_counts_anew(tmp_path):
    run = start(tmp_path, fail_at=7)
    status = run.wait(60)
    assert (status["state"], status["error"]) == (
        "failed",
        "failed 3 times at step 7: RuntimeError: broken at 7",
    )
    assert status["attempt"] == 3
    assert run.resume().wait(60)["attempt"] == 6


def test_what_a_person_has_to_mend_is_not_tried_again(tmp_path):
    status = start(tmp_path, refuse=True).wait(60)
    assert (status["state"], status["error"], status["attempt"]) == (
        "failed",
        "the teacher is missing; make it first",
        1,
    )


def test_a_module_that_is_not_there_fails_with_the_logs_last_line(tmp_path):
    run = RunFolder.get_or_create(tmp_path, "stage1", "tiny", {"steps": 1})
    status = launch_run(run, "here", Target(engine="here"), module="salad.no_such", engine="here").wait(60)
    assert status["state"] == "failed" and "salad.no_such" in status["error"]


def test_the_time_limit_and_the_budget_end_a_run_that_can_be_resumed_with_a_higher_one(tmp_path):
    run = start(tmp_path, steps=50, pause=0.05, fields={"max_hours": 1 / 3600})
    status = run.wait(60)
    assert status["state"] == "stopped" and "time limit" in status["error"] and status["step"] < 50
    with pytest.raises(SaladError, match="higher --max-hours"):
        run.resume()
    money = start(tmp_path, steps=51, pause=0.05, fields={"budget": 0.01, "price_per_hour": 36.0})
    status = money.wait(60)
    assert status["state"] == "stopped" and "budget" in status["error"]
    assert run.resume(max_hours=1).wait(60)["state"] == "done"


def test_a_run_that_hangs_past_its_limit_is_made_to_end(tmp_path, monkeypatch):
    from salad.engines import supervisor

    run = RunFolder.get_or_create(tmp_path, "stage1", "tiny", {"steps": 20, "hang_at": 3})
    spec = Spec(run_id=run.run_id, on="here", engine="here", target=Target(engine="here"), module=TINY, max_hours=1 / 3600)
    spec.save(run)
    monkeypatch.setattr(supervisor, "GRACE_S", 1.0)
    before, others = signal.getsignal(signal.SIGTERM), psutil.Process().children(recursive=True)  # of earlier tests
    try:
        supervisor.supervise(run, spec)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert run.read_status()["state"] in ("failed", "stopped")
    left = [p for p in psutil.Process().children(recursive=True) if p not in others]
    assert not [p for p in left if p.status() != psutil.STATUS_ZOMBIE]


def test_stalled_is_a_run_that_beats_without_moving_or_is_there_without_beating():
    spec = Spec(run_id="r1", on="box", engine="ssh", target=Target(engine="ssh"), stall_minutes=10)
    box, slurm = load(spec.target), load(Target(engine="slurm"))
    now, old, older = (handle.now(), "2020-01-01T00:00:00.000Z", "2020-01-01T00:00:00.000Z")
    running = {"state": "running", "heartbeat_at": now, "progress_at": now}
    assert handle.infer_status(running, "alive", spec, box)["state"] == "running"
    assert handle.infer_status(running | {"progress_at": older}, "alive", spec, box)["state"] == "stalled"
    assert handle.infer_status(running | {"heartbeat_at": old}, "alive", spec, box)["state"] == "stalled"
    unheard = handle.infer_status(running | {"heartbeat_at": old}, None, spec, box)
    assert unheard["state"] == "stalled" and "box cannot be asked" in unheard["error"]
    assert handle.infer_status(running, "gone", spec, box)["state"] == "failed"
    by_hand = handle.infer_status(running | {"heartbeat_at": old}, None, None, None)  # no engine to ask: its silence decides
    assert by_hand["state"] == "failed"
    retried = handle.infer_status({"state": "failed", "error": "x"}, "alive", spec, box)
    assert retried["state"] == "starting"  # until its supervisor has decided
    assert handle.infer_status({"state": "failed", "settled": True}, "alive", spec, box)["state"] == "failed"
    cluster = spec.model_copy(update={"engine": "slurm"})
    preempted = {"state": "preempted", "ended_at": now}
    assert handle.infer_status(preempted, "gone", cluster, slurm)["state"] == "preempted"  # on its way back to the queue
    assert handle.infer_status(preempted | {"ended_at": old}, "gone", cluster, slurm)["state"] == "stopped"
    for state in ("done", "failed", "stopped"):
        assert handle.infer_status({"state": state}, "gone", spec, box)["state"] == state
    assert handle.infer_status({}, "queued", spec, box)["state"] == "queued"
    assert handle.infer_status({"state": "running", "heartbeat_at": now}, "queued", spec, box)["state"] == "preempted"


class OnShelf(Engine):
    """An engine of one's own, as people write them: it shares the lab, asks for prices itself and runs nothing."""

    knows_prices = True
    requeues = True

    def preflight(self, spec):
        pass

    def start(self, run, spec):
        (run.path / "shelf").touch()

    def look(self, run, spec):
        return "queued" if (run.path / "shelf").exists() else "gone"

    def stop(self, run, spec):
        (run.path / "shelf").unlink()


def test_what_an_engine_can_do_is_its_own_to_say(tmp_path):
    target = Target(engine="test_launch_here:OnShelf", price_per_hour=9.0)
    run = start(tmp_path, on="shelf", target=target)
    assert run.status()["state"] == "queued" and run.status()["on"] == "shelf"
    old = "2020-01-01T00:00:00.000Z"
    ended = {"state": "preempted", "ended_at": old}
    assert handle.infer_status(ended, "gone", run.spec, run.engine)["state"] == "stopped"  # it was to start it again
    assert handle.infer_status(ended, "gone", run.spec, load(Target(engine="here")))["state"] == "preempted"
    silent = {"state": "running", "heartbeat_at": old}
    assert handle.infer_status(silent, None, run.spec, run.engine)["state"] == "failed"  # its files are the lab's own
    assert handle.infer_status(silent, None, run.spec, load(Target(engine="sky")))["state"] == "stalled"
    (tmp_path / "targets.toml").write_text(
        "[shelf]\nengine = 'test_launch_here:OnShelf'\nprice_per_hour = 9.0\n[box]\nengine = 'here'\nprice_per_hour = 9.0\n"
    )
    asked = {"lab": tmp_path / "other", "max_hourly_cost": 1.0, "targets": tmp_path / "targets.toml"}
    assert launch_gpu.launch("miniature_stage1", on="shelf", **asked).status()["state"] == "queued"
    with pytest.raises(SaladError, match="box costs 9 an hour"):
        launch_gpu.launch("miniature_stage1", on="box", **asked)


def test_two_launches_of_the_same_run_are_one_process(tmp_path):
    first = start(tmp_path, steps=200)
    second = start(tmp_path, steps=200)
    reach(first, 3)
    assert second.run_id == first.run_id and second.resume().status()["pid"] == first.status()["pid"]
    assert first.stop(wait_s=30)["attempt"] == 1


def test_secrets_go_by_name_and_their_values_nowhere(tmp_path, monkeypatch):
    value = f"hush-{os.urandom(8).hex()}"
    monkeypatch.setenv("TINY_TOKEN", value)
    target = Target(engine="here", env=("TINY_TOKEN",))
    run = start(tmp_path, target=target, say="TINY_TOKEN", steps=3)
    assert run.wait(60)["state"] == "done"
    assert f"TINY_TOKEN has {len(value)} characters" in run.logs()
    for path in run.folder.path.rglob("*"):
        assert path.is_dir() or value.encode() not in path.read_bytes(), path
    monkeypatch.delenv("TINY_TOKEN")
    with pytest.raises(SaladError, match="TINY_TOKEN"):
        start(tmp_path, target=target, steps=4)


def test_shards_of_a_pass_work_side_by_side_and_each_unit_is_counted_once(tmp_path):
    run = start(tmp_path, steps=5, fields={"workers": 3})
    status = run.wait(60)
    assert status["state"] == "done" and status["shards"] == {"done": 3}
    counted = store.connect(tmp_path).execute("select count(*), count(distinct sample_id) from samples").fetchone()
    assert counted == (12, 12)
    run.resume()
    broken = start(tmp_path, steps=6, refuse=True, fields={"workers": 2}).wait(60)
    assert broken["state"] == "failed" and "teacher is missing" in broken["error"]


def test_what_a_pass_reads_goes_with_it_to_another_machine(tmp_path):
    models = {"llm": {"name": "models/teacher"}, "encoder": {"name": "models/encoder"}}
    scored = RunFolder.get_or_create(tmp_path, "stage1", "tiny", models)
    for step in (5, 10):
        (scored.path / "checkpoints" / f"step-{step}").mkdir(parents=True)
    for name in ("models/teacher", "models/encoder", "models/recogniser", "speech/probe", "speech/other", "tables/samples"):
        (tmp_path / name).mkdir(parents=True)
    config = {"pass": "score", "run_id": scored.run_id, "step": 10, "speech": "probe"}
    wanted = set(inputs(RunFolder.get_or_create(tmp_path, "pass", "score", config)))
    assert wanted > {
        f"runs/{scored.run_id}/config.json", f"runs/{scored.run_id}/checkpoints/step-10", "models/teacher",
        "models/encoder", "speech/probe", "tables/samples",
    }  # fmt: skip
    assert not {"speech/other", f"runs/{scored.run_id}/checkpoints/step-5"} & wanted
    check = RunFolder.get_or_create(tmp_path, "pass", "check", {"pass": "check", "speech": "probe", "asr": "../outside"})
    assert {"models/recogniser", "speech/probe"} <= set(inputs(check)) and "../outside" not in inputs(check)


def test_torchrun_starts_as_many_processes_as_gpus(tmp_path):
    run = start(tmp_path, target=Target(engine="here", gpus=2), steps=2, gang=True, fields={"gpus": 2})
    assert run.wait(120)["state"] == "done", run.logs()
    assert "2 ranks" in run.logs()


# the command line


def cli(capsys, *argv) -> Lines:
    code = launch_gpu.main([str(word) for word in argv])
    output = capsys.readouterr()
    return Lines(code, output.out, output.err)


BAD = [
    (["miniature_stge1"], "did you mean 'miniature_stage1'"),
    (["miniature_stage1", "--set", "optim.step=3"], "did you mean 'optim.steps'"),
    (["miniature_stage1", "--set", "optim.steps"], "a.b=VALUE"),
    (["miniature_stage1", "--set", "optim.steps=-1"], "optim.steps"),
    (["miniature_stage1", "--gpus", "99"], "this machine has"),
    (["miniature_stage1", "--gpus", "9999"], "no machine has 9,999 GPUs; write TYPE:NUMBER"),
    (["miniature_stage1", "--gpus", "H200:x"], "TYPE:NUMBER"),
    (["miniature_stage1", "--nodes", "2"], "this machine is one node"),
    (["miniature_stage1", "--nodes", "0"], "more than 0"),
    (["miniature_stage1", "--max-hours", "0"], "--max-hours"),
    (["miniature_stage1", "--max-hourly-cost", "-1"], "--max-hourly-cost"),
    (["miniature_stage1", "--budget", "3"], "price_per_hour"),
    (["miniature_stage1", "--on", "srv"], "did you mean 'server'"),
    (["miniature_stage1", "--on", "server", "--max-hourly-cost", "1"], "costs 4 an hour"),
    (["miniature_stage1", "--on", "odd"], "unknown engine 'clowd'"),
    (["miniature_stage1", "--on", "ssh:host:port"], "ssh:[user@]host[:port]"),
    (["no/such/config.json"], "No such file"),
    (["logs", "r000000000000"], "no run"),
    (["stop", "nonsense"], "no run"),
    (["fetch", "r000000000000"], "no run"),
]


@pytest.mark.parametrize(("argv", "message"), BAD, ids=[" ".join(argv) for argv, _ in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "targets.toml").write_text(
        '[server]\nengine = "ssh"\nhost = "server"\nprice_per_hour = 4\n[odd]\nengine = "clowd"\n'
    )
    lines = cli(capsys, *argv, "--lab", tmp_path / "lab")
    assert lines.code == 2 and message in lines.err
    assert len(lines.err.splitlines()) == 1 and "Traceback" not in lines.err and not lines.out
    assert not (tmp_path / "lab").exists()


def test_a_targets_file_with_an_unknown_key_or_none_is_one_line(tmp_path):
    path = tmp_path / "targets.toml"
    for text, message in (('[a]\nengine = "ssh"\nhots = "x"', "hots"), ("[a", "targets.toml"), ("a = 3", "[a]")):
        path.write_text(text)
        with pytest.raises(SaladError, match=message.replace("[", r"\[")):
            target_files.resolve("a", path)
    with pytest.raises(SaladError, match="no targets file"):
        target_files.read(tmp_path / "other.toml")
    path.write_text('default = "gpu"\n[gpu]\nengine = "ssh"\nhost = "h"\nenv = ["HF_TOKEN"]')
    assert target_files.resolve(None, path)[1].host == "h"
    assert target_files.resolve("ssh:me@box:2222", path)[1].model_dump(include={"host", "user", "port"}) == {
        "host": "box",
        "user": "me",
        "port": 2222,
    }


def test_no_recipe_bears_the_name_of_a_command():
    assert not set(launch_gpu.RESERVED) & set(recipes.names())


def test_list_logs_stop_resume_and_fetch_from_the_command_line(tmp_path, capsys):
    run = start(tmp_path, steps=150, pause=0.03)
    reach(run, 2)
    listed = cli(capsys, "list", "--lab", tmp_path)
    assert listed.code == 0 and run.run_id in listed.out and "running" in listed.out
    assert "stopped" in cli(capsys, "stop", run.run_id, "--wait", 30, "--lab", tmp_path).out
    followed = cli(capsys, "resume", run.run_id, "--follow", "--lab", tmp_path)
    assert followed.code == 0 and followed.out.count("from step") == 2 and "done" in followed.out.splitlines()[-1]
    assert "from step 0" in cli(capsys, "logs", run.run_id, "--lab", tmp_path).out
    fetched = cli(capsys, "fetch", run.run_id, "--lab", tmp_path)
    assert fetched.code == 0 and "here and complete" in fetched.out
    (run.folder.checkpoints()[0] / "state.json").write_text("{}")
    damaged = cli(capsys, "fetch", run.run_id, "--lab", tmp_path)
    assert damaged.code == 1 and "damaged" in damaged.out
    assert cli(capsys, "check", "here").out.endswith("here would work\n")
