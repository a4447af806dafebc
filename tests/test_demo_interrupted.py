"""`salad demo --smoke`, interrupted twice and taken up again: the numbers are those of the one that nothing disturbed."""

import os
import shutil
import signal
import subprocess
import time

import pytest
from demo_lab import DEMO, SALAD, results, salad

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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A lab of the smoke study that was interrupted twice, and what the command printed at last."""
    lab = tmp_path_factory.mktemp("demo") / "lab"
    # while what its processes are forked from imports, which takes seconds: they begin nothing
    interrupt(lab, lambda: (lab / "study.json").exists() and not time.sleep(0.3))
    assert [path.name for path in lab.iterdir()] == ["study.json"]
    interrupt(lab, lambda: list(lab.glob("runs/*/checkpoints/step-*/manifest.json")))
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
