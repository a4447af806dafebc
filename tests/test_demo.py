"""`salad demo --smoke`, the whole loop as a person runs it, and the doors that open on its result."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from demo_lab import salad

import store
from salad import SaladError, recipes
from salad.study import runner

pytestmark = pytest.mark.timeout(1800)  # a whole demo is made within the first test that asks for it
QUESTION = """select terms, sum(d*n_positions)/sum(n_positions) as d from divergences
    join clusters using (clustering_id, cluster_id) group by all order by d desc"""


def test_it_ends_with_a_table_and_what_to_open_next(demo):
    lab, told = demo.lab, demo.out
    for line in ("Stage II, active", "all domains, by P_web", "stage2_uniform"):
        assert line in told
    for door in ("marimo edit", "workbench.arena", "salad sql"):
        assert door in told
    assert (lab / "report.html").stat().st_size > 10_000 and "stage2_active" in (lab / "report.md").read_text()


def test_it_prints_no_warning_of_the_libraries_it_stands_on(demo):
    assert demo.err == "" and "Warning" not in demo.out


def test_both_arms_hold_the_budget_and_every_result_is_there(demo):
    con = store.connect(demo.lab)
    rows = con.execute("""select contender, modality, count(*) from evaluations group by all order by all""").fetchall()
    assert {(c, m) for c, m, _ in rows} == {
        ("teacher", "text"),
        ("teacher", "cascade"),
        *((c, m) for c in ("stage1", "stage2_active", "stage2_uniform") for m in ("text", "speech", "cascade")),
    }
    assert {n for _, _, n in rows} == {7 * 8}
    hours = con.execute(
        """select selection_id, sum(duration_s) / 3600 from selected join selections using (selection_id)
           join syntheses using (sample_id) where parent_selection_id is not null and tts = 'espeak' group by 1"""
    ).fetchall()
    assert len(hours) == 2 and all(0.03 <= h < 0.03 + 20 / 3600 for _, h in hours)
    assert (
        con.execute("select count(*), count(distinct synthesis_id) from syntheses").fetchone()[0]
        == (con.execute("select count(distinct synthesis_id) from syntheses").fetchone()[0])
    )
    kinds = dict(con.execute("select kind, count(*) from runs where status = 'done' group by 1").fetchall())
    assert kinds["stage2"] == 2 and {"teacher", "encoder", "recogniser", "stage1", "pass", "evaluate"} <= set(kinds)
    assert con.execute("select count(*) from runs where status <> 'done'").fetchone()[0] == 0
    assert con.execute("select count(*) from token_divergences where after_speech and d is null").fetchone()[0] == 0


def test_sql_answers_the_readme_question(demo):
    told = salad("sql", QUESTION, "--json", "--lab", demo.lab)
    rows = [json.loads(line) for line in told.stdout.splitlines()]
    assert len(rows) >= 4 and all(row["terms"] for row in rows)
    assert rows == sorted(rows, key=lambda row: -(row["d"] or 0))


def test_the_notebook_opens_on_it_and_what_it_drops_a_launch_leaves_out(demo, tmp_path, monkeypatch):
    lab = tmp_path / "lab"
    shutil.copytree(demo.lab, lab)
    monkeypatch.setenv("SALAD_LAB", str(lab))
    from notebooks.selection import app

    _, defs = app.run()
    assert defs["selection"].startswith("l")
    from launch_gpu import launch

    con = store.connect(lab)
    drawn = con.execute("select selection_id from selections where strategy = 'active' and parent_selection_id is null")
    drawn = drawn.fetchone()[0]
    victim = con.execute("select sample_id from kept where selection_id = ? order by draw", [drawn]).fetchone()[0]
    store.append(
        lab, "decisions", selection_id=drawn, target="sample", sample_id=victim, verdict="drop", reviewer="tester", reason="other"
    )
    smoke = json.loads((lab / "study.json").read_text())["config"]["stage2"]
    overrides = {f"optim.{k}": smoke["optim"][k] for k in ("steps", "warmup", "decay", "checkpoint_every")}
    run = launch("miniature_stage2", on="here", lab=lab, overrides=overrides | {"selection": drawn, "seed": 7})
    deadline = time.monotonic() + 180
    while run.status()["state"] not in ("done", "failed", "stopped") and time.monotonic() < deadline:
        time.sleep(0.5)
    assert run.status()["state"] == "done", run.status()
    assert len(run.metrics()) > 0
    store.refresh(con)
    trained = con.execute("select selection_id from runs where run_id = ?", [run.run_id]).fetchone()[0]
    texts = {s for (s,) in con.execute("select sample_id from selected where selection_id = ?", [trained]).fetchall()}
    assert texts and victim not in texts


def test_a_lab_of_another_seed_or_size_is_refused_by_name(demo):
    told = salad("demo", "--smoke", "--seed", "8", "--lab", demo.lab)
    assert told.returncode == 2 and "seed is 7 there, 8 asked for" in told.stderr
    assert len(told.stderr.splitlines()) == 1 and "--lab" in told.stderr
    told = salad("demo", "--seed", "7", "--lab", demo.lab)
    assert told.returncode == 2 and "budget_h is 0.03 there" in told.stderr


def test_a_damaged_lab_says_what_is_wrong_and_stays_usable(demo, tmp_path):
    lab = tmp_path / "lab"
    shutil.copytree(demo.lab, lab)
    units = sorted((lab / "tables" / "evaluations").rglob("*.parquet"))
    cut = units[0]
    cut.write_bytes(cut.read_bytes()[:200])
    with pytest.warns(store.DamagedWarning, match=cut.name):
        con = store.connect(lab)
    assert con.execute("select count(*) from damaged").fetchone()[0] == 1
    assert con.execute("select count(*) from divergences").fetchone()[0] > 0
    tar = next((lab / "speech" / "natural").glob("*.tar"))
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    told = salad("train", "miniature_stage1", "--set", "optim.steps=3", "--set", "optim.decay=1", "--set",
                 "optim.warmup=1", "--set", "data.p_text=0", "--lab", lab)  # fmt: skip
    assert told.returncode == 2 and tar.name in told.stderr and "Traceback" not in told.stderr
    corpus = lab / "corpora" / "broad" / "part-0.parquet"
    corpus.write_bytes(corpus.read_bytes()[:500])
    told = salad("train", "miniature_stage1", "--set", "seed=5", "--lab", lab)
    assert told.returncode == 2 and "corpora/broad" in told.stderr and "Traceback" not in told.stderr
    shutil.rmtree(lab / "models" / "teacher")
    told = salad("evaluate", "--lab", lab)
    damage, error = told.stderr.splitlines()  # one line for the unit left out, one for what is missing
    assert told.returncode == 2 and cut.name in damage and "models/teacher" in error


def test_ones_own_texts_join_the_broad_corpus(tmp_path):
    from salad.miniature.world import build_world

    (tmp_path / "mine.txt").write_text("How do I tie a knot?\nHold the rope in your left hand.\n")
    build_world(recipes.miniature().smoke().world, tmp_path / "lab", tmp_path / "mine.txt")
    rows = pq.read_table(tmp_path / "lab" / "corpora" / "broad").to_pylist()
    mine = [row["text"] for row in rows if row["domain"] == "user"]
    assert mine == ["How do I tie a knot?", "Hold the rope in your left hand."]
    told = salad("demo", "--smoke", "--corpus", tmp_path / "none.txt", "--lab", tmp_path / "x")
    assert told.returncode == 2 and "none.txt" in told.stderr and not (tmp_path / "x").exists()


def test_no_permission_to_write_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    told = salad("demo", "--smoke", "--lab", tmp_path / "file" / "lab")
    assert told.returncode == 2 and len(told.stderr.splitlines()) == 1 and "Traceback" not in told.stderr


def _fails(progress, what):
    if what == "user":
        raise SaladError("this is wrong; do that")
    if what == "disk":
        raise OSError(28, "No space left on device", "a/b")
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "what, told",
    [("user", "this is wrong; do that"), ("disk", "No space left on device"), ("kill", "ended from outside")],
)
def test_a_step_that_fails_ends_the_study_in_one_line(what, told):
    with pytest.raises(SaladError, match=told):
        runner.run([runner.Step("a", "Step A", _fails, (what,))], 2, lambda *_: None)


def _speaks(progress):
    return "well"


def test_where_steps_keep_going_what_waits_for_a_failed_one_fails_too_and_the_others_go_on():
    plan = [
        runner.Step("a", "Step A", _fails, ("kill",)),
        runner.Step("b", "Step B", _speaks, (), ("a",)),
        runner.Step("c", "Step C", _speaks, (), ("b", "a")),
        runner.Step("d", "Step D", _speaks),
        runner.Step("e", "Step E", _speaks, (), ("d",)),
    ]
    heard = []
    outcomes = {o.name: o for o in runner.run(plan, 2, lambda event, step, *_: heard.append((event, step.name)), keep_going=True)}
    assert {name for name, outcome in outcomes.items() if outcome.failed} == {"a", "b", "c"}
    assert "exit status -9" in outcomes["a"].message and outcomes["c"].message == f"Step A: {outcomes['a'].message}"
    assert ("start", "b") not in heard and {("failed", "c"), ("done", "d"), ("done", "e")} <= set(heard)


def test_room_is_checked_before_anything_is_written(tmp_path, monkeypatch):
    from salad.study import costs
    from workbench.cli import demo_run

    monkeypatch.setattr(costs, "MINIATURE_GB", 1e9)
    with pytest.raises(SaladError, match="GB free"):
        demo_run.run_demo(Path(tmp_path / "lab"), smoke=True)
    assert not (tmp_path / "lab").exists()
