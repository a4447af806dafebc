"""The trainer: what it learns, and that killing, stopping and resuming it changes nothing."""

import contextlib
import importlib.util
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from tiny import config, lab
from tools import ROUNDS, compiler

import store
from salad import SaladError, training
from salad.models import SpeechLM
from salad.runs import RunFolder
from salad.training import checkpoints


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return lab(tmp_path_factory.mktemp("lab"))


def losses(run) -> dict[int, float]:
    return {row["step"]: row["values"]["loss"] for row in run.metrics()}


def slowed(**changes):
    optim = config().optim.model_copy(update={"steps": 40, "decay": 10, "checkpoint_every": 3} | changes)
    return config(optim=optim)


@pytest.fixture(scope="module")
def whole(place):
    """An uninterrupted run of `slowed()`."""
    run = training.prepare(place, slowed(), "tiny")
    training.train(place, run.run_id)
    return run


def test_it_learns_and_leaves_both_checkpoints(place, whole):
    result = losses(whole)
    assert list(result) == list(range(1, 41))
    spoken = [row["values"]["d_speech"] for row in whole.metrics() if "d_speech" in row["values"]]
    assert sum(spoken[-8:]) < 0.9 * sum(spoken[:8])
    assert whole.read_status()["state"] == "done"
    assert [int(p.name.split("-")[1]) for p in whole.checkpoints()] == [30, 40]
    con = store.connect(place)
    row = con.execute("select kind, status, parent_run_id from runs where run_id = ?", [whole.run_id]).fetchone()
    assert row == ("stage1", "done", None)
    counted = con.execute("select count(*) from metrics where name = 'loss' and run_id = ?", [whole.run_id])
    assert counted.fetchone()[0] == 40
    assert (place / "store.duckdb").exists()


def test_the_same_configuration_is_the_same_run_and_done_means_done(place, whole):
    again = training.prepare(place, slowed(), "tiny")
    assert again.run_id == whole.run_id
    assert training.prepare(place, slowed(), "tiny", repetition=1).run_id != whole.run_id


def start(place, run):
    """The run in a process of its own, forked from one warm parent; returns when it has begun to train."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["salad.training", "salad.models.phone"])

    def written():
        """Names, sizes and times of the metrics; a run that goes on takes files back while this looks."""
        while True:
            with contextlib.suppress(FileNotFoundError):
                by_name = {p.name: p.stat() for p in run.path.glob("metrics-*.jsonl")}
                return {name: (message.st_size, message.st_mtime_ns) for name, message in by_name.items()}

    before = written()
    process = context.Process(target=training.main, args=(["--lab", str(place), run.run_id],))
    process.start()
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline:
        now = written()
        if now != before and any(size for size, _ in now.values()):
            return process
        time.sleep(0.01)
    return process


def test_killed_at_random_moments_it_goes_on_to_the_same_losses(place, whole):
    import numpy as np

    rng = np.random.default_rng(0)
    run = training.prepare(place, slowed(), "tiny", repetition=7)
    for _ in range(ROUNDS):
        process = start(place, run)
        time.sleep(rng.uniform(0, 0.6))
        process.kill()
        process.join()
    training.train(place, run.run_id)
    assert losses(run) == losses(whole)
    kept = lambda r: (r.path / "checkpoints" / "step-40" / "model" / "adapter.safetensors").read_bytes()  # noqa: E731
    assert kept(run) == kept(whole)


def test_sigterm_writes_a_checkpoint_and_says_preempted(place, whole):
    run = training.prepare(place, slowed(checkpoint_every=40), "tiny", repetition=8)
    process = start(place, run)
    os.kill(process.pid, signal.SIGTERM)
    process.join(25)
    assert process.exitcode == 75
    assert run.read_status()["state"] == "preempted" and len(run.checkpoints()) >= 1
    training.train(place, run.run_id)
    assert list(losses(run)) == list(range(1, 41)) and run.read_status()["state"] == "done"


def fed(step):
    return step.kind, [(batch.sample_ids, batch.ids_BT.tolist()) for batch in step.batches]


def test_a_loader_taken_up_anywhere_goes_on_with_the_same_batches(place):
    run = slowed()
    model = training.start_model(place, run)
    loader = training.load_data(place, run, model)
    states, batches = [], []
    for _ in range(40):  # pools of text and of speech end in between
        states.append(json.loads(json.dumps(loader.state)))
        batches.append(fed(loader.next()))
    for start in range(40):
        again = training.load_data(place, run, model)
        again.state = states[start]
        for wanted in batches[start : start + 2]:
            assert fed(again.next()) == wanted


def test_packed_steps_are_drawn_at_random_whatever_their_length(place):
    """A step of long texts alone and one of short ones alone would be steps of two domains."""
    import numpy as np

    base = slowed()
    packed = base.model_copy(update={"optim": base.optim.model_copy(update={"batch_tokens": 300})})
    loader = training.load_data(place, packed, training.start_model(place, packed))
    within, between = [], []
    for _ in range(60):
        lengths = [n for batch in loader.next().batches for _, _, n in batch.texts]
        if len(lengths) > 1:
            within.append(np.var(lengths, ddof=1))
            between.append(np.mean(lengths))
    assert len(within) > 40  # as much spread within a step as chance gives; sorted by length there would be far less
    assert np.mean(within) > 2 * np.var(between)


def test_a_damaged_checkpoint_is_passed_over(place, whole):
    run = training.prepare(place, slowed(), "tiny", repetition=9)
    training.train(place, run.run_id)
    weights = run.path / "checkpoints" / "step-40" / "model" / "adapter.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert checkpoints.latest(run.path).name == "step-30"
    with pytest.raises(SaladError, match="damaged"):
        checkpoints.at(run.path, 40)
    training.train(place, run.run_id)
    assert losses(run) == losses(whole)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_samples(place, monkeypatch):
    run = training.prepare(place, config(seed=5), "tiny")
    real = SpeechLM.forward

    def broken(self, batch, **options):
        out = real(self, batch, **options)
        return out._replace(loss=out.loss * float("nan")) if "text" not in batch.sample_ids else out

    monkeypatch.setattr(SpeechLM, "forward", broken)
    with pytest.raises(SaladError, match=r"loss is nan at step \d+; samples: s[0-9a-f]{12}"):
        training.train(place, run.run_id)
    assert run.read_status()["state"] == "failed" and "nan" in run.read_status()["error"]


def test_stage2_starts_from_before_the_parents_decay(place, whole):
    con = store.connect(place)
    sample = con.execute("select sample_id from samples order by 1").fetchall()[:4]
    store.publish(place, "selections", [{"selection_id": "l000000000001", "strategy": "frozen"}], {"l": 1})
    store.publish(
        place,
        "selected",
        [{"selection_id": "l000000000001", "sample_id": s, "draw": i} for i, (s,) in enumerate(sample)],
        {"l": 1},
    )
    child = config(kind="stage2", contender="stage2", parent=whole.run_id)
    model = training.start_model(place, child)
    before = checkpoints.at(whole.path, 30)
    other = SpeechLM.from_pretrained(before / "model", place)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(SaladError, match="another adapter"):
        training.start_model(place, child.model_copy(update={"adapter": child.adapter.model_copy(update={"mlp": 96})}))


def test_resolving_and_a_dry_run_write_nothing_and_a_launch_freezes(place, whole):
    from salad.engines import launch

    con = store.connect(place)
    spoken = con.execute("select sample_id from samples order by 1").fetchall()[:3]
    drawn = {"selection_id": "l00000000000d", "strategy": "active", "budget_h": 0.001}
    store.publish(place, "selections", [drawn], {"l": "drawn"})
    store.publish(
        place,
        "selected",
        [{"selection_id": "l00000000000d", "sample_id": s, "draw": i, "estimated_s": 3.0} for i, (s,) in enumerate(spoken)],
        {"l": "drawn"},
    )
    speech = con.execute("select * from syntheses where sample_id in (select unnest(?))", [[s for (s,) in spoken]])
    rows = {row["sample_id"]: row for row in speech.to_arrow_table().to_pylist()}
    store.publish(place, "syntheses", [
        row | {"tts": "espeak", "speech": "spoken", "synthesis_id": store.ids.synthesis_id(s, "espeak", "v", 0)}
        for s, row in rows.items()
    ], {"speech": "spoken"})  # fmt: skip
    child = config(kind="stage2", contender="stage2", parent=whole.run_id, selection="l00000000000d")
    notes = {"log", ".store-cache"}  # what a reader remembers of files that it has checked
    listing = lambda: sorted(str(p.relative_to(place)) for p in place.rglob("*") if not notes & {*p.parts})  # noqa: E731
    before = listing()
    resolved = training.resolve(place, child)
    assert resolved.selection not in (None, "l00000000000d") and listing() == before
    plan = launch(child, on="here", lab=place, dry_run=True)
    assert isinstance(plan, str) and listing() == before
    run = training.prepare(place, child, "tiny")
    assert run.record["selection_id"] == resolved.selection
    con = store.connect(place)
    assert con.execute("select count(*) from selected where selection_id = ?", [resolved.selection]).fetchone()[0] > 0


@pytest.mark.compiler
def test_a_compiled_objective_gives_the_losses_of_one_that_is_not(place):
    compiler()
    results = []
    for compiled in (False, True):
        objective = config().objective.model_copy(update={"compile": compiled})
        run = training.prepare(place, config(objective=objective), "tiny")
        training.train(place, run.run_id)
        results.append(list(losses(run).values()))
    assert results[1] == pytest.approx(results[0], rel=1e-4) and len(results[0]) == 12


def train_step_benchmark():
    path = Path(__file__).parent.parent / "benchmarks" / "train_step.py"
    spec = importlib.util.spec_from_file_location("train_step_benchmark", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    return benchmark


def test_the_benchmarks_plain_loop_takes_the_same_step(place):
    benchmark = train_step_benchmark()
    trainer = benchmark.Trained(place)
    with torch.no_grad():  # LoRA starts at nothing
        for name, parameter in trainer.model.llm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    trainer.model.eval()
    taken = trainer.loader.next()
    trainer.optimizer.step = trainer.optimizer.zero_grad = lambda **how: None
    results = []
    for step in (trainer.step, trainer.plain):
        weights = [p for group in trainer.optimizer.param_groups for p in group["params"]]
        for weight in weights:
            weight.grad = None
        step(taken)
        results.append(torch.cat([weight.grad.flatten() for weight in weights]))
    assert (results[0] - results[1]).norm() < 1e-5 * results[0].norm()
    tokens, seconds, waited, busy = benchmark.contenders(place, 1, "salad, from disk")["salad, from disk"]()
    assert tokens > 0 and 0 <= waited < seconds and busy > 0
    assert benchmark.reading(place, 1)["real_time_factor"] > 1


def test_the_benchmark_at_full_size_goes_from_tensors_and_from_disk(place):
    """A large recipe with toy models in the place of its own."""
    benchmark = train_step_benchmark()
    toy = {"llm.name": str(place / "models" / "teacher"), "llm.dtype": "float32", "adapter.layers": 1,
           "encoder.name": str(place / "models" / "encoder"), "adapter.width": 32, "adapter.mlp": 48,
           "adapter.heads": 2, "adapter.kv_heads": 2, "optim.micro_tokens": 200, "sequences.shots": 0}  # fmt: skip
    for where, message in ((None, "tensors"), (place, "FLAC")):
        results = benchmark.full_size("qwen2_5_3b_lora_stage1", toy, "cpu", 1, 1, 2, where)
        assert results["from"].startswith(message) and results["salad_over_plain"] > 0
        assert {len(results[key]) for key in ("tokens_per_s", "share_of_matrix_rate", "waiting")} == {2}
        assert all(0 < share < 1 for share in results["share_of_matrix_rate"].values())


def test_no_parent_no_run(tmp_path):
    with pytest.raises(SaladError, match="no finished stage1 run"):
        training.prepare(tmp_path, config(kind="stage2", parent="stage1"), "tiny")


def test_a_configuration_file_is_enough_to_start_it_again(whole):
    from salad.config import RunConfig, validate

    record = json.loads((whole.path / "config.json").read_text())
    assert validate(RunConfig, record["config"]) == slowed()
    assert RunFolder.open(whole.lab, whole.run_id).config == record["config"]


def test_the_learning_rate_warms_up_stays_and_decays():
    run = slowed(warmup=4)
    rates = [training.learning_rate(run, step) for step in range(40)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and set(rates[4:30]) == {1.0}
    assert rates[30:] == pytest.approx([1 - i / 10 for i in range(10)])
