"""What a recipe will cost: from sizes where nothing is known, from the lab's own figures where there are any."""

import pytest
import tiny

import store
from salad import SaladError, plan, recipes, training
from salad.config import apply_overrides
from salad.models import meta
from salad.passes import run as passes
from workbench.cli import main


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return tmp_path_factory.mktemp("empty")


def test_a_recipe_without_its_stage_is_both():
    assert [name for name, _ in plan.stages("qwen2_5_3b")] == ["qwen2_5_3b_stage1", "qwen2_5_3b_stage2"]
    assert plan.stages("qwen2_5_3b_stage2") == [("qwen2_5_3b_stage2", recipes.qwen2_5_3b_stage2())]
    with pytest.raises(SaladError, match="unknown recipe 'qwen2_5_3b_stage3'; did you mean"):
        plan.stages("qwen2_5_3b_stage3")


def test_the_3b_of_the_paper_in_an_empty_lab(empty):
    (name, first), (_, second) = plan.stages("qwen2_5_3b")
    outcome, two = plan.cost(empty, name, first), plan.cost(empty, "second", second)
    # 24 B tokens; by hand: 6 x the LLM's layers for the student alone, over 40 % of 989 TFLOP/s
    layers = 3_085_938_688 - 151_936 * 2048
    least = 6 * layers * 24e9 / (0.4 * 989e12) / 3600
    assert least < outcome.gpu_hours < 1.6 * least
    assert outcome.tts_hours == 0 and two.tts_hours == pytest.approx(1410 + 3.2)
    # LLM, Mimi, LibriHeavy, Emilia, a sample of FineWeb-Edu
    assert outcome.download_gb == pytest.approx(2 * 3.0859 + 0.385 + 3000 + 2184 + 28, rel=1e-3)
    assert outcome.disk_gb > outcome.download_gb + 141_000 * 0.06
    assert outcome.memory_gb > 16 * 3.08 + 2 * 2 * 3.08
    assert any("assumed" in note for note in outcome.notes)


def test_lora_costs_less_time_and_memory_and_another_gpu_other_hours(empty):
    full, lora = recipes.qwen2_5_3b_stage1(), recipes.qwen2_5_3b_lora_stage1()
    first, other = plan.cost(empty, "full", full), plan.cost(empty, "lora", lora)
    assert other.gpu_hours < 0.8 * first.gpu_hours and other.memory_gb < 0.3 * first.memory_gb
    slow = plan.cost(empty, "full", full, "A100")
    assert slow.gpu_hours == pytest.approx(first.gpu_hours * 989 / 312)
    half = apply_overrides(full, {"optim.steps": 12_000})
    assert plan.cost(empty, "half", half).gpu_hours == pytest.approx(first.gpu_hours / 2)
    with pytest.raises(SaladError, match="speed of a 'TPU' is not known; known: B200"):
        plan.cost(empty, "full", full, "TPU")


@pytest.mark.parametrize("name", ["smollm2_360m", "qwen2_5_0_5b"])
def test_a_first_real_run_fits_24_gb_and_a_day(empty, name):
    costs = [plan.cost(empty, first, config, "RTX 4090") for first, config in plan.stages(name)]
    assert sum(first.gpu_hours for first in costs) < 24 and all(first.memory_gb < 12 for first in costs)


def test_what_the_lab_has_measured_is_used_and_named(tmp_path):
    place = tiny.lab(tmp_path / "lab")
    config = tiny.config()
    before = plan.cost(place, "tiny", config)
    assert any("assumed" in note for note in before.notes) and before.download_gb == 0
    run = training.prepare(place, config, "tiny")
    training.train(place, run.run_id)
    con = store.connect(place)
    rate = con.execute("select median(value) from metrics where name = 'tokens_per_s'").fetchone()[0]
    seconds, hours = con.execute("select avg(duration_s), sum(duration_s) / 3600 from syntheses").fetchone()
    after = plan.cost(place, "tiny", config)
    frame_rate = meta.speech_lm(config, place).encoder.frame_rate
    tokens = 12 * 3 * seconds * (frame_rate + plan.TEXT_TOKENS_PER_S) / 2
    assert after.gpu_hours == pytest.approx(tokens / rate / 3600)
    assert any(f"measured by {run.run_id}" in note for note in after.notes)
    assert any(note.startswith("natural: 0.0") and "in this lab" in note for note in after.notes)
    larger = apply_overrides(config, {"adapter.mlp": 96})  # another adapter: measured nowhere
    assert plan.measured(con, larger) is None
    stage2 = config.model_copy(update={"kind": "stage2", "parent": "stage1"})
    assert plan.cost(place, "two", stage2).tts_hours == pytest.approx(0.01 * hours + plan.PROBE_H)
    with pytest.raises(SaladError, match="this lab has no l123"):
        plan.cost(place, "two", stage2.model_copy(update={"selection": "l123"}))


def test_synthesis_is_counted_at_the_speed_that_the_lab_has_measured(tmp_path):
    place = tiny.lab(tmp_path / "lab")
    chosen = "l000000000001"
    samples = store.connect(place).execute("select sample_id from samples order by 1").fetchall()
    store.publish(place, "selections", [{"selection_id": chosen, "strategy": "uniform", "budget_h": 0.002}], {"l": 1})
    store.publish(
        place, "selected", [{"selection_id": chosen, "sample_id": s, "draw": i} for i, (s,) in enumerate(samples)], {"l": 1}
    )
    stage2 = tiny.config(kind="stage2", parent="stage1", selection=chosen)
    before = plan.cost(place, "two", stage2)
    assert before.tts_hours == pytest.approx(0.002 + plan.PROBE_H)
    assert any("50 × real time (assumed" in note for note in before.notes)
    run = passes.prepare(place, "synthesise", {"selection": chosen, "tts": "espeak"})
    passes.run_here(run)
    seconds, spoken = store.connect(place).execute(
        """select epoch(any_value(ended_at) - any_value(started_at)), sum(duration_s) from runs, syntheses
           where run_id = ? and speech <> 'natural'""",
        [run.run_id],
    ).fetchone()  # fmt: skip
    after = plan.cost(place, "two", stage2)
    assert any(f"measured by {run.run_id}" in note for note in after.notes)
    saved = before.tts_hours / plan.TTS_RATE - after.tts_hours / (spoken / seconds)
    assert before.gpu_hours - after.gpu_hours == pytest.approx(saved)


def test_the_command_tells_costs_and_what_they_rest_on(empty, capsys):
    command = ["plan", "smollm2_360m_stage1", "--lab", str(empty)]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--set", "optim.steps=7000"])
    assert not stop.value.code
    output = capsys.readouterr()
    assert "smollm2_360m_stage1" in output.out and "7,000 steps of 50,000 are 0.35 B" in output.out and not output.err
    with pytest.raises(SystemExit) as stop:
        main([*command, "--set", "optim.stepz=1"])
    assert stop.value.code == 2
    wrong = capsys.readouterr().err
    assert "optim.stepz" in wrong and len(wrong.splitlines()) == 1
