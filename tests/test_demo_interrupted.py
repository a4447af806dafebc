"""`salad demo --smoke`, interrupted twice and taken up again: the numbers are those of the one that nothing disturbed."""

import os
import shutil
import signal
import subprocess
import time

import pytest
from demo_lab import DEMO, SALAD, results, salad
from tools import LONG

import store
from salad import recipes
from salad.study import steps

pytestmark = pytest.mark.timeout(1800)  # a whole demo is made within the first test that asks for it


def interrupt(lab, moment) -> None:
    """Start the demo, press Ctrl-C (the whole foreground hears it) once `moment()`: one line, nothing left alive."""
    process = subprocess.Popen(
        [*SALAD, *DEMO, "--lab", str(lab)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not moment() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, complaint = process.communicate(timeout=60)  # until the last process that could write there has ended
    assert process.returncode == 130 and complaint.strip() == "salad: interrupted; rerun the command to resume."


def without_stage2(done, lab):
    """A copy of a finished lab as it was when Stage II was about to begin."""
    shutil.copytree(done, lab)
    with store.connect(lab) as con:
        ids = [run for (run,) in con.execute("select run_id from runs where kind = 'stage2'").fetchall()]
        asked = con.execute("select run_id, config from runs where kind = 'evaluate'").fetchall()
    gone = [lab / "runs" / run for run in ids]
    gone += [lab / "runs" / run for run, config in asked if any(stage2 in str(config) for stage2 in ids)]
    gone += [lab / "tables" / table / f"run_id={run}" for table in ("divergences", "token_divergences") for run in ids]
    gone += (lab / "tables" / "evaluations").glob("contender=stage2_*")
    gone += [lab / "log"]  # which says that there should be more
    for folder in gone:
        shutil.rmtree(folder)
    for path in [*(lab / ".study").glob("stage2_*"), *lab.glob(".study/steps/stage2_*"), *lab.glob(".study/steps/results_*")]:
        path.unlink()


def checkpoints(lab) -> set[str]:
    return {str(path) for path in lab.glob("runs/*/checkpoints/step-*/manifest.json")}


def test_interrupted_while_it_imports_it_has_begun_nothing(tmp_path):
    lab = tmp_path / "lab"
    # what its processes are forked from takes seconds to import
    interrupt(lab, lambda: (lab / "study.json").exists() and not time.sleep(0.3))
    assert [path.name for path in lab.iterdir()] == ["study.json"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, demo):
    """A lab of the smoke study that was interrupted at a checkpoint, and what the command printed at last. Interrupted is
    Stage II, from where the lab that nothing disturbed began it; in `make test-all` also the very first run, from nothing."""
    lab = tmp_path_factory.mktemp("demo") / "lab"
    if LONG:
        interrupt(lab, lambda: checkpoints(lab))
        interrupt(lab, lambda: len(list(lab.glob("runs/*/checkpoints/step-30/manifest.json"))) > 1)
    else:
        without_stage2(demo.lab, lab)
        before = checkpoints(lab)
        interrupt(lab, lambda: checkpoints(lab) - before)
    result = salad(*DEMO, "--lab", lab)
    assert result.returncode == 0, result.stderr + result.stdout
    return lab, result.stdout


def test_the_numbers_are_those_of_the_lab_that_nothing_disturbed(whole, demo):
    assert results(whole[0]) == results(demo.lab)
    assert table(whole[1]) == table(demo.out)


def test_again_it_costs_little_and_tells_the_same(whole):
    lab, result = whole
    before, files = results(lab), {p: p.stat().st_mtime_ns for p in (lab / "runs").rglob("*.safetensors")}
    again = salad(*DEMO, "--lab", lab)
    assert again.returncode == 0 and table(again.stdout) == table(result)
    assert results(lab) == before and files == {p: p.stat().st_mtime_ns for p in files}


def table(text: str) -> str:
    return text[text.index("group ") : text.index("report:")]


def test_an_arm_in_rounds_goes_on_from_the_round_before(whole, tmp_path):
    lab = tmp_path / "lab"
    shutil.copytree(whole[0], lab)
    config = recipes.miniature().seeded(7).smoke().model_copy(update={"arms": ("active_rounds",)})

    def quiet(done, total):
        pass

    steps.selection(quiet, lab, config)
    for number in (1, 2):
        steps.synthesis(quiet, lab, config, "active_rounds", number)
        steps.stage2(quiet, lab, config, "active_rounds", number)
        if number == 1:
            steps.next_round(quiet, lab, config, "active_rounds", number)
    con = store.connect(lab)
    rows = con.execute(
        """select l.round, r.run_id, r.parent_run_id, r.max_steps, l.run_id, l.budget_h,
               (select sum(duration_s) / 3600 from selected t join syntheses y using (sample_id)
                where t.selection_id = r.selection_id and y.voice = 'en-us@rate=195')
           from runs r join selections l using (selection_id) where l.strategy = 'active_rounds' order by 1"""
    ).fetchall()
    (_, first, stage1, n_steps, probed, budget, hours), (_, _, parent, more, probed_again, whole_budget, all_hours) = rows
    assert parent == first == probed_again and probed == stage1 and (n_steps, more) == (5, 25)
    assert (budget, whole_budget) == (0.015, 0.03)
    assert hours < all_hours and abs(all_hours - 0.03) < 20 / 3600  # equal hours, equal steps
    scored = con.execute("select count(*) from raw.divergences where run_id = ?", [first]).fetchone()[0]
    assert scored == con.execute("""select count(*) from raw.divergences join syntheses using (synthesis_id)
        where run_id = ? and speech = 'probe'""", [stage1]).fetchone()[0] > 0  # fmt: skip
    texts = con.execute(
        """select count(*) from selected join (select distinct sample_id from syntheses where speech = 'probe')
           using (sample_id) join selections using (selection_id) where strategy = 'active_rounds'"""
    )
    assert texts.fetchone()[0] == 0
