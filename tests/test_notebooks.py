"""The selection notebook headless, and the logic behind it against hand-computed numbers and plain SQL."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from labs import make_lab
from tools import obeying_permissions

import store
from salad.runs import RunFolder
from workbench import charts, review
from workbench.listening import Listening

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    lab = tmp_path_factory.mktemp("notebooks") / "lab"
    return lab, make_lab(lab, broad=200, spoken=50, n_items=8)


@pytest.fixture
def opened(shared, tmp_path):
    """(lab, ids, connection): the lab's data with no decisions but the test's own."""
    lab = tmp_path / "lab"
    shutil.copytree(shared[0], lab)
    return lab, shared[1], store.connect(lab)


def notebook(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "notebooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.app


def test_notebooks_pass_marimos_linter():
    completed = subprocess.run(
        [sys.executable, "-m", "marimo", "check", "--strict", str(ROOT / "notebooks")], capture_output=True, text=True
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr


def test_the_selection_notebook_is_thin():
    assert len((ROOT / "notebooks" / "selection.py").read_text().splitlines()) <= 200


def test_the_selection_notebook_runs_headless_and_holds_the_labs_selection(shared):
    lab, ids = shared
    _, defs = notebook("selection").run(defs={"lab": lab})
    assert defs["selection"] == ids["active"]
    con = store.connect(lab)
    worst = con.execute(
        """SELECT sample_id FROM rule_rows WHERE selection_id = ? AND d IS NOT NULL ORDER BY d DESC""", [ids["active"]]
    ).fetchone()[0]
    assert defs["listening"].card["sample_id"] == worst and defs["listening"].audio[:4] == b"fLaC"
    n = con.execute("SELECT count(*) FROM selected WHERE selection_id = ?", [ids["active"]]).fetchone()[0]
    assert defs["total"] == n and len(defs["queue"]) == n and len(defs["rows"]) == 10


def test_an_empty_lab_stops_the_notebook_with_a_sentence(tmp_path):
    _, defs = notebook("selection").run(defs={"lab": tmp_path / "nothing"})
    assert "make demo" in defs["advice"] and "listening" not in defs
    assert not (tmp_path / "nothing").exists()  # looking writes nothing


def test_a_damaged_unit_is_named_and_the_rest_is_shown(shared, tmp_path):
    lab = tmp_path / "lab"
    shutil.copytree(shared[0], lab)
    unit = next((lab / "tables" / "token_divergences").rglob("*.parquet"))
    data = bytearray(unit.read_bytes())
    data[len(data) // 2] ^= 1
    unit.write_bytes(data)
    with pytest.warns(store.DamagedWarning):
        _, defs = notebook("selection").run(defs={"lab": lab})
    assert defs["listening"].card["tokens"] == [] and defs["listening"].audio[:4] == b"fLaC"
    assert defs["con"].execute("SELECT count(*) FROM damaged").fetchone()[0] == 1


@pytest.mark.parametrize("gone", (("clusters",), ("selected", "divergences")))
def test_a_selection_whose_clusters_or_scores_are_gone_says_what_to_do(gone, shared, tmp_path):
    lab = tmp_path / "lab"
    shutil.copytree(shared[0], lab)
    for table in gone:
        shutil.rmtree(lab / "tables" / table)
    _, defs = notebook("selection").run(defs={"lab": lab})
    assert "salad verify --repair" in review.unready(defs["con"], defs["selection"]) and "listening" not in defs


# ------------------------------------------------------------------------------------- the numbers


def test_d_cluster_and_its_interval_are_the_token_weighted_mean_of_texts(opened):
    from scipy import stats

    lab, ids, con = opened
    table = review.cluster_table(con, ids["active"])
    row = table[table.n_measured >= 3].iloc[0]
    texts = con.execute(
        """SELECT sum(v.n_positions), sum(v.d * v.n_positions) / sum(v.n_positions) FROM divergences v
        JOIN assignments a USING (sample_id) WHERE a.cluster_id = ? AND v.run_id = ? AND v.d IS NOT NULL
        GROUP BY v.sample_id""",
        [int(row.cluster_id), ids["run"]],
    ).fetchall()
    n, d = np.array(texts, float).T
    mean, k = (n * d).sum() / n.sum(), len(n)
    se = np.sqrt((n**2 * (d - mean) ** 2).sum() * k / (k - 1)) / n.sum()
    assert row.d_measured == pytest.approx(mean) and row.n_measured == k
    assert row.high - row.d_measured == pytest.approx(stats.t.ppf(0.975, k - 1) * se)
    assert table.p_target.sum() == pytest.approx(1) and table.drawn_share.sum() == pytest.approx(1)
    by_hand = table.p_web * table.d_cluster**2
    assert np.allclose(table.p_target, by_hand / by_hand.sum())
    assert np.allclose(review.cluster_table(con, ids["active"], gamma=0).p_target, table.p_web)


def test_a_cluster_that_the_draw_left_out_is_not_intended_in_the_notebook_either(opened):
    from salad.selection import select

    lab, ids, con = opened
    cer = con.execute("SELECT cluster_id, avg(cer) FROM syntheses JOIN assignments USING (sample_id) GROUP BY 1").fetchall()
    limit = sorted(value for _, value in cer if value is not None)[-1] - 1e-9  # the worst one is above it
    clustering, run, step = con.execute(
        "SELECT clustering_id, run_id, step FROM selections WHERE selection_id = ?", [ids["active"]]
    ).fetchone()
    name = select(
        lab, clustering_id=clustering, run_id=run, step=step, strategy="active", gamma=2.0, budget_h=0.001, seed=1, max_cer=limit
    )
    store.refresh(con)
    stored = con.execute("SELECT cluster_id, p_target, left_out FROM selection_clusters WHERE selection_id = ?", [name])
    stored = {cluster: (p, out) for cluster, p, out in stored.fetchall()}
    table = review.cluster_table(con, name).set_index("cluster_id")
    assert any(out == "CER" for _, out in stored.values())
    assert all(table.p_target[cluster] == pytest.approx(p) for cluster, (p, _) in stored.items())


def test_what_the_drops_did_follows_the_drops(opened):
    lab, ids, con = opened
    before = review.effect_of_drops(con, ids["active"])
    table = review.cluster_table(con, ids["active"])
    gone = int(table.cluster_id[table.drawn > 0].iloc[0])
    review.Review(lab, ids["active"], "ada").cluster(gone, "drop", "off-topic")
    store.refresh(con)
    after = review.effect_of_drops(con, ids["active"])
    dropped = int(table.drawn[table.cluster_id == gone].iloc[0])
    assert after["kept"] == before["kept"] - dropped and after["clusters_lost"] == [gone]
    table = review.cluster_table(con, ids["active"])
    q, p = table.kept / table.kept.sum(), table.p_target
    assert after["kl_kept"] == pytest.approx(sum(a * np.log(a / b) for a, b in zip(q, p, strict=True) if a > 0 and b > 0))
    held = table[(table.kept > 0) & (table.p_target > 0)]
    w = np.repeat(held.p_target / held.kept, held.kept)  # the weight of each kept text
    assert after["effective_sample_size"] == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert before["kl_kept"] == before["kl_drawn"] != after["kl_kept"]
    (in_sql,) = con.execute("select any_value(kl_nats) from selection_after_decisions(?)", [ids["active"]]).fetchone()
    assert in_sql == pytest.approx(after["kl_kept"])


def test_quadrants_count_every_text_of_the_probe_once(opened):
    lab, ids, con = opened
    counts = review.quadrants(con, ids["active"], cer_at=0.1, d_at=1.0)
    rows = con.execute(
        """SELECT cer > 0.1, d > 1.0, count(*) FROM (
            SELECT v.sample_id, sum(v.d * n_positions) / sum(n_positions) AS d, max(y.cer) AS cer
            FROM raw.divergences v JOIN assignments a USING (sample_id) JOIN syntheses y USING (synthesis_id)
            WHERE a.clustering_id = ? AND run_id = ? AND step = ? AND v.d IS NOT NULL GROUP BY 1) GROUP BY ALL""",
        [ids["clustering"], ids["run"], ids["step"]],
    ).fetchall()
    assert {(r.high_cer, r.high_d): r.n for r in counts.itertuples()} == {(a, b): n for a, b, n in rows}
    assert set(counts.meaning) <= set(review.MEANINGS)
    at = review.usual_cer(con, ids["active"])
    assert 0.1 <= at <= 0.6 and at * 50 == pytest.approx(round(at * 50))
    standing_out = review.quadrants(con, ids["active"], cer_at=at).groupby("high_cer").n.sum()
    assert at == 0.6 or standing_out.get(True, 0) <= counts.n.sum() / 2
    cells = review.cells(con, ids["active"], 6.0)
    assert cells.n.sum() == counts.n.sum()


def test_a_brush_on_the_quadrants_narrows_what_is_read(opened):
    lab, ids, con = opened
    every, n = review.texts(con, ids["active"], size=999)
    middle = float(every.d.median())
    within = {"cer": (0.0, 1.0), "d": (middle, 99.0)}
    rows, total = review.texts(con, ids["active"], size=999, within=within)
    assert 0 < total == len(rows) == (every.d >= middle).sum() < n
    assert review.queue(con, ids["active"], "worst", within=within) == rows.sample_id.tolist()


def test_the_effect_by_cluster_adds_up_to_the_whole(opened):
    lab, ids, con = opened
    review.Review(lab, ids["active"], "ada").rule("d > 2", "off-topic")
    store.refresh(con)
    whole, parts = review.effect_of_drops(con, ids["active"]), review.effect_by_cluster(con, ids["active"])
    assert (parts.drawn.sum(), parts.kept.sum()) == (whole["drawn"], whole["kept"]) and parts.kept.sum() < parts.drawn.sum()
    assert parts.kl.sum() == pytest.approx(whole["kl_kept"]) and parts.kept_h.sum() == pytest.approx(whole["kept_h"])
    assert parts.drawn.iloc[0] - parts.kept.iloc[0] == (parts.drawn - parts.kept).max()  # what lost most stands first


def test_an_export_is_whole_named_by_its_hash_and_lhotse_reads_it(opened):
    import hashlib
    import json

    from lhotse import CutSet

    lab, ids, con = opened
    folder = review.export_kept(lab, con, ids["active"])
    content = json.loads((folder / "selection.json").read_text())
    assert content["hash"] == folder.name and content["selection_id"] == ids["active"]
    assert content["texts_sha256"] == hashlib.sha256((folder / "texts.parquet").read_bytes()).hexdigest()
    cuts = list(CutSet.from_shar(in_dir=str(folder / "speech")))
    spoken = dict(
        con.execute(f"SELECT cut_id, text FROM '{folder}/texts.parquet' JOIN syntheses USING (synthesis_id)").fetchall()
    )
    assert len(cuts) == len(spoken) == content["spoken"] > 3 and {c.id for c in cuts} == set(spoken)
    assert cuts[0].load_audio().shape[1] > 1000 and cuts[0].supervisions[0].text == spoken[cuts[0].id]
    assert review.export_kept(lab, con, ids["active"]) == folder and len(list((lab / "exports").iterdir())) == 1
    review.Review(lab, ids["active"], "ada").drop(review.queue(con, ids["active"])[0], "other")
    store.refresh(con)
    assert review.export_kept(lab, con, ids["active"]) != folder


def test_stage2s_recipe_is_that_of_the_selections_stage1(opened):
    lab, ids, con = opened
    assert review.stage2_recipe(con, ids["active"]) == "miniature_stage2"
    qwen = RunFolder.get_or_create(lab, "stage1", "qwen2_5_3b_lora_stage1", {"contender": "stage1", "seed": 1})
    store.publish(lab, "selections", [{"selection_id": "l00000000beef", "run_id": qwen.run_id, "step": 1}], {"x": 1})
    store.refresh(con)
    assert review.stage2_recipe(con, "l00000000beef") == "qwen2_5_3b_lora_stage2"
    own = {"contender": "stage1", "seed": 2, "llm": {"name": "HuggingFaceTB/SmolLM2-135M-Instruct", "finetune": "lora"}}
    study = RunFolder.get_or_create(lab, "stage1", "first_cpu_stage1", own)  # a study's own: by its LLM
    store.publish(lab, "selections", [{"selection_id": "l00000000cafe", "run_id": study.run_id, "step": 1}], {"x": 2})
    store.refresh(con)
    assert review.stage2_recipe(con, "l00000000cafe") == "smollm2_135m_stage2"


def test_the_panels_fast_path_gives_salads_own_d_cluster(opened):
    from salad.selection import cluster_divergence

    lab, ids, con = opened
    own = review.cluster_table(con, ids["active"]).set_index("cluster_id").d_measured
    salads = cluster_divergence(con, ids["clustering"], ids["run"], ids["step"]).set_index("cluster_id").d
    assert np.allclose(own.sort_index(), salads.sort_index(), equal_nan=True)
    ranking = review.adjusted_ranking(con, ids["active"])
    assert list(ranking["rank"]) == sorted(ranking["rank"]) and ranking.label.iloc[0].startswith(f"{ranking.cluster_id.iloc[0]} ")


def test_jeffreys_interval_and_an_audits_count(opened):
    assert review.fault_interval(0, 0) == (0.0, 1.0)
    low, high = review.fault_interval(0, 20)
    assert low == 0 and high == pytest.approx(0.1166, abs=1e-3)
    lab, ids, con = opened
    cluster = int(review.cluster_table(con, ids["active"]).query("drawn >= 6").cluster_id.iloc[0])
    judge = review.Review(lab, ids["active"], "ada")
    first = review.audit(con, ids["active"], cluster, 6)
    assert first["judged"] == 0 and review.queue(con, ids["active"], "audit", [cluster], per_cluster=6) == first["sample_ids"]
    assert review.audit(con, ids["active"], cluster, 4)["sample_ids"] == first["sample_ids"][:4]
    judge.drop(first["sample_ids"][0], "duplicate")
    for sample in first["sample_ids"][1:4]:
        judge.keep(sample)
    store.refresh(con)
    now = review.audit(con, ids["active"], cluster, 6)
    assert (now["judged"], now["faults"], now["rate"]) == (4, 1, 0.25) and now["width_after"] < now["width"]
    assert review.queue(con, ids["active"], "audit", [cluster], "ada", True, per_cluster=6) == first["sample_ids"][4:]


def test_undo_takes_back_the_latest_of_ones_own_and_no_one_elses(opened):
    lab, ids, con = opened
    ada, bob = (review.Review(lab, ids["active"], name) for name in ("ada", "bob"))
    first, two = review.queue(con, ids["active"])[:2]
    ada.drop(first, "unsafe")
    ada.rule("cer > 0.9", "bad synthesis")
    bob.keep(first)
    store.refresh(con)
    assert ada.undo(con)["target"] == "rule"
    store.refresh(con)
    assert ada.undo(con)["sample_id"] == first
    store.refresh(con)
    assert ada.undo(con) is None
    assert con.execute("SELECT reviewer, verdict FROM current_decisions").fetchall() == [("bob", "keep")]
    ada.drop(first, "unsafe")
    ada.keep(two)
    bob.keep(two)
    store.refresh(con)
    both = review.agreement(con, ids["active"]).iloc[0]
    assert (both.both, both.agree, both.kappa) == (2, 0.5, 0.0)
    assert review.queue(con, ids["active"], "disagreement") == [first]


def test_a_rule_is_tried_before_it_is_set_and_nonsense_is_one_line(opened):
    lab, ids, con = opened
    count, rows = review.rule_preview(con, ids["active"], "domain = 'music'")
    assert count == con.execute(
        "SELECT count(*) FROM selected JOIN samples USING (sample_id) WHERE selection_id = ? AND domain = 'music'",
        [ids["active"]],
    ).fetchone()[0] and len(rows) == min(20, count)
    for wrong in ("colour = 'red'", "1) OR (SELECT true", "true); DROP TABLE decisions; --", "cer >"):
        with pytest.raises(store.StoreError) as error:
            review.rule_preview(con, ids["active"], wrong)
        assert "\n" not in str(error.value)


def test_a_page_of_texts_is_searched_sorted_and_cut_in_sql(opened):
    lab, ids, con = opened
    rows, total = review.texts(con, ids["active"], search="THE ", size=7)
    assert len(rows) == 7 < total and rows.text.str.lower().str.contains("the ").all()
    assert rows.d.dropna().is_monotonic_decreasing
    second, _ = review.texts(con, ids["active"], search="THE ", size=7, page=1)
    assert not set(rows.sample_id) & set(second.sample_id)
    cluster = int(rows.cluster_id.iloc[0])
    assert set(review.texts(con, ids["active"], [cluster])[0].cluster_id) == {cluster}


# ------------------------------------------------------------------------------------- the widget


def test_the_widget_writes_what_is_said_and_goes_on(opened):
    lab, ids, con = opened
    judge = review.Review(lab, ids["active"], "ada")
    queue = review.queue(con, ids["active"])[:3]
    received = []
    widget = Listening(con, judge, queue, received.append)
    widget.handle({"type": "go", "step": 1})
    assert widget.current == queue[1]
    widget.handle({"type": "decide", "verdict": "drop", "reason": "not speakable", "note": "a table"})
    widget.handle({"type": "decide", "verdict": "keep"})
    assert widget.current == queue[2] and "last one" in widget.card["message"]
    assert con.execute("""SELECT sample_id, verdict, reason, note, reviewer FROM decisions ORDER BY "at" """).fetchall() == [
        (queue[1], "drop", "not speakable", "a table", "ada"),
        (queue[2], "keep", None, None, "ada"),
    ]
    widget.handle({"type": "decide", "verdict": "undo"})
    widget.handle({"type": "decide", "verdict": "undo"})
    assert widget.current == queue[1] and widget.card["said"] == [] and len(received) == 4
    widget.handle({"type": "decide", "verdict": "undo"})
    assert widget.card["message"] == "nothing to undo"


def test_a_text_without_speech_is_spoken_when_it_comes_up_and_kept(shared, tmp_path):
    lab = tmp_path / "lab"
    shutil.copytree(shared[0], lab)
    ids, con = shared[1], store.connect(lab)
    silent = con.execute(
        "SELECT sample_id FROM selected WHERE selection_id = ? AND sample_id NOT IN "
        "(SELECT sample_id FROM syntheses) ORDER BY draw",
        [ids["active"]],
    ).fetchone()[0]
    widget = Listening(con, review.Review(lab, ids["active"], "ada"), [silent])
    assert widget.audio[:4] == b"fLaC" and widget.card["words"] and widget.card["message"] == "spoken just now"
    again = Listening(store.connect(lab), review.Review(lab, ids["active"], "ada"), [silent])
    assert again.audio == widget.audio and again.card["message"] is None


def test_a_lab_that_cannot_be_written_to_is_told_in_the_widget(opened, monkeypatch):
    lab, ids, con = opened
    (lab / "events").write_text("in the way")  # root may write anywhere: permissions would not stop a test
    widget = Listening(con, review.Review(lab, ids["active"], "ada"), review.queue(con, ids["active"])[:2])
    widget.handle({"type": "decide", "verdict": "drop", "reason": "other"})
    assert widget.card["message"].startswith("not written down:") and widget.current == widget.card["sample_id"]


def test_every_figure_is_drawn_from_few_rows(opened):
    import vl_convert

    lab, ids, con = opened
    for figure in (charts.clusters, charts.masses, charts.quadrants, charts.adjusted_ranking):
        chart = figure(con, ids["active"]).to_dict()
        assert sum(map(len, chart["datasets"].values())) < 1500
        assert "<svg" in vl_convert.vegalite_to_svg(chart)
    assert "<svg" in vl_convert.vegalite_to_svg(charts.hours(con, ids["active"], 3.0).to_dict())
    assert "<svg" in vl_convert.vegalite_to_svg(charts.curves(con).to_dict())


def test_clusters_are_found_by_words_and_many_are_collapsed(opened, monkeypatch):
    from workbench import panels
    from workbench.panels import selection as panel

    lab, ids, con = opened
    table = review.cluster_table(con, ids["active"])
    word = table.label.iloc[3].split(" ", 1)[1].split(", ")[0]

    def labels(figure, *args, **shown):
        rows = next(iter(figure(con, ids["active"], *args, **shown).to_dict()["datasets"].values()))
        return list(dict.fromkeys(row["label"] for row in rows))

    for figure, args in ((charts.clusters, ()), (charts.masses, (3.0,)), (charts.hours, (3.0,))):
        assert labels(figure, *args) == table.label.tolist()
        assert labels(figure, *args, top=5) == table.label.tolist()[:5]
        result = labels(figure, *args, words=f" {word.upper()} ")
        assert result and result == [label for label in table.label if word in label]
        assert figure(con, ids["active"], *args, words="no such (word").to_dict()
    assert panels.cluster_filter(con, ids["active"]).value == {"words": "", "top": None}
    monkeypatch.setattr(panel, "MANY", 5)
    assert panels.cluster_filter(con, ids["active"]).value == {"words": "", "top": 5}


# ------------------------------------------------------------------------------------- the other notebooks

OTHERS = ("divergences", "training", "results")


def contents(lab: Path) -> dict:
    return {str(p.relative_to(lab)): p.stat().st_mtime_ns for p in lab.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", OTHERS)
def test_a_notebook_is_thin_and_tells_what_to_do_in_an_empty_lab(name, tmp_path):
    assert len((ROOT / "notebooks" / f"{name}.py").read_text().splitlines()) <= 150
    _, defs = notebook(name).run(defs={"lab": tmp_path / "nothing"})
    assert "make demo" in defs["advice"] and not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("name", OTHERS)
def test_opening_a_notebook_writes_nothing_in_the_lab(name, opened):
    lab = opened[0]
    before = contents(lab)
    _, defs = notebook(name).run(defs={"lab": lab})
    assert defs["advice"] is None and contents(lab) == before


def going(lab: Path) -> RunFolder:
    """A run that is still going: this test's own process, at step 30 of 100."""
    run = RunFolder.get_or_create(lab, "stage1", "miniature_stage1", {"contender": "stage1", "seed": 9})
    run.status(state="running", step=30, max_steps=100, seconds_left=65.0)
    run.log("step 30")
    return run


@pytest.mark.parametrize("name", ("divergences", "results"))
def test_a_lab_whose_first_run_is_still_going_is_told_so(name, tmp_path):
    going(tmp_path)
    _, defs = notebook(name).run(defs={"lab": tmp_path})
    assert "still going" in defs["advice"] and "notebooks/training.py" in defs["advice"]


def test_the_divergences_notebooks_figures_are_sqls(opened):
    from workbench import divergences

    lab, ids, con = opened
    _, defs = notebook("divergences").run(defs={"lab": lab})
    stage1, other = (divergences.ScoredCheckpoint(*c) for c in defs["chosen"])
    assert stage1.run_id == ids["run"] and other.label.startswith("stage2_active")
    assert defs["corpus"] == "heldout" and defs["measure"] == "m"
    own, scored = defs["con"], defs["scored"]
    facts = divergences.facts(own, scored, "m", "heldout").set_index("label")
    by_sql = con.execute(
        """SELECT sum(v.m * n_positions) / sum(n_positions), count(DISTINCT v.sample_id)
        FROM raw.divergences v JOIN samples s USING (sample_id)
        WHERE run_id = ? AND step = ? AND corpus = 'heldout' AND v.m IS NOT NULL""",
        [stage1.run_id, stage1.step],
    ).fetchone()
    assert (facts.loc[stage1.label, "mean"], facts.loc[stage1.label, "n_texts"]) == pytest.approx(by_sql)
    # by cluster: as the store's own question has it, intervals aside (it has 1.96, this Student's t)
    mine_by = divergences.by_group(own, scored, "f", "cluster").query("label == @stage1.label")
    reference = con.execute(
        "SELECT f FROM divergence_by_cluster(?, ?) WHERE cluster_id IS NOT NULL ORDER BY f",
        [stage1.run_id, stage1.step],
    ).fetchall()
    assert np.allclose(sorted(mine_by["mean"]), [f for (f,) in reference])
    shares = divergences.histogram(own, scored, "m", "heldout").groupby("label").share.sum()
    assert np.allclose(shares, 1)


def test_kinds_of_words_hold_every_token_once_and_positions_too(opened):
    from workbench import divergences

    lab, ids, con = opened
    scored = divergences.read(con, [divergences.ScoredCheckpoint(ids["run"], ids["step"], "one")])
    n, total = con.execute(
        "SELECT count(*), sum(d) FROM token_divergences WHERE run_id = ? AND d IS NOT NULL", [ids["run"]]
    ).fetchone()
    kinds = divergences.by_kind(con, scored, "d")
    assert set(kinds.kind) <= set(divergences.KINDS) and kinds.n.sum() == n
    assert (kinds["mean"] * kinds.n).sum() == pytest.approx(total) and kinds.share.sum() == pytest.approx(1)
    places = divergences.by_position(con, scored, "d")
    assert places.n.sum() == n and (places["mean"] * places.n).sum() == pytest.approx(total)
    with pytest.raises(ValueError):
        divergences.by_kind(con, scored, "d); DROP TABLE runs; --")


def test_a_brush_narrows_the_texts_and_one_opens_under_both_checkpoints(opened):
    from workbench import divergences

    lab, ids, con = opened
    _, defs = notebook("divergences").run(defs={"lab": lab})
    a, b = defs["chosen"]
    scored = divergences.read(con, defs["chosen"])
    everything = divergences.texts(con, scored, "m", a.label, b.label, "heldout", size=99)
    assert len(everything[0]) == everything[1] == defs["total"]
    middle = float(everything[0].a.median())
    part, n = divergences.texts(con, defs["scored"], "m", a.label, b.label, "heldout", {"a": (middle, 99)}, order="fall", size=99)
    assert n == (everything[0].a >= middle).sum() and part.change.is_monotonic_increasing
    points = divergences.compared(con, defs["scored"], "m", a.label, b.label, "heldout")
    assert points.n.sum() == everything[1]
    trainer, two = defs["readings"]
    assert trainer.card["sample_id"] == two.card["sample_id"] == defs["sample"] and trainer.audio[:4] == b"fLaC"
    assert trainer.card["tokens"] and not two.card["tokens"]  # this lab keeps the tokens of one checkpoint
    before = contents(lab)
    trainer.handle({"type": "decide", "verdict": "drop", "reason": "other"})
    assert not trainer.judges and contents(lab) == before  # there is nobody to judge
    result = divergences.tokens({c.label: r.card for c, r in zip(defs["chosen"], defs["readings"], strict=True)})
    assert list(result.token) == [t["token"] for t in trainer.card["tokens"]]


def test_sql_that_people_type_reads_and_never_writes(opened):
    from workbench import panels

    lab, ids, con = opened
    _, defs = notebook("divergences").run(defs={"lab": lab})
    assert "1 rows" in panels.answer(defs["locked"], "SELECT count(*) AS n FROM misalignment").text
    refused = panels.answer(defs["locked"], "CREATE TABLE x AS SELECT 1").text
    assert "only SELECT" in refused and "Traceback" not in refused


def test_the_form_is_the_configurations_own_and_its_command_line_means_the_same():
    import shlex

    from salad import recipes
    from salad.config import apply_overrides, parse_set
    from workbench import control

    for name in recipes.names():
        assert control.overrides(name, control.form(name).value) == {}
    given = dict(control.form("miniature_stage2").value)
    assert set(given) == set(control.leaves()) == set(control.values(recipes.get("miniature_stage2")))
    given |= {"optim.steps": 2000, "optim.lr_llm": "1e-4", "selection": "l'1 2", "llm.finetune": "full"}
    changed = control.overrides("miniature_stage2", given)
    assert changed == {"optim.steps": 2000, "optim.lr_llm": 1e-4, "selection": "l'1 2", "llm.finetune": "full"}
    words = shlex.split(control.command_line("miniature_stage2", changed, "slurm", "H200:8", "lab", max_hours=3))
    typed = parse_set([w for flag, w in zip(words, words[1:], strict=False) if flag == "--set"])
    recipe = recipes.get("miniature_stage2")
    assert apply_overrides(recipe, typed) == apply_overrides(recipe, changed)
    assert words[:3] == ["python", "launch_gpu.py", "miniature_stage2"] and words[-2:] == ["--lab", "lab"]
    with pytest.raises(store.UserError) as error:
        control.overrides("miniature_stage2", given | {"optim.lr_llm": "fast"})
    assert "optim.lr_llm" in str(error.value) and "\n" not in str(error.value)


def test_the_training_notebook_shows_runs_as_they_go_and_writes_notes(opened):
    from workbench import control

    lab, ids, con = opened
    run = going(lab)
    _, defs = notebook("training").run(defs={"lab": lab})
    assert defs["picked"] == [run.run_id] == control.overlaid(defs["runs"])
    row = defs["runs"].set_index("run_id").loc[run.run_id]
    assert (row.state, row.step, row.max_steps) == ("running", 30, 100) and row.seconds_left > 0
    assert len(defs["runs"]) == con.execute("SELECT count(*) FROM runs").fetchone()[0] + 1
    assert "step 30" in control.log(lab, run.run_id)
    control.note(lab, [ids["run"]], "baseline", "two words", "ada")
    store.refresh(con)
    assert con.execute("SELECT tags, note FROM runs WHERE run_id = ?", [ids["run"]]).fetchone() == ("baseline", "two words")
    messages = []
    control.button("stop", lambda: control.stop(lab, [run.run_id]), messages.append)._on_change(None)
    assert messages[0].startswith("Not done:") and "launch_gpu" in messages[0]  # it was not launched: nobody to ask
    assert control.fetch(lab, [run.run_id]) == f"{run.run_id}: 0 checkpoints here and whole."
    assert "Choose a run" in control.fetch(lab, [])


def test_curves_carry_the_scored_checkpoints_and_say_how_to_score_the_others(opened):
    import vl_convert

    from workbench import control, divergences

    lab, ids, con = opened
    run = going(lab)
    store.refresh(con)
    assert control.measures(con, [ids["run"]]) == ["loss", "m"] and control.measures(con, [run.run_id]) == []
    assert control.unscored(con, lab, [ids["run"]]) == ""
    assert f"--run {run.run_id}" in control.unscored(con, lab, [ids["run"], run.run_id])
    for measure in ("m", "f", "d"):
        rows = divergences.of_checkpoints(con, measure, [ids["run"]])
        n = "n_positions_f" if measure == "f" else "n_positions"
        by_hand = con.execute(
            f"""SELECT corpus, sum({measure} * {n}) / sum({n}) FROM raw.divergences JOIN samples USING (sample_id)
            WHERE run_id = ? AND step = ? AND {measure} IS NOT NULL GROUP BY 1""",
            [ids["run"], ids["step"]],
        ).fetchall()
        assert dict(zip(rows.corpus, rows.value, strict=True)) == pytest.approx(dict(by_hand))
        assert set(rows.step) == {ids["step"]} and (rows.low <= rows.value).all() and (rows.value <= rows.high).all()
    chart = charts.curves(con, "m", [ids["run"]]).to_dict()
    assert len(chart["layer"]) == 3 and "<svg" in vl_convert.vegalite_to_svg(chart)
    assert len(charts.curves(con, "loss", [ids["run"]]).to_dict()["layer"]) == 1


def test_a_launch_says_first_what_it_would_do_and_starts_nothing(opened):
    from workbench import control

    lab = opened[0]
    before = contents(lab)
    with pytest.raises(store.UserError) as error:
        control.start(lab, "miniature_stage1", {}, "nowhere", "", dry_run=True)
    assert "nowhere" in str(error.value) and contents(lab) == before


def test_a_dry_run_tells_hours_and_the_targets_money(opened, tmp_path, monkeypatch):
    from salad import plan, recipes
    from workbench import control

    lab = opened[0]
    (tmp_path / "targets.toml").write_text('[box]\nengine = "here"\nprice_per_hour = 3.0\n')
    monkeypatch.chdir(tmp_path)
    first, two = (control.cost(lab, "qwen2_5_0_5b_stage1", {"optim.steps": n}, "box", "H100:2") for n in (6000, 12000))
    hours = plan.cost(lab, "q", recipes.get("qwen2_5_0_5b_stage1"), "H100").gpu_hours / 2
    assert f"{hours:,.2f} hours on H100:2, {3 * hours:,.2f} at 3 an hour" in first
    assert f"{2 * hours:,.2f} hours on H100:2" in two and "assumed 40%" in first
    assert "an hour" not in control.cost(lab, "qwen2_5_0_5b_stage1", {}, "here")


def test_the_results_notebooks_table_and_pairs_are_sqls(opened):
    from salad import analysis

    lab, ids, con = opened
    _, defs = notebook("results").run(defs={"lab": lab})
    row = defs["rows"].set_index(["contender", "group"]).loc["stage2_active", analysis.GROUPS["uncovered"]]
    broad = ("biology", "chemistry", "geography", "cooking", "music")
    by_sql = con.execute(
        f"""SELECT avg(a) FROM (SELECT avg(correct_norm::INT) AS a FROM evaluations WHERE contender = 'stage2_active'
        AND modality = 'speech' AND domain IN {broad} GROUP BY domain)"""
    ).fetchone()[0]
    assert row.speech == pytest.approx(by_sql)
    figures = {figure.name: figure for figure in defs["figures"]}
    assert list(figures) == ["accuracy", "divergences", "misalignment-and-speech", "forgetting-and-text", "strategies",
                             "published"]  # fmt: skip
    music = figures["strategies"].rows.query("group == 'music'").iloc[0]
    first, other = (
        con.execute(
            """SELECT avg(correct_norm::INT) FROM evaluations
            WHERE contender = ? AND modality = 'speech' AND domain = 'music'""",
            [name],
        ).fetchone()[0]
        for name in ("stage2_active", "stage2_uniform")
    )
    assert music.difference == pytest.approx(first - other) and music.low <= music.difference <= music.high
    near = figures["published"].rows
    assert set(near.whose) == {"this lab", "published"} and near[near.system == "SALAD-3B"].accuracy.iloc[0] == 72.0
    for figure in figures.values():
        assert b"<svg" in figure.svg() and figure.csv().count(b"\n") == len(figure.rows) + 1
    assert figures["strategies"].png()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "votes" not in figures and defs["votes_figures"].empty


def test_ms_fall_with_tokens_is_fitted_from_four_checkpoints_on(opened):
    """Three further checkpoints of Stage I whose held-out M follow 0.3 + 40 N^-0.5 for every text."""
    from salad import analysis
    from workbench import reports

    lab, ids, con = opened
    study = analysis.read_study(lab, con)
    points, curves, laws = reports.scaling(con, lab, study)
    assert set(points.contender) == {"stage1", "stage2_active", "stage2_uniform"} and curves.empty and laws.empty
    rows = con.execute(
        """SELECT v.* FROM raw.divergences v JOIN samples s USING (sample_id)
        WHERE run_id = ? AND s.corpus = 'heldout'""",
        [ids["run"]],
    ).df()
    for step in (100, 200, 300, 400, 500):  # the lab logs 900 tokens a step
        law = 0.3 + 40 * (900 * step) ** -0.5
        made = rows.assign(step=step, m=law).astype(object).where(rows.notna().assign(m=True), None)
        store.publish(lab, "divergences", made.to_dict("records"), {"more": step})
    store.refresh(con)
    points, curves, laws = reports.scaling(con, lab, study)
    own = points[points.run_id == ids["run"]].set_index("tokens").m
    assert own.loc[90_000] == pytest.approx(0.3 + 40 / 300) and len(own) == 6
    assert laws.contender.tolist() == ["stage1"] and laws.checkpoints.tolist() == [6]
    assert (curves.low <= curves.m + 1e-9).all() and curves.tokens.max() == pytest.approx(540_000)
    _, defs = notebook("results").run(defs={"lab": lab})
    figure = {f.name: f for f in defs["figures"]}["scaling"]
    assert "E" in figure.caption and b"<svg" in figure.svg() and len(figure.rows) == len(points)


def test_votes_become_a_figure_with_its_interval(opened):
    from workbench import reports

    lab, ids, con = opened
    for i in range(12):
        store.append(
            lab, "votes", question_id=f"q{i}", left_contender="stage2_active", left_modality="speech", blind=True,
            right_contender="teacher", right_modality="text", choice="left" if i % 3 else "right", voter=f"v{i % 3}",
        )  # fmt: skip
    _, defs = notebook("results").run(defs={"lab": lab})
    votes_figures = defs["votes_figures"]
    assert votes_figures.n.tolist() == [12, 12] and votes_figures["mean"].iloc[0] == pytest.approx(8 / 12)
    assert (votes_figures.low < votes_figures["mean"]).all() and "votes" in {figure.name for figure in defs["figures"]}
    assert reports.votes(con).empty  # this connection has not looked again


def test_every_figure_of_the_divergences_notebook_is_drawn_from_few_rows(opened):
    import vl_convert

    lab, ids, con = opened
    _, defs = notebook("divergences").run(defs={"lab": lab})
    con, scored, labels = defs["con"], defs["scored"], defs["labels"]
    drawn = [charts.divergence_by_group(con, scored, "d", group, labels) for group in ("domain", "corpus", "cluster")]
    drawn += [
        f(con, scored, "d", labels) for f in (charts.distribution, charts.divergence_by_position, charts.divergence_by_kind)
    ]
    drawn += [charts.compared(con, scored, "d", *labels), charts.tokens({"A": defs["readings"][0].card}, "d")]
    for chart in drawn:
        content = chart.to_dict()
        assert 0 < sum(map(len, content["datasets"].values())) < 2500
        assert "<svg" in vl_convert.vegalite_to_svg(content)


def test_a_read_only_lab_opens_and_says_so(opened):
    import marimo as mo

    from workbench import panels

    lab = opened[0]
    assert panels.state(opened[2], lab).text == mo.md("").text
    for path in [lab, *lab.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = contents(lab)
    try:
        with obeying_permissions():
            _, defs = notebook("selection").run(defs={"lab": lab})
            result = panels.state(defs["con"], lab).text
            widget = defs["listening"]
            widget.handle({"type": "decide", "verdict": "drop", "reason": "other"})
    finally:
        for path in [lab, *lab.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert "read-only" in result and "SALAD_LAB" in result and "Traceback" not in result
    assert widget.audio[:4] == b"fLaC" and widget.card["message"].startswith("not written down:")
    assert contents(lab) == before
