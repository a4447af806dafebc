"""Studies of the miniature: their cells, the runner that shares and resumes, the other divergences, and the findings."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

import store
from salad import SaladError, analysis
from salad.objective import distillation_loss
from salad.selection import STRATEGIES
from salad.study import grids, notes, schedule
from workbench import cli, reports
from workbench.reports import claims, findings

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("divergence", ["reverse_kl", "jsd"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_other_divergences_and_their_gradients_equal_torchs(divergence, reduction):
    torch.manual_seed(5)
    hidden, head, teacher, teacher_head = (torch.randn(n, 7, dtype=torch.float64, requires_grad=True) for n in (9, 13, 9, 12))
    targets = torch.randint(0, 11, (9,))
    targets[[2, 6]] = -1

    def reference():
        p, q = ((h @ w[:11].T).softmax(1) for h, w in ((hidden, head), (teacher.detach(), teacher_head.detach())))
        if divergence == "reverse_kl":
            d = torch.nn.functional.kl_div(q.log(), p, reduction="none").sum(1)
        else:
            d = sum(torch.nn.functional.kl_div(((p + q) / 2).log(), x, reduction="none").sum(1) for x in (p, q)) / 2
        nll = -p.log().gather(1, targets.clamp_min(0)[:, None])[:, 0]
        loss = torch.where(targets >= 0, 0.75 * d + 0.25 * nll, 0.0)
        return {"mean": loss.sum() / 7, "sum": loss.sum(), "none": loss}[reduction], d

    wanted, d = reference()
    made = distillation_loss(
        hidden, head, teacher, teacher_head, targets, 0.75, 11, reduction, chunk_rows=4, divergence=divergence
    )
    torch.testing.assert_close(made.loss, wanted)
    if reduction == "none":
        torch.testing.assert_close(made.d[targets >= 0], d[targets >= 0])
    weight = torch.randn_like(wanted)
    gradients = [torch.autograd.grad((x * weight).sum(), (hidden, head)) for x in (made.loss, wanted)]
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected)


def test_an_unknown_divergence_is_one_clear_line():
    x = torch.zeros(1, 2)
    with pytest.raises(SaladError, match="forward_kl, reverse_kl, jsd"):
        distillation_loss(x, x, x, x, torch.zeros(1, dtype=torch.long), divergence="wasserstein")


# --- claims ---


def rows(values: dict, group: str = analysis.ALL) -> pd.DataFrame:
    """`values`: contender -> M of each seed; speech accuracy is 1 - M, text 0.9, F 0.01."""
    return pd.DataFrame([
        {"seed": seed, "contender": name, "group": group, "last": True, "hours": 1.0, "m": m, "f": 0.01, "text": 0.9,
         "speech": 1 - m, "kind": "stage2"}
        for name, message in values.items() for seed, m in enumerate(message)
    ])  # fmt: skip


CLAIM = claims.Claim("active lowers M", "paper", "active", "uniform", "m", analysis.ALL, -1, "a likely reason")


@pytest.mark.parametrize(("active", "verdict"), [
    ([0.30, 0.41, 0.50], "holds"), ([0.50, 0.59, 0.71], "does not hold"), ([0.30, 0.60, 0.61], "undecided"),
    ([0.30], "undecided"), ([], "not run"),
])  # fmt: skip
def test_a_claim_is_judged_by_the_interval_of_its_paired_difference(active, verdict):
    rows_read = claims.judge(rows({"uniform": [0.4, 0.5, 0.6], "active": active}), CLAIM)
    assert rows_read.verdict == verdict
    assert ("a likely reason" in rows_read.reason) == (verdict in ("does not hold", "undecided") and len(active) > 1)


def test_seeds_that_only_one_side_has_play_no_part():
    table = rows({"uniform": [0.4, 0.5, 0.6], "active": [0.3, 0.41, 0.5, 9.0]})
    assert claims.judge(table, CLAIM).values["difference"] == pytest.approx(-0.29 / 3)


@pytest.mark.parametrize(("active", "message"), [
    ([0.300, 0.401], "holds (2 seeds only)"), ([0.3], "undecided (1 seed only)"), ([0.3, 0.41, 0.5], "holds"), ([], "not run"),
])  # fmt: skip
def test_a_verdict_on_fewer_than_three_seeds_says_so_and_what_was_not_run_names_its_cells(active, message):
    row = claims.judge(rows({"uniform": [0.4, 0.5, 0.6], "active": active}), CLAIM)
    assert row.qualified_verdict == message and (row.seen == "needs active and uniform on one seed at least") == (not active)


def test_every_claim_names_cells_of_the_grid_and_every_axis_has_cells():
    known = {cell.name for cell in grids.cells()}
    assert {name for claim in claims.CLAIMS for name in (claim.cell, claim.base)} <= known
    assert {axis for cell in grids.cells() for axis in cell.axes} - {"arms"} == set(findings.AXES)
    assert len(known) == len(grids.cells())
    strategies = {cell.strategy for cell in grids.cells() if "strategy" in cell.axes}
    assert strategies == set(STRATEGIES)
    assert {c.n_clusters or 16 for c in grids.cells() if "k" in c.axes} == {8, 16, 32}
    assert {2.0 if c.gamma is None else c.gamma for c in grids.cells() if "gamma" in c.axes} == {1.0, 2.0, 5.0}
    assert {c.rounds for c in grids.cells() if "rounds" in c.axes} == {1, 2, 4}  # γ = 0 is uniform


def test_the_quick_grid_is_a_part_of_the_full_one_and_every_cell_configures_a_run():
    quick, half, full = grids.quick(), grids.half(), grids.full()
    assert [c for c in full.cells if c in quick.cells] == list(quick.cells) and len(quick.cells) < len(full.cells)
    assert full.seeds == half.seeds == quick.seeds == (0, 1, 2) and half.cells == full.cells
    for grid in (quick, half, full):
        study = grids.study_of(grid, 2)
        assert study.seed == study.world.seed == study.stage1.seed == 2 and study.encoder.seed == 0
        for cell in grid.cells:
            run = grids.run_config(study, cell)
            assert run.contender == cell.name and run.kind == cell.stage
    alpha = {c.name: grids.run_config(full.study, c).objective.alpha for c in full.cells if "alpha" in c.axes}
    assert sorted(alpha.values()) == sorted([0, 0.25, 0.5, 0.75, 1] * 2)


# --- the published figures ---


def test_every_published_figure_of_the_paper_is_in_the_store(tmp_path):
    fields = {
        "ASR + Qwen2.5-7B": "84.2/0.8 67.1/3.7 84.0/5.0 74.7/2.0 86.5/1.9 79.9/0.0 79.4/2.2",
        "Qwen2.5-Omni-7B": "80.1/4.9 61.0/9.8 85.5/3.5 68.4/8.3 87.1/1.3 78.0/1.9 76.7/5.0",
        "GLM-4-Voice-9B": "78.2/20.6 38.6/27.6 57.6/30.1 68.6/11.9 64.6/28.7 72.6/1.9 63.4/20.1",
        "Qwen2-Audio-7B": "– – – – – – 53.7/17.8",
        "DiVA-Llama3.1-8B": "– – – – – – 52.6/26.1",
        "SALAD-3B": "75.8/7.1 52.5/9.4 76.7/5.1 68.7/2.3 79.9/1.9 78.1/0.5 72.0/4.6",
        "SALAD-7B": "81.5/3.5 57.5/13.3 75.1/13.9 74.0/2.7 84.0/4.4 80.3/-0.4 75.4/6.2",
    }
    con = store.connect(tmp_path)
    con.register("contenders", pd.DataFrame({"contender": [""], "run_id": [""], "step": [0], "place": [0]}))
    table = reports.beside_published(con, pd.DataFrame({"contender": [], "group": []}))
    heads = [*reports.BENCHMARKS, "mean"]
    main = table[table.source.str.contains("table of speech accuracy")]
    for name, cells in fields.items():
        row = main[(main.model == name) | (main.system == name)].iloc[0]
        assert [row[h] for h in heads] == cells.split(), name
    text = table[table.modality == "text"].set_index("model")["mean"]
    assert text["SALAD-3B"] == "76.9/-0.5" and text["SALAD-7B"] == "82.2/-0.9" and text["GLM-4-Voice-9B"] == "–/13.6"
    arms = table[table.source.str.contains("uniform against active")].set_index("system")
    assert list(arms.loc["SALAD, uniform selection", ["MMSU", "OpenBookQA", "ARC-Challenge"]]) == ["49.5", "71.9", "78.9"]
    assert list(arms.loc["SALAD, active selection", ["MMSU", "OpenBookQA", "ARC-Challenge"]]) == ["52.5", "76.7", "79.9"]
    board = table[table.system == "SALAD (leaderboard)"]
    unknown = board[board.modality == "unknown"].iloc[0]
    assert [unknown[h] for h in heads] == ["81.5; 84.9", "71.6", "76.7", "76.9", "89.2; 84.0", "80.3", "–"]
    assert board[board.modality == "speech"].MMSU.item() == "57.5" and set(board.model) == {"unknown"}
    later = table[table.system == "TextPro-SLM"].iloc[0]
    assert (later.MMSU, later.OpenBookQA, later["ARC-Challenge"]) == ("66.7", "85.1", "89.4")
    assert {"SALMONN", "AudioPaLM", "SpeechGPT", "BLSP-KD", "TASTE"} <= set(table.system)


def test_latex_escapes_what_latex_would_read():
    result = reports.latex("50 % of $\\alpha$", ["a_b", "M ± se"], [["x & y", "0.1 ± 0.2"], ["γ", "–"]])
    assert r"\caption{50 \% of \$\textbackslash{}alpha\$}" in result and r"a\_b & M $\pm$ se \\" in result
    assert r"x \& y & 0.1 $\pm$ 0.2 \\" in result and r"$\gamma$ & -- \\" in result and r"\begin{tabular}{lr}" in result


def test_a_report_is_written_for_a_paper_and_for_a_screen(tmp_path):
    from tests.labs import make_lab

    make_lab(tmp_path, broad=60, spoken=14, heldout=3, n_items=4)
    made = reports.report(tmp_path)
    with pytest.raises(store.StoreError, match="run rxyz is not evaluated"):
        reports.report(tmp_path, ["rxyz"])
    shown = {path.name: path for path in made.files}
    assert {"report.md", "report.html"} < set(shown) and all(path.stat().st_size for path in made.files)
    for name in ("results", "runs", "published"):
        table = pd.read_csv(shown[f"{name}.csv"], dtype=str, keep_default_na=False)
        lines = shown[f"{name}.tex"].read_text().splitlines()
        body = [line for line in lines if line.endswith(r" \\")]
        assert len(body) == len(table) + 1 and {line.replace(r"\&", "").count("&") for line in body} == {len(table.columns) - 1}
    assert "stage2_active" in shown["published.csv"].read_text() and "SALAD-7B" in shown["published.csv"].read_text()
    figures = {name.rsplit(".", 1)[0] for name in shown if name.startswith("figure-")}
    assert {"figure-accuracy", "figure-divergences", "figure-misalignment-and-speech", "figure-published"} <= figures
    for name in figures:
        assert shown[f"{name}.png"].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and b"<svg" in shown[f"{name}.svg"].read_bytes()


# --- a study, really run, killed and taken up ---

STUDY = """
import sys
from salad.study import grids
from salad.study import schedule

if __name__ == "__main__":
    grid = grids.smoke().model_copy(update={"seeds": tuple(map(int, sys.argv[2].split(",")))})
    def watch(event, step, *details):
        print(event, step.name, flush=True)
    schedule.run(grid, sys.argv[1], watch, 2, sys.argv[3].split(","))
"""


def run_study(folder, seeds: str, cells: str, **options):
    script = folder / "study.py"
    script.write_text(STUDY)
    command = [sys.executable, str(script), str(folder), seeds, cells]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
                            env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True, **options)  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a smoke study whose process group was killed with -9 in Stage II, then run to its end."""
    folder = tmp_path_factory.mktemp("study")
    first = run_study(folder, "0", "active_rounds2,uniform")
    for line in first.stdout:
        if line.startswith("start 0:train_active_rounds2"):
            break
    time.sleep(1)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    again = run_study(folder, "0", "active_rounds2,uniform")
    result, complaint = again.communicate(timeout=900)
    assert again.returncode == 0, complaint
    return folder, result


def test_a_killed_study_goes_on_and_shares_what_its_cells_have_in_common(study):
    lab = grids.labs(study[0], "findings-smoke")[0]
    con = store.connect(lab)
    runs = con.execute("select kind, count(*) from runs where status = 'done' group by 1").fetchall()
    kinds = dict(runs)
    assert kinds["teacher"] == kinds["encoder"] == kinds["recogniser"] == kinds["stage1"] == 1
    assert kinds["stage2"] == 3  # two rounds, and uniform
    twice = con.execute("select count(*) - count(distinct synthesis_id) from syntheses").fetchone()[0]
    assert twice == 0 and not con.execute("from damaged").fetchall()
    fits = analysis.collect({0: lab})
    last = fits[fits["last"] & (fits.group == analysis.ALL)].set_index("contender")
    assert {"stage1", "uniform", "active_rounds2"} <= set(last.index)
    assert last.loc[["stage1", "uniform", "active_rounds2"], ["m", "f", "text", "speech"]].notna().all(None)
    assert last.loc[["stage1", "uniform"], ["cascade", "gap"]].notna().all(None)
    teacher = con.execute("select distinct modality from evaluations where contender = 'teacher'").fetchall()
    assert {modality for (modality,) in teacher} == {"text", "cascade"}
    log = next((lab / "runs").glob(f"{last.loc['uniform'].run_id}/log.txt")).read_text()
    assert "encoder frames of natural" in log
    assert {path.name for path in (lab / "frames").iterdir()} >= {"natural", "broad-0", "broad-1"}
    hours = last.hours[["uniform", "active_rounds2"]]
    assert abs(hours.uniform / hours.active_rounds2 - 1) < 0.1  # a text is a tenth of this budget
    curve = fits[(fits.contender == "stage1") & (fits.group == analysis.ALL)]
    assert sorted(curve.step) == [3, 6, 8] and curve.tokens.is_monotonic_increasing


def test_a_plan_counts_what_cells_share_once_it_is_made(study):
    grid = grids.smoke()
    fields = {what: steps for what, steps, _ in schedule.estimate(grid, study[0], 2, ["active_rounds2", "broad_alpha0"])}
    other = {what: steps for what, steps, _ in schedule.estimate(grid.model_copy(update={"seeds": (0,)}), study[0], 2)}
    made = grid.model_copy(update={"seeds": (0,)})
    assert schedule.estimate(made, study[0], 2, ["active_rounds2", "uniform"]) == []
    # of seed 0 only broad-domain speech and its frames are left to be shared; of seed 1 all is
    assert other["what cells share"] == 2 and fields["what cells share"] > 2 + 7
    assert other["broad_alpha0"] == 2 and fields["broad_alpha0"] == 4 and "active_rounds2" not in other


def test_a_study_that_is_done_does_nothing_and_is_shown_by_the_command(study, capsys):
    again = run_study(study[0], "0", "active_rounds2,uniform")
    result, complaint = again.communicate(timeout=300)
    assert again.returncode == 0 and not result.strip(), result + complaint
    options = ["--lab", str(study[0]), "--name", "findings-smoke", "--seeds", "0", "--no-run"]
    page = study[0] / "page.md"
    with pytest.raises(SystemExit) as stop:
        cli.main(["findings", *options, "--write", str(page)])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "Two rounds are better" in out and "not run" in out
    text = page.read_text()
    assert text == (study[0] / "studies" / "findings-smoke" / "findings.md").read_text()
    assert "| Two rounds are better than one" in text and "**not run**" in text and "Seeds 0;" in text
    with pytest.raises(SystemExit) as stop:
        cli.main(["sweep", *options, "--axes", "strategy"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "Strategies at equal hours" in out and "active_rounds2" in out
    assert (study[0] / "studies" / "findings-smoke" / "sweep.md").exists()
    assert "needs active_gamma5 and active on one seed at least | **not run**" in text
    arms = pd.read_csv(study[0] / "studies" / "findings-smoke" / "arms.csv").set_index(["group", "contender"])
    whole = arms.loc[analysis.ALL]
    assert list(whole.index) == ["teacher", "stage1", "uniform"] and whole.loc["teacher", ["speech", "gap"]].isna().all()
    assert whole.cascade.notna().all() and "## Text, speech and cascade" in text
    by_hand = whole.text["teacher"] - whole.speech
    assert whole.gap.dropna().tolist() == pytest.approx(by_hand.dropna().tolist())


def test_a_cell_that_fails_is_written_down_and_the_others_go_on(study, capsys, monkeypatch):
    grid = grids.smoke()
    new = [
        grids.Cell(name=name, axes=("strategy",), strategy=strategy)
        for name, strategy in (("broken", "salad.nowhere:draw"), ("sound", "uniform_clusters"))
    ]
    monkeypatch.setattr(grids, "full", lambda name: grid.model_copy(update={"cells": (*grid.cells, *new)}))
    lab = grids.labs(study[0], grid.name)[0]
    options = ["findings", "--lab", str(study[0]), "--name", grid.name, "--seeds", "0", "--cells", "broken,sound"]

    def run() -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(options)
        return stop.value.code, *capsys.readouterr()

    code, out, complaint = run()
    assert code == 1 and len(complaint.strip().splitlines()) == 1, complaint
    assert complaint.startswith("1 failed: seed 0: broken (") and "salad.nowhere" in complaint
    assert notes.failures(lab).keys() == {"broken"} and notes.measured(lab, "sound")
    page = (study[0] / "studies" / grid.name / "findings.md").read_text()
    assert "failed: seed 0: broken (" in page and "salad.nowhere" in page
    new[0] = new[0].model_copy(update={"strategy": "teacher_nll"})
    code, out, complaint = run()  # tried again
    assert code == 0 and not complaint and not notes.failures(lab) and notes.measured(lab, "broken")


@pytest.mark.parametrize(("arguments", "says"), [
    (["sweep", "--axes", "gama"], "did you mean gamma"), (["findings", "--cells", "activ"], "did you mean active"),
    (["findings", "--seeds", "one"], "whole numbers"), (["findings", "--no-run"], "nothing of this study is measured"),
])  # fmt: skip
def test_what_is_asked_wrongly_is_one_clear_line(arguments, says, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--lab", str(tmp_path)])
    output = capsys.readouterr().err
    assert stop.value.code == 2 and says in output and len(output.strip().splitlines()) == 1 and not list(tmp_path.iterdir())
