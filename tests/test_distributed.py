"""Several processes train one run: torchrun, gloo and FSDP2 on the CPU, the very path that GPUs take."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from tiny import config, lab

from salad import SaladError, training
from salad.config import LLMConfig
from salad.training import checkpoints

STEPS = {"steps": 8, "decay": 2, "warmup": 1, "checkpoint_every": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return lab(tmp_path_factory.mktemp("lab"))


def wanted(finetune: str = "lora", **optim):
    base = config()
    return config(
        llm=LLMConfig(lora_rank=4, finetune=finetune),
        optim=base.optim.model_copy(update=STEPS | {"batch_tokens": 300, "micro_tokens": 90} | optim),
        data=base.data.model_copy(update={"p_text": 0.3}),
        sequences=base.sequences.model_copy(update={"context": 120}),
    )


def together(place, run, processes: int = 2) -> subprocess.Popen:
    """The run under torchrun, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes),
         "-m", "salad.training", "--lab", str(place), run.run_id],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def losses(run, *names) -> list:
    return [[row["values"].get(name) for name in names or ("loss", "grad_norm")] for row in run.metrics()]


def reach(run, process, step: int, attempt: int, seconds: float = 120) -> None:
    """Wait until this attempt of the run has logged `step`."""
    deadline = time.monotonic() + seconds
    while run.read_status().get("attempt") != attempt or step not in {row["step"] for row in run.metrics()}:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_two_processes_give_the_losses_of_one_with_the_same_global_batch(place, finetune):
    run = training.prepare(place, wanted(finetune), "tiny")
    process = together(place, run)
    alone = training.prepare(place, wanted(finetune), "tiny", repetition=1)
    training.train(place, alone.run_id)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    names = ("loss", "grad_norm", "d_natural", "d_text")
    first, two = losses(alone, *names), losses(run, *names)
    assert len(first) == len(two) == STEPS["steps"]
    for a, b in zip(first, two, strict=True):
        assert [x is None for x in a] == [x is None for x in b]
        assert [x for x in b if x is not None] == pytest.approx([x for x in a if x is not None], abs=1e-4, rel=1e-4)
    assert [row["tokens"] for row in run.metrics()] == [row["tokens"] for row in alone.metrics()]
    from salad.models import SpeechLM

    last = [SpeechLM.from_pretrained(checkpoints.latest(r.path) / "model", place) for r in (alone, run)]
    for a, b in zip(*(m.parameters() for m in last), strict=True):
        assert (a - b).abs().max() < 1e-4
    with pytest.raises(SaladError, match="trained by 2 processes so far.*now there are 1"):
        (run.path / "checkpoints" / "step-8").exists() and training.train(place, run.run_id)


def test_one_process_that_dies_ends_the_other_and_the_run_goes_on_exactly(place):
    run = training.prepare(place, wanted(steps=200, checkpoint_every=3), "tiny")
    process = together(place, run)
    reach(run, process, 5, attempt=1)
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "salad.training" in p.cmdline()]
    assert len(workers) == 2
    began = time.monotonic()
    victim = next(p for p in workers if p.environ().get("RANK") == "1")
    victim.send_signal(signal.SIGKILL)
    gone, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive and time.monotonic() - began < 60
    output = process.communicate(timeout=60)[0]
    assert process.returncode != 0 and run.read_status()["state"] == "failed", output
    assert "process" in run.read_status()["error"] or "onnection" in run.read_status()["error"]
    before = {row["step"]: row["values"]["loss"] for row in run.metrics()}
    # taken up again by as many, and asked to end: a checkpoint, and status preempted
    step = json.loads((checkpoints.latest(run.path) / "state.json").read_text())["step"]
    process = together(place, run)
    reach(run, process, step + 5, attempt=2)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGTERM)
    output = process.communicate(timeout=25)[0]
    assert time.monotonic() - began < 25
    assert run.read_status()["state"] == "preempted", output
    rows = {row["step"]: row["values"]["loss"] for row in run.metrics()}
    saved = checkpoints.state_of(checkpoints.latest(run.path))["step"]
    assert list(rows) == list(range(1, saved + 1)) and saved == run.read_status()["step"] > step
    both = before.keys() & rows.keys()  # steps done twice, or before the death: the same losses
    assert {n: rows[n] for n in both} == {n: before[n] for n in both} and max(both) >= 5


TRACKIO = """
class config:
    update = lambda values, **how: record(values)
class Run:
    def log(self, values, **how): record(values)
    def finish(self): record("finish")
def init(project, **how):
    record(project)
    return Run()
def record(what):
    import json, os
    with open(os.environ["TRACKED"] + os.environ["RANK"], "a") as file:
        file.write(json.dumps(what) + "\\n")
"""


def test_two_processes_and_a_tracker_end_well_and_the_first_alone_tracks(place, tmp_path, monkeypatch):
    (tmp_path / "trackio.py").write_text(TRACKIO)  # a stand-in for the package, which sends to a service
    (tmp_path / "trackio-1.0.dist-info").mkdir()
    (tmp_path / "trackio-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: trackio\nVersion: 1.0\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("TRACKED", str(tmp_path / "tracked-"))
    run = training.prepare(place, wanted().model_copy(update={"trackers": ("trackio",), "seed": 3}), "tiny")
    process = together(place, run)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0 and run.read_status()["state"] == "done", output
    assert [path.name for path in tmp_path.glob("tracked-*")] == ["tracked-0"]
    sent = [json.loads(line) for line in (tmp_path / "tracked-0").read_text().splitlines()]
    assert sent[0] == "salad" and sent[-1] == "finish"
    assert [item["loss"] for item in sent if isinstance(item, dict) and "loss" in item] == [
        row["values"]["loss"] for row in run.metrics()
    ]
