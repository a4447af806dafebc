"""Scorings in spans of different ranges lie side by side in a lab, and no view averages them."""

import json
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import store
from salad import lookup
from salad.errors import SaladError
from salad.passes import score
from salad.runs import RunFolder
from store import schema


def scored(spans: tuple | None, m: float, run: str = "r1", texts: int = 3) -> list[dict]:
    fields = {} if spans is None else {"span_min": spans[0], "span_max": spans[1]}
    return [
        {"run_id": run, "step": 10, "sample_id": f"s{n}", "synthesis_id": f"y{n}", "pattern": pattern, "m": m, "f": 0.1,
         "d": 2 * m, "n_positions": 5, "n_positions_f": 8, "speech_s": 1.0, **fields}
        for n in range(texts) for pattern in (0, 1)
    ]  # fmt: skip


def tokens(rows: list[dict]) -> list[dict]:
    kept = ("run_id", "step", "sample_id", "synthesis_id", "pattern", "m", "f", "d", "span_min", "span_max")
    return [{k: v for k, v in row.items() if k in kept} | {"position": 0, "after_speech": True} for row in rows]


def stage1(lab, span_units=(1, 6), ended_at="2026-01-01T01:00:00Z", seed=0) -> str:
    config = {"kind": "stage1", "contender": "stage1", "seed": seed, "sequences": {"span_units": list(span_units)},
              "optim": {"steps": 1, "lr_adapter": 1e-3, "lr_llm": 1e-3}}  # fmt: skip
    run = RunFolder.get_or_create(lab, "stage1", "a recipe", config)
    store.atomic.write_json(run.path / "status.json", {"state": "done", "ended_at": ended_at})
    return run.run_id


QUESTIONS = (
    "select avg(m) from raw.scored", "select avg(m) from misalignment", "select avg(m) from raw.scored_tokens",
    "select avg(m) from divergence_by_cluster('r1', 10)", "select avg(m) from divergence_of_checkpoints('r1')",
    "select avg(m) from worst_samples('r1', 10)", "select avg(m) from browse_samples('r1', 10, NULL, NULL)",
    "select avg(m_a) from change_between_checkpoints('r1', 10, 'r1', 10)",
)  # fmt: skip


def answers(lab) -> set[float]:
    con = store.connect(lab)
    return {round(con.execute(question).fetchone()[0], 9) for question in QUESTIONS}


def test_rows_from_before_and_rows_without_spans_read_as_1_to_4(tmp_path):
    store.publish(tmp_path, "divergences", scored(None, 0.5), {"new": 1})
    unit = store.publish(tmp_path, "divergences", scored(None, 0.5, "r2"), {"old": 1})
    (path,) = [p for p in (tmp_path / "tables").rglob("unit-*.json") if unit.unit_id in p.name]
    parquet = path.with_suffix(".parquet")
    pq.write_table(pq.read_table(parquet).drop_columns(["span_min", "span_max"]), parquet)
    manifest = json.loads(path.read_text())
    del manifest["sum"]
    manifest |= {"schema": 1, "sha256": store.verification.sha256(parquet), "bytes": parquet.stat().st_size}
    store.atomic.write_json(path, store.lab.seal(manifest))
    con = store.connect(tmp_path)
    for table in ("raw.divergences", "divergences", "misalignment"):
        rows = con.execute(f"select distinct run_id, span_min, span_max from {table} order by 1").fetchall()
        assert rows == [("r1", 1, 4), ("r2", 1, 4)]
    store.compact(tmp_path, grace_s=0)
    assert store.connect(tmp_path).execute("select distinct span_min, span_max from raw.divergences").fetchall() == [(1, 4)]


@pytest.mark.parametrize("table", ["divergences", "token_divergences"])
def test_the_range_of_spans_is_part_of_the_key(tmp_path, table):
    assert {"span_min", "span_max"} <= set(schema.TABLES[table].key)
    first, two = (scored(spans, m) for spans, m in (((1, 4), 0.5), ((5, 25), 3.0)))
    first, two = (tokens(rows) if table == "token_divergences" else rows for rows in (first, two))
    store.publish(tmp_path / "here", table, first, {"a": 1})
    store.publish(tmp_path / "there", table, [*first, *two], {"b": 1})
    store.import_(tmp_path / "here", tmp_path / "there")  # what is here already does not come twice, the other range does
    rows = (
        store.connect(tmp_path / "here")
        .execute(f"select span_min, span_max, count(*) from {table} group by all order by all")
        .fetchall()
    )
    assert rows == [(1, 4, 6), (5, 25, 6)]


def test_no_view_mixes_two_ranges_and_the_stage_1_range_goes_first(tmp_path):
    texts = [{"sample_id": f"s{n}", "text": f"text {n}", "corpus": "broad"} for n in range(3)]
    store.publish(tmp_path, "samples", texts, {"texts": 3})
    for spans, m in (((1, 4), 0.5), ((1, 6), 3.0)):
        rows = scored(spans, m)
        store.publish(tmp_path, "divergences", rows, {"spans": spans})
        store.publish(tmp_path, "token_divergences", tokens(rows), {"spans": spans})
    assert answers(tmp_path) == {3.0}  # of two that one checkpoint has each, the wider
    con = store.connect(tmp_path)
    store.publish(tmp_path, "divergences", scored((1, 4), 0.5, "r2"), {"more": 1})
    store.refresh(con)
    assert con.execute("select avg(m) from misalignment").fetchone() == (0.5,)  # that of the most checkpoints
    assert answers(tmp_path) == {0.5}
    stage1(tmp_path)
    store.refresh(con)  # though no scoring came, the same connection shows what was trained in
    assert con.execute("select avg(m) from misalignment").fetchone() == (3.0,)
    assert answers(tmp_path) == {3.0}
    store.atomic.write_json(tmp_path / "study.json", {"scoring": {"span_units": [1, 4]}})
    assert answers(tmp_path) == {0.5}  # the study's own word goes before all
    assert store.connect(tmp_path).execute("select count(*) from raw.divergences").fetchone() == (18,)


def test_a_run_is_scored_in_the_spans_that_its_stage_1_was_trained_in(tmp_path):
    first = stage1(tmp_path, (5, 25))
    config = {"kind": "stage2", "contender": "stage2", "parent": first, "sequences": {"span_units": [2, 3]},
              "optim": {"steps": 1, "lr_adapter": 1e-3, "lr_llm": 1e-3}}  # fmt: skip
    second = RunFolder.get_or_create(tmp_path, "stage2", "a recipe", config, first).run_id
    assert lookup.scoring_spans(tmp_path, second) == lookup.scoring_spans(tmp_path, first) == (5, 25)
    assert lookup.scoring_spans(tmp_path, "r000000000000") == (1, 4)  # of another lab: nothing here says more
    store.atomic.write_json(tmp_path / "study.json", {"scoring": {"span_units": [2, 9]}})
    assert lookup.scoring_spans(tmp_path, second) == (2, 9)
    store.atomic.write_json(tmp_path / "study.json", {"scoring": {"span_units": [9]}})
    with pytest.raises(SaladError, match="study.json: scoring.span_units"):
        lookup.scoring_spans(tmp_path, second)


def test_a_scoring_in_spans_of_1_to_4_keeps_the_unit_that_it_had_before(tmp_path):
    spoken = [SimpleNamespace(synthesis_id="y1", audio_path="speech/x/a.tar")]
    old, wide = (score.parts(tmp_path, None, "r1", 1, spoken, "x", 0, spans)[0].made_from for spans in ((1, 4), (5, 25)))
    assert "span_units" not in old and wide == old | {"span_units": [5, 25]}
    for spans in ((0, 4), (4, 1)):
        with pytest.raises(SaladError, match="write the shortest, at least 1, and the longest"):
            score.parts(tmp_path, None, "r1", 1, spoken, "x", 0, spans)


def test_spans_that_are_null_count_as_1_to_4(tmp_path):
    rows = pa.Table.from_pylist(scored((1, 4), 1.0)[:1])
    rows = rows.set_column(rows.column_names.index("span_min"), "span_min", pa.nulls(1, pa.int32()))
    store.publish(tmp_path, "divergences", rows, {"a": 1})
    assert store.connect(tmp_path).execute("select m from raw.scored").fetchall() == [(1.0,)]


def test_a_study_says_in_which_spans_it_is_scored_and_one_from_before_goes_on_in_its_own(tmp_path):
    from salad import recipes
    from salad.study import graph
    from salad.study.config import ScoringConfig

    study = recipes.miniature()
    spans = lambda lab: tuple(json.loads((lab / "study.json").read_text())["scoring"]["span_units"])  # noqa: E731
    graph.claim(tmp_path / "demo", study)
    assert spans(tmp_path / "demo") == (1, 4)  # as its published figures are
    graph.claim(tmp_path / "default", study.model_copy(update={"scoring": ScoringConfig()}))
    assert spans(tmp_path / "default") == study.stage1.sequences.span_units != (1, 4)
    other = study.model_copy(update={"scoring": ScoringConfig(span_units=(5, 25))})
    graph.claim(tmp_path / "other", other)
    assert spans(tmp_path / "other") == (5, 25)
    with pytest.raises(SaladError, match=r"scoring.span_units is \[1, 4\] there, \[5, 25\] asked for"):
        graph.claim(tmp_path / "demo", other)
    lab = tmp_path / "old"  # as the demo of commit 4f4aa4b wrote it
    graph.claim(lab, study)
    before = json.loads((lab / "study.json").read_text())
    del before["scoring"], before["config"]["scoring"]
    store.atomic.write_json(lab / "study.json", before)
    with pytest.raises(SaladError, match="holds another study"):
        graph.claim(lab, other)
    graph.claim(lab, study)
    graph.claim(lab, study)
    assert spans(lab) == (1, 4)
