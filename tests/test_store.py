"""The store: units, events, views, decisions, questions, locked connections, compaction, bundles."""

import datetime
import hashlib
import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures import make_lab
from scipy import stats

import store
from salad.passes import run_once
from salad.runs import Stopped
from store import docs, events, schema
from store.compact import merge
from store.lab import seal_line

FIXTURES = Path(__file__).parent / "fixtures"


def one_value(con, sql, *values):
    row = con.execute(sql, list(values)).fetchone()
    return row[0] if row and len(row) == 1 else row


def sample(n, corpus="broad", **more):
    return {"sample_id": f"s{n:012d}", "text": f"text number {n}", "corpus": corpus, **more}


def divergence(n, pattern=0, run="r1", step=10, **more):
    return {
        "run_id": run,
        "step": step,
        "sample_id": f"s{n:012d}",
        "synthesis_id": f"y{n}",
        "pattern": pattern,
        "m": 0.1 * n,
        "f": 0.01 * n,
        "d": 0.2 * n,
        "n_positions": 10,
        "n_positions_f": 20,
        "speech_s": 1.0,
        **more,
    }


@pytest.fixture
def lab(tmp_path):
    return tmp_path / "lab"


# ------------------------------------------------------------------------------------------------ units


def test_missing_lab_gives_every_table_empty_with_its_columns(lab):
    con = store.connect(lab)
    for name, table in schema.TABLES.items():
        columns = {row[0]: row[1] for row in con.execute(f'DESCRIBE "{name}"').fetchall()}
        for column in table.columns:
            expected = schema.column_type(column).replace("TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE").replace('"', "")
            assert columns[column.name] == expected
        if name != "published":
            assert one_value(con, f'SELECT count(*) FROM "{name}"') == 0
    assert not lab.exists()  # looking writes nothing
    assert con.execute("FROM misalignment").fetchall() == []


def test_publishing_again_writes_the_same_bytes_and_one_unit(lab):
    rows = [sample(2, flags=["code"]), sample(1)]
    first = store.publish(lab, "samples", rows, {"seed": 3, "shard": 0})
    before, stamp = first.path.read_bytes(), first.path.with_suffix(".json").read_bytes()
    second = store.publish(lab, "samples", list(rows), {"shard": 0, "seed": 3})
    assert (second.unit_id, second.path.read_bytes()) == (first.unit_id, before)
    assert first.path.with_suffix(".json").read_bytes() == stamp
    con = store.connect(lab)
    assert con.execute("SELECT sample_id, flags FROM samples").fetchall() == [
        ("s000000000001", None),
        ("s000000000002", ["code"]),
    ]  # sorted
    assert store.exists(lab, "samples", {"seed": 3, "shard": 0}) and not store.exists(lab, "samples", {"seed": 4})
    manifest = json.loads(stamp)
    assert manifest["rows"] == 2 and manifest["seed"] == 3 and not any("at" == k or "time" in k for k in manifest)


def test_a_tables_version_changes_with_what_it_holds_and_with_nothing_else(lab):
    store.publish(lab, "divergences", [divergence(1)], {"part": 1})
    con = store.connect(lab)
    before = store.version(con, "divergences", "decisions")
    store.refresh(con)
    assert store.version(con, "divergences", "decisions") == before
    store.append(lab, "decisions", selection_id="l1", target="cluster", cluster_id=1, verdict="keep", reviewer="ada")
    store.refresh(con)
    version = store.version(con, "divergences", "decisions")
    assert version[0] == before[0] and version[1] != before[1]
    store.publish(lab, "divergences", [divergence(2)], {"part": 1})  # as many rows as before, in the place of the others
    assert store.version(con, "divergences", "decisions") == version  # this connection has not seen it yet
    store.refresh(con)
    assert store.version(con, "divergences")[0] != version[0]
    locked = store.connect(lab, locked=True)
    assert store.version(locked, "divergences") == store.version(store.connect(lab), "divergences")


def test_a_unit_without_rows_is_a_unit(lab):
    """A shard in which nothing was found is done all the same."""
    assert store.publish(lab, "divergences", [], {"a": 1}).rows == 0
    assert store.exists(lab, "divergences", {"a": 1})
    assert store.connect(lab).execute("FROM divergences").fetchall() == [] and store.verify(lab) == []


def test_rows_are_sorted_by_a_number_with_ties_and_nulls_as_arrow_sorts_them(lab):
    values = [0.5, None, 0.25, 0.5, 2.0, None, -1.0, 0.5, 0.25]
    rows = [divergence(97 * n % 50, n % 2, m=m) for n, m in enumerate(values)]
    got = pq.read_table(store.publish(lab, "divergences", rows, {"a": 1}).path)
    by = [("m", "descending"), ("sample_id", "ascending"), ("pattern", "ascending")]
    assert got.equals(store.rows.fit("divergences", rows).sort_by(by))


def test_the_same_work_with_other_rows_replaces_the_unit_and_old_connections_go_on(lab):
    store.publish(lab, "samples", [sample(1), sample(2)], {"a": 1})
    con = store.connect(lab)
    store.publish(lab, "samples", [sample(3, corpus="other")], {"a": 1})  # filed under another key, too
    assert one_value(con, "SELECT count(*) FROM samples") == 2
    store.refresh(con)
    assert con.execute("SELECT sample_id FROM samples").fetchall() == [("s000000000003",)]
    store.publish(lab, "samples", [sample(4, corpus="other")], {"a": 1})  # same folder
    assert one_value(con, "SELECT sample_id FROM samples") == "s000000000003"
    store.refresh(con)
    assert con.execute("SELECT sample_id FROM samples").fetchall() == [("s000000000004",)]


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{**sample(1), "flag": 1}], "no column 'flag'; did you mean 'flags'"),
        ([sample(1), {**sample(2), "text": None}], "'text', row 1"),
        ([{"sample_id": "s", "text": "t"}], "'corpus' is missing"),
        ([sample(1), sample(2, n_tokens="many")], "'n_tokens', row 1: 'many' is no INTEGER"),
        ([sample(1, flags="code")], "'flags', row 0"),
        ([sample(1, n_tokens=2**40)], "'n_tokens', row 0"),
        ([sample(1), sample(2), {**sample(3), "text": "\ud800"}], "'text', row 2"),
    ],
)
def test_rows_that_do_not_fit_are_refused_by_column_and_row(lab, rows, message):
    with pytest.raises(store.StoreError, match="samples") as error:
        store.publish(lab, "samples", rows, {"a": 1})
    assert message in str(error.value)
    assert not list(lab.rglob("unit-*"))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_has_no_value_is_null_never_nan(lab, value):
    with pytest.raises(store.StoreError, match="column 'm', row 1"):
        store.publish(lab, "divergences", [divergence(1), divergence(2, m=value)], {"a": 1})
    store.publish(lab, "divergences", [divergence(1), divergence(2, m=None, n_positions=0)], {"a": 1})
    assert one_value(store.connect(lab), "SELECT m FROM divergences WHERE n_positions = 0") is None


def test_arrow_tables_and_data_frames_publish_as_lists_do(lab):
    rows = [divergence(n, m=None if n == 2 else 0.5) for n in range(5)]
    sha = set()
    for number, form in enumerate((rows, pa.Table.from_pylist(rows), pa.Table.from_pylist(rows).to_pandas())):
        sha.add(store.publish(lab / str(number), "divergences", form, {"a": 1}).manifest["sha256"])
    assert len(sha) == 1


def test_text_survives_a_round_trip(lab):
    odd = [
        'it\'s "quoted"',
        "nul \0 inside",
        "emoji 👩‍🔬 ü ﷽",
        "x" * 1_000_000,
        "",
        "line\nbreak\r\n\t",
        "\u2028",
        "$1 {x} --;",
    ]
    store.publish(lab, "samples", [sample(n, spoken=text) | {"text": text} for n, text in enumerate(odd)], {"o'clock": "\0"})
    for number, text in enumerate(odd):
        if text:
            store.append(
                lab,
                "decisions",
                selection_id="l1",
                target="sample",
                sample_id=f"s{number}",
                verdict="drop",
                note=text,
                reviewer="o'neil",
            )
    con = store.connect(lab)
    assert [r[0] for r in con.execute("SELECT text FROM samples ORDER BY sample_id").fetchall()] == odd
    assert [r[0] for r in con.execute('SELECT note FROM decisions ORDER BY "at"').fetchall()] == [t for t in odd if t]


def test_quotes_in_the_labs_own_path(tmp_path):
    lab = tmp_path / "it's a lab; ünï"
    store.publish(lab, "samples", [sample(1)], {"a": 1})
    assert store.query(lab, "SELECT count(*) AS n FROM samples").to_pylist() == [{"n": 1}]
    store.renew(lab)


def test_units_of_an_older_schema_read_as_null(lab, monkeypatch):
    store.publish(lab, "selections", [{"selection_id": "l1", "gamma": 5.0}], {"a": 1})
    table = schema.TABLES["selections"]
    newer = table._replace(columns=(*table.columns, schema.Column("rounds", schema.INT, "of drawing",
                                                                      since=table.version + 1)))  # fmt: skip
    monkeypatch.setitem(schema.TABLES, "selections", newer)
    monkeypatch.setattr(schema, "UNITS", tuple(newer if t.name == "selections" else t for t in schema.UNITS))
    store.publish(lab, "selections", [{"selection_id": "l2", "rounds": 3}], {"a": 2})
    rows = store.connect(lab).execute("SELECT selection_id, gamma, rounds FROM selections ORDER BY 1").fetchall()
    assert rows == [("l1", 5.0, None), ("l2", None, 3)]


@pytest.mark.parametrize("made", ["lab_v1", "lab_v2", "now"])
def test_a_lab_that_another_version_made_still_opens(tmp_path, made):
    """lab_v1 was written at schema version 1 of every table: before events had manifests and syntheses a column
    `planted`. lab_v2 is of the last version without a log: a unit that replaced another (its file has the start of its
    sha256 in its name), a merged unit whose members are gone, one whose members are there. Neither is ever written
    again. make_lab.py makes the next one."""
    lab = tmp_path / "lab"
    if made == "now":
        make_lab.make(lab)
    else:
        shutil.copytree(FIXTURES / made, lab)
    con = store.connect(lab)
    expected = json.loads((lab / "rows.json").read_text())
    if made == "lab_v1":
        assert "planted" not in expected["syntheses"][0]
        assert con.execute("SELECT planted FROM syntheses").fetchall() == [(None,), (None,)]
    since = {"selection_clusters", "answers"} if made == "lab_v1" else set()
    assert set(expected) == set(schema.TABLES) - {"damaged", "published"} - since
    assert con.execute("FROM damaged").fetchall() == []
    for name, rows in expected.items():
        columns = ", ".join(f'"{key}"' for key in rows[0])
        got = con.sql(f'SELECT {columns} FROM "{name}"').to_arrow_table().to_pylist()
        content = json.loads(json.dumps(got, default=lambda time: time.isoformat()))
        assert sorted(content, key=str) == sorted(rows, key=str), name
    if made != "lab_v2":
        synthesis = next(row["synthesis_id"] for row in expected["syntheses"] if row["audio_path"])
        assert store.audio(con, synthesis)[:4] == b"fLaC"
    assert store.verify(lab) == []


# ---------------------------------------------------------------------------------------- views, runs


def write_run(lab, run_id, status=None, metrics=None, **config):
    folder = lab / "runs" / run_id
    store.atomic.write_json(
        folder / "config.json",
        {
            "run_id": run_id,
            "kind": "stage1",
            "recipe": "x",
            "config": {"lr": 1},
            "parent_run_id": None,
            "selection_id": None,
            "repetition": 0,
            **config,
        },
    )
    if status:
        store.atomic.write_json(folder / "status.json", status)
    for first, lines in (metrics or {}).items():
        text = "".join(
            json.dumps({"step": s, "tokens": s * 100, "at": "2026-01-01T00:00:00Z", "values": v}) + "\n" for s, v in lines
        )
        (folder / f"metrics-{first}.jsonl").write_text(text)


def test_runs_and_metrics_come_from_the_run_folders(lab):
    write_run(
        lab,
        "r1",
        {"state": "running", "step": 4, "started_at": "2026-01-01T00:00:00Z"},
        {
            0: [(1, {"loss": 3.0}), (2, {"loss": 2.0}), (3, {"loss": 9.0})],
            3: [(3, {"loss": 1.0, "lr": 0.1}), (4, {"loss": float("nan")})],
        },
    )
    store.append(lab, "run_notes", run_id="r1", tags="a", note="first")
    store.append(lab, "run_notes", run_id="r1", note="second")
    con = store.connect(lab)
    assert one_value(con, "SELECT status, tags, note, started_at, config ->> 'lr' FROM runs") == (
        "running",
        "a",
        "second",
        datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        "1",
    )
    assert con.execute("SELECT step, name, value, tokens FROM metrics").fetchall() == [
        (1, "loss", 3.0, 100),
        (2, "loss", 2.0, 200),
        (3, "loss", 1.0, 300),
        (3, "lr", 0.1, 300),
        (4, "loss", None, 400),
    ]
    with open(lab / "runs" / "r1" / "metrics-3.jsonl", "a") as file:
        file.write('{"step": 5, "tokens": 500, "at": null, "values": {"loss": 0.5}}\n{"step": 6, "to')
    store.refresh(con)  # the torn line is still being written
    assert one_value(con, "SELECT max(step) FROM metrics") == 5


def test_the_newest_clustering_is_that_whose_pass_ended_last(lab):
    for name, hour in (("r1", 3), ("r2", 2)):
        write_run(lab, name, {"state": "done", "ended_at": f"2026-01-01T0{hour}:00:00Z"})
    for clustering, run, cluster in (("c1", "r1", 7), ("c2", "r2", 8)):
        store.publish(
            lab,
            "clusters",
            [{"clustering_id": clustering, "cluster_id": cluster, "run_id": run, "terms": ["x"]}],
            {"c": clustering},
        )
        store.publish(
            lab,
            "assignments",
            [{"clustering_id": clustering, "sample_id": "s000000000001", "cluster_id": cluster}],
            {"c": clustering},
        )
    store.publish(lab, "divergences", [divergence(1), divergence(2)], {"a": 1})
    con = store.connect(lab)
    assert con.execute("SELECT clustering_id, cluster_id FROM divergences ORDER BY sample_id").fetchall() == [
        ("c1", 7),
        (None, None),
    ]
    write_run(lab, "r2", {"state": "done", "ended_at": "2026-01-01T04:00:00Z"})
    store.refresh(con)
    assert one_value(con, "SELECT cluster_id FROM divergences WHERE cluster_id IS NOT NULL") == 8


def test_misalignment_is_one_row_a_sample_weighted_by_positions(lab):
    store.publish(lab, "samples", [sample(1, domain="music")], {"a": 1})
    store.publish(
        lab,
        "divergences",
        [
            divergence(1, 0, m=1.0, n_positions=30, f=1.0, n_positions_f=10),
            divergence(1, 1, m=2.0, n_positions=10, f=2.0, n_positions_f=30),
        ],
        {"a": 1},
    )
    con = store.connect(lab)
    assert con.execute("SELECT domain, m, f, n_positions, decision FROM misalignment").fetchall() == [
        ("music", 1.25, 1.75, 40, None)
    ]
    columns = [row[0] for row in con.execute("DESCRIBE misalignment").fetchall()]
    assert set("sample_id text domain cluster_id terms run_id step m f d voice cer audio_path decision".split()) <= set(columns)


def test_store_duckdb_answers_as_the_lab_does_and_renewing_it_disturbs_nobody(lab):
    publish_selection(lab)
    store.append(lab, "decisions", selection_id="l1", target="cluster", cluster_id=1, verdict="drop", reviewer="ann")
    path = store.renew(lab)
    with duckdb.connect(str(path), read_only=True) as plain:
        for table in (*schema.TABLES, "misalignment", "current_decisions"):
            own = store.connect(lab).execute(f'SELECT * FROM "{table}"').fetchall()
            assert sorted(plain.execute(f'SELECT * FROM "{table}"').fetchall(), key=str) == sorted(own, key=str), table
        comment = "SELECT comment FROM duckdb_views() WHERE view_name = 'misalignment'"
        assert plain.execute(comment).fetchone()[0].startswith("Start here")
        assert plain.execute("SELECT comment FROM duckdb_tables() WHERE table_name = 'runs'").fetchone()[0]
        assert plain.execute("SELECT count(*) FROM worst_samples('r1', 10)").fetchone()[0] > 0
        store.renew(lab)  # while it is open

    def answers():
        with duckdb.connect(str(path), read_only=True) as plain:
            asked = (*schema.TABLES, "misalignment", "current_decisions", "worst_samples('r1', 10)")
            return {name: sorted(plain.execute(f"FROM {name}").fetchall(), key=str) for name in asked}

    before = answers()
    assert len(before["current_decisions"]) == 5 and before["worst_samples('r1', 10)"]
    path.unlink()
    shutil.rmtree(lab / ".store-cache", ignore_errors=True)
    store.renew(lab)
    assert answers() == before
    assert [p.name for p in lab.iterdir() if p.name.endswith((".tmp", ".wal"))] == []
    for name in (".store.1-1.tmp", ".store.1-1.tmp.wal"):  # of a process that was killed while it renewed
        (lab / name).write_bytes(b"half")
    assert {item.path for item in store.verify(lab, grace_s=0)} == {".store.1-1.tmp", ".store.1-1.tmp.wal"}
    store.verify(lab, repair=True, grace_s=0)
    assert store.verify(lab, grace_s=0) == []


def publish_two(lab):
    for n in range(2):
        store.publish(lab, "divergences", [divergence(n)], {"n": n})


def test_store_duckdb_is_renewed_by_what_changes_the_lab(lab, tmp_path):
    def there(where, sql):
        with duckdb.connect(str(where / "store.duckdb"), read_only=True) as con:
            return one_value(con, sql)

    folder = run_once(lab, "count", {"pass": "count"}, lambda run, _: publish_two(lab)).path
    assert there(lab, "SELECT count(*) FROM divergences") == 2
    assert there(lab, f"SELECT status FROM runs WHERE run_id = '{folder.name}'") == "done"
    with pytest.raises(Stopped):
        run_once(lab, "stop", {"pass": "stop"}, lambda run, _: (_ for _ in ()).throw(Stopped("enough")))
    assert there(lab, "SELECT count(*) FROM runs WHERE status = 'stopped'") == 1
    for _ in range(2):  # joins, then removes the files that it named
        store.compact(lab, grace_s=0)
        assert there(lab, "SELECT count(*) FROM divergences") == 2
    store.import_(tmp_path / "other", lab)
    assert there(tmp_path / "other", "SELECT count(*) FROM divergences") == 2
    session = """import sys, workbench.review as review
me = review.Review(sys.argv[1], "l1", "ann")
me.drop("s1", "duplicate"), me.drop("s2", "other")"""
    subprocess.run([sys.executable, "-c", session, lab], check=True)  # ends before the pause after a click is over
    assert there(lab, "SELECT count(*) FROM decisions") == 2
    store.append(lab, "decisions", selection_id="l1", target="sample", sample_id="s3", verdict="drop", reviewer="x")
    store.renew_soon(lab, 60)
    store.renew_soon(lab, 0.1)  # the last one counts
    until = time.monotonic() + 30
    while there(lab, "SELECT count(*) FROM decisions") < 3:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_process_that_ends_while_the_database_is_renewed_ends_well(lab):
    leaves = """import sys, time, pandas, store
store.renew_soon(sys.argv[1], 0)
time.sleep(float(sys.argv[2]))"""
    for pause in ("0.01", "0.05", "0.15"):
        completed = subprocess.run([sys.executable, "-c", leaves, lab, pause], capture_output=True, text=True)
        assert completed.returncode == 0 and not completed.stderr and not list(lab.glob(".store.*.tmp*"))


def test_published_holds_every_figure_of_the_method_and_guesses_none(lab):
    con = store.connect(lab)
    assert one_value(
        con, "SELECT accuracy, gap FROM published WHERE model = 'SALAD-3B' AND task = 'mean' AND modality = 'speech'"
    ) == (
        72.0,
        4.6,
    )
    assert one_value(con, "SELECT gap FROM published WHERE model = 'SALAD-7B' AND task = 'PIQA'") == -0.4
    assert one_value(con, "SELECT accuracy, gap FROM published WHERE model = 'SALAD-3B' AND modality = 'text'") == (
        76.9,
        -0.5,
    )
    assert one_value(con, "SELECT count(*) FROM published WHERE system LIKE '%leaderboard%' AND model = 'unknown'") == 9
    assert one_value(con, "SELECT count(*) FROM published WHERE system LIKE '%leaderboard%' AND modality = 'speech'") == 1
    for name in ("SALMONN", "AudioPaLM", "SpeechGPT", "BLSP-KD", "TASTE"):
        assert con.execute("SELECT accuracy FROM published WHERE system = ?", [name]).fetchall() == [(None,)]
    assert one_value(con, "SELECT count(*) FROM published WHERE source IS NULL OR modality IS NULL") == 0


# ------------------------------------------------------------------------------------------ decisions


def publish_selection(lab, selection="l1", parent=None, ids=range(10), clustering="c1"):
    store.publish(lab, "samples", [sample(n, flags=["code"] if n % 3 == 0 else []) for n in range(10)], {"a": 1})
    store.publish(lab, "divergences", [divergence(n, p) for n in range(10) for p in (0, 1)], {"a": 1})
    store.publish(
        lab,
        "syntheses",
        [
            {
                "synthesis_id": f"y{n}",
                "sample_id": f"s{n:012d}",
                "cer": n / 10,
                "tts": "espeak",
                "voice": "en",
                "duration_s": 360.0,
                "flags": ["truncated"] if n == 9 else [],
            }
            for n in range(10)
        ],
        {"a": 1},
    )
    store.publish(
        lab,
        "selections",
        [
            {
                "selection_id": selection,
                "clustering_id": clustering,
                "run_id": "r1",
                "step": 10,
                "parent_selection_id": parent,
            }
        ],
        {"selection": selection},
    )
    store.publish(
        lab,
        "selected",
        [
            {
                "selection_id": selection,
                "sample_id": f"s{n:012d}",
                "cluster_id": n % 2,
                "draw": n,
                "p_web": 0.5,
                "p_target": 0.8 if n % 2 else 0.2,
                "estimated_s": 300.0,
            }
            for n in ids
        ],
        {"selection": selection},
    )


def decide(lab, verdict="drop", reviewer="ann", selection="l1", **fields):
    target = "rule" if "rule" in fields else "cluster" if "cluster_id" in fields else "sample"
    if "sample" in fields:
        fields["sample_id"] = f"s{fields.pop('sample'):012d}"
    return store.append(lab, "decisions", selection_id=selection, target=target, verdict=verdict, reviewer=reviewer, **fields)


def verdicts(lab, selection="l1", reviewer="ann"):
    rows = (
        store.connect(lab)
        .execute(
            "SELECT sample_id, verdict FROM current_decisions WHERE selection_id = ? AND reviewer = ?",
            [selection, reviewer],
        )
        .fetchall()
    )
    return {int(name[1:]): verdict for name, verdict in rows}


def test_sample_goes_before_rule_before_cluster_whatever_came_first(lab):
    publish_selection(lab)
    decide(lab, "keep", sample=9)
    decide(lab, "keep", rule="cer >= 0.7")
    decide(lab, cluster_id=1)
    assert verdicts(lab) == {1: "drop", 3: "drop", 5: "drop", 7: "keep", 8: "keep", 9: "keep"}
    decide(lab, "drop", rule="cer >= 0.8")  # among equals the latest
    assert verdicts(lab) == {1: "drop", 3: "drop", 5: "drop", 7: "keep", 8: "drop", 9: "keep"}
    con = store.connect(lab)
    assert one_value(con, "SELECT count(*) FROM kept WHERE selection_id = 'l1'") == 6


def test_undo_takes_an_event_back_and_what_stood_before_stands_again(lab):
    publish_selection(lab)
    first = decide(lab, "keep", sample=1)
    second = decide(lab, "drop", sample=1)
    assert verdicts(lab) == {1: "drop"}
    store.append(lab, "decisions", verdict="undo", undoes=second["event_id"], reviewer="bob")
    assert verdicts(lab) == {1: "keep"}
    store.append(lab, "decisions", verdict="undo", undoes=first["event_id"], reviewer="ann")
    assert verdicts(lab) == {}


def test_a_text_is_dropped_if_any_reviewer_says_so(lab):
    publish_selection(lab)
    decide(lab, "drop", "ann", sample=1)
    decide(lab, "keep", "bob", sample=1)
    con = store.connect(lab)
    assert one_value(con, "SELECT count(*) FROM kept") == 9
    assert one_value(con, "SELECT decision FROM misalignment WHERE sample_id = 's000000000001'") == "drop"
    assert verdicts(lab, reviewer="bob") == {1: "keep"}


def test_decisions_hold_for_the_selections_that_come_from_one(lab):
    publish_selection(lab)
    rule = decide(lab, rule="list_contains(flags, 'code')")
    decide(lab, cluster_id=0)
    decide(lab, "keep", sample=2)
    decide(lab, "drop", sample=5)
    publish_selection(lab, "l2", "l1", ids=(0, 2, 3, 4))
    publish_selection(lab, "l3", "l2", ids=(3, 4))
    decide(lab, "keep", selection="l2", cluster_id=0)
    assert verdicts(lab, "l1") == {
        0: "drop",
        2: "keep",
        3: "drop",
        4: "drop",
        5: "drop",
        6: "drop",
        8: "drop",
        9: "drop",
    }
    assert verdicts(lab, "l2") == {0: "drop", 2: "keep", 3: "drop", 4: "keep"}  # not 5: it is not in l2
    assert verdicts(lab, "l3") == {3: "drop", 4: "keep"}
    store.append(lab, "decisions", verdict="undo", undoes=rule["event_id"], reviewer="ann")
    assert verdicts(lab, "l3") == {4: "keep"}


def test_a_clusters_verdict_does_not_cross_to_another_clustering(lab):
    publish_selection(lab)
    decide(lab, cluster_id=0)
    publish_selection(lab, "l2", "l1", clustering="c2")
    assert verdicts(lab, "l2") == {}


@pytest.mark.parametrize(
    "rule",
    [
        "cer > 0.3; DROP TABLE samples",
        "true) OR (SELECT true",
        "nothing > 1",
        "cer >",
        "",
        "sample_id IN (FROM samples)",
        "exists (SELECT * FROM read_text('/etc/passwd'))",
        "true ORDER BY 1",
        "true -- \n UNION SELECT 1",
        "count(*) > 1",
    ],
)
def test_what_is_no_predicate_is_no_rule(lab, rule):
    with pytest.raises(store.StoreError, match="rule"):
        decide(lab, rule=rule)
    assert not (lab / "events").exists()


def test_a_strangers_broken_rule_is_left_out_and_told(lab):
    publish_selection(lab)
    decide(lab, sample=1)
    line = seal_line(
        {
            "table": "decisions",
            "event_id": "e1",
            "selection_id": "l1",
            "target": "rule",
            "verdict": "drop",
            "rule": "sample_id IN (SELECT content FROM read_text('/etc/passwd'))",
            "reviewer": "eve",
            "at": "2026-01-01T00:00:00+00:00",
        }
    )
    (lab / "events" / "elsewhere-1-1.jsonl").write_bytes(line)
    con = store.connect(lab)
    assert "event e1" in one_value(con, "SELECT path FROM damaged")
    assert one_value(con, "SELECT count(*) FROM current_decisions") == 1


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(verdict="maybe", target="sample", sample_id="s", selection_id="l"), "verdict 'maybe'"),
        (dict(verdict="drop", target="sample", selection_id="l"), "needs sample_id"),
        (dict(verdict="drop", target="cluster", selection_id="l"), "needs cluster_id"),
        (dict(verdict="drop", target="sample", sample_id="s"), "needs selection_id"),
        (dict(verdict="reweight", target="sample", sample_id="s", selection_id="l"), "needs weight"),
        (dict(verdict="undo"), "needs undoes"),
        (dict(verdict="drop", target="sample", sample_id="s", selection_id="l", colour="red"), "no column 'colour'"),
        (dict(verdict="drop", target="sample", sample_id="s", selection_id="l", at="yesterday"), "not an ISO 8601 time"),
    ],
)
def test_events_that_make_no_sense_are_refused(lab, fields, message):
    with pytest.raises(store.StoreError) as error:
        store.append(lab, "decisions", **fields)
    assert message in str(error.value)


def test_events_carry_id_time_and_author_and_one_file_a_process(lab):
    first = decide(lab, sample=1)
    second = store.append(lab, "votes", left_contender="a", right_contender="b", choice="tie", latencies={"left": 1.5}, voter="v")
    assert first["event_id"] != second["vote_id"] and first["reviewer"] == "ann" and first["at"].endswith("+00:00")
    assert len(list((lab / "events").glob("*.jsonl"))) == 1
    con = store.connect(lab)
    assert one_value(con, "SELECT choice, CAST(latencies ->> 'left' AS DOUBLE) FROM votes") == ("tie", 1.5)


def test_events_read_one_by_one_are_what_a_first_reader_finds(lab, monkeypatch):
    """What was read before is kept as Arrow: a click costs its own event, and not all that were said."""
    publish_selection(lab)

    def compare():
        kept = events.read(lab)[0]
        with monkeypatch.context() as patch:
            patch.setattr(events, "_made", {})
            patch.setattr(events, "_read", {})
            assert events.read(lab)[0] == kept
        return kept["decisions"]["event_id"].to_pylist()

    assert compare() == []
    event_ids = [decide(lab, "drop", sample=1)["event_id"]]
    assert compare() == event_ids
    event_ids.append(decide(lab, "keep", "bob", sample=2)["event_id"])
    assert compare() == event_ids
    line = {"table": "decisions", "event_id": "e-far", "selection_id": "l1", "target": "sample", "sample_id": "s1",
            "verdict": "drop", "reviewer": "x", "at": "2020-01-01T00:00:00+00:00"}  # fmt: skip
    (lab / "events" / "other-1-1.jsonl").write_bytes(seal_line(line))  # another machine, with another clock
    assert compare() == ["e-far", *event_ids]
    event_ids.append(decide(lab, "drop", sample=3)["event_id"])
    assert compare() == ["e-far", *event_ids]
    (lab / "events" / "other-1-1.jsonl").unlink()
    assert compare() == event_ids


# ------------------------------------------------------------------------------------------ questions


def test_every_question_answers_on_an_empty_lab_and_through_a_locked_connection(lab):
    con = store.connect(lab, locked=True)
    calls = {
        "worst_samples": "'r1', 10",
        "divergence_by_cluster": "'r1', 10",
        "divergence_of_checkpoints": "'r1'",
        "change_between_checkpoints": "'r1', 10, 'r2', 10",
        "selection_after_decisions": "'l1'",
        "why_selected": "'l1'",
        "run_differences": "'r1', 'r2'",
        "browse_samples": "'r1', 10, NULL, NULL",
        "accuracy_and_gap": "",
    }
    assert set(calls) == set(store.catalogue.QUESTIONS)
    for name, values in calls.items():
        assert con.execute(f"FROM {name}({values})").fetchall() == []
    with pytest.raises(store.StoreError, match="did you mean 'worst_samples'"):
        con.execute("FROM worst_sample('r1', 10)")


def test_divergence_by_cluster_weights_by_token_and_tells_its_interval(lab):
    store.publish(
        lab,
        "assignments",
        [{"clustering_id": "c1", "sample_id": f"s{n:012d}", "cluster_id": 0} for n in range(4)],
        {"a": 1},
    )
    store.publish(lab, "clusters", [{"clustering_id": "c1", "cluster_id": 0, "terms": ["t"]}], {"a": 1})
    m, n = [1.0, 2.0, 3.0, 4.0], [10, 20, 30, 40]
    store.publish(
        lab,
        "divergences",
        [divergence(i, m=m[i], n_positions=n[i]) for i in range(4)] + [divergence(5, m=None, n_positions=0)],
        {"a": 1},
    )
    rows = store.query(lab, "FROM divergence_by_cluster('r1', 10)").to_pylist()
    assert [row["cluster_id"] for row in rows] == [0, None]
    mean = sum(x * w for x, w in zip(m, n, strict=True)) / 100
    half = stats.t.ppf(0.975, 3) * math.sqrt(4 / 3 * sum((w * (x - mean)) ** 2 for x, w in zip(m, n, strict=True))) / 100
    assert rows[0]["m"] == pytest.approx(3.0) and rows[0]["m_per_sample"] == pytest.approx(2.5)
    assert (rows[0]["m_low"], rows[0]["m_high"]) == (pytest.approx(3 - half), pytest.approx(3 + half))
    assert rows[1]["m"] is None and rows[1]["f"] is not None


def test_change_and_checkpoints_and_worst(lab):
    store.publish(lab, "divergences", [divergence(n, p) for n in range(4) for p in (0, 1)], {"a": 1})
    store.publish(lab, "divergences", [divergence(n, p, step=20, m=0.05 * n) for n in range(1, 4) for p in (0, 1)], {"a": 2})
    change = store.query(lab, "FROM change_between_checkpoints('r1', 10, 'r1', 20)").to_pylist()
    assert len(change) == 1 and change[0]["n_samples"] == 3
    assert change[0]["m_a"] == pytest.approx(0.2) and change[0]["m_change"] == pytest.approx(-0.1)
    half = stats.t.ppf(0.975, 2) * math.sqrt(3 / 2 * (0.05**2 + 0.05**2)) / 3
    assert change[0]["m_change_low"] == pytest.approx(-0.1 - half, rel=1e-4)
    assert change[0]["m_change_high"] == pytest.approx(-0.1 + half, rel=1e-4)
    result = store.query(lab, "SELECT student_t_95(i) AS t FROM range(0, 200) r(i)")["t"].to_pylist()
    assert result[0] is None and result[1:] == pytest.approx(stats.t.ppf(0.975, range(1, 200)), abs=2e-4)
    steps = store.query(lab, "FROM divergence_of_checkpoints('r1')").to_pylist()
    assert [(row["step"], row["n_samples"], round(row["m"], 6)) for row in steps] == [(10, 4, 0.15), (20, 3, 0.1)]
    worst = store.query(lab, "FROM worst_samples('r1', 10, n := 3)").to_pylist()
    assert [(row["sample_id"], round(row["m"], 6)) for row in worst] == [(f"s{n:012d}", round(0.1 * n, 6)) for n in (3, 2, 1)]


def test_worst_samples_ranks_token_weighted_means_over_patterns(lab):
    """Against every sample averaged, on rows where one high pattern is common and few of them make a high mean."""
    random = np.random.default_rng(1)
    rows = [
        divergence(n, pattern, m=m, n_positions=int(random.integers(0, 40)), synthesis_id=f"y{n}-{n % 3 and voice}")
        for n in range(150)
        for voice in (0, 1)
        for pattern in (0, 1)
        if (m := None if random.random() < 0.05 else float(random.exponential())) is not None or voice
    ]
    rows = [row | ({} if row["n_positions"] else {"m": None}) for row in rows]
    store.publish(lab, "divergences", rows, {"a": 1})
    store.publish(lab, "divergences", [divergence(n, step=20, m=9.0) for n in range(9)], {"a": 2})
    con = store.connect(lab)
    for n in (1, 7, 100, 1000):
        got = con.execute(f"SELECT sample_id, synthesis_id, m FROM worst_samples('r1', 10, n := {n})").fetchall()
        means = {}
        for row in rows:
            if row["m"] is not None:
                means.setdefault((row["sample_id"], row["synthesis_id"]), []).append((row["m"], row["n_positions"]))
        means = {key: sum(m * w for m, w in message) / sum(w for _, w in message) for key, message in means.items()}
        best = sorted(means.items(), key=lambda item: -item[1])[:n]
        assert [row[:2] for row in got] == [key for key, _ in best]
        assert [row[2] for row in got] == pytest.approx([mean for _, mean in best])


def test_selection_after_decisions_tells_hours_effective_size_and_kl(lab):
    publish_selection(lab)
    rows = store.query(lab, "FROM selection_after_decisions('l1')").to_pylist()
    assert rows[0]["kl_nats"] == pytest.approx(0.5 * math.log(0.5 / 0.2) + 0.5 * math.log(0.5 / 0.8))
    assert [row["hours_kept"] for row in rows] == [pytest.approx(0.5)] * 2
    decide(lab, rule="cer > 0.85")
    decide(lab, "reweight", sample=1, weight=3.0)
    after = {row["cluster_id"]: row for row in store.query(lab, "FROM selection_after_decisions('l1')").to_pylist()}
    assert (after[1]["n_selected"], after[1]["n_kept"]) == (5, 4) and after[1]["hours_kept"] == pytest.approx(0.4)
    assert after[1]["effective_samples"] == pytest.approx(6**2 / (9 + 3)) and after[0]["effective_samples"] == 5


def test_run_differences_lists_only_what_differs(lab):
    write_run(lab, "r1", {"state": "done", "git_commit": "a"}, {0: [(1, {"loss": 2.0})]}, config={"lr": 1, "o": {"b": 2}})
    write_run(lab, "r2", {"state": "done", "git_commit": "b"}, {0: [(1, {"loss": 1.0})]}, config={"lr": 1, "o": {"b": 3}})
    rows = store.query(lab, "FROM run_differences('r1', 'r2')").to_pylist()
    assert [(row["what"], row["key"], row["value_a"], row["value_b"]) for row in rows] == [
        ("configuration", "$.o.b", "2", "3"),
        ("code", "git_commit", "a", "b"),
        ("results", "last loss", "2.0", "1.0"),
    ]


def test_browse_filters_by_cluster_and_text(lab):
    publish_selection(lab)
    store.publish(lab, "clusters", [{"clustering_id": "c1", "cluster_id": 1}], {"a": 1})
    store.publish(
        lab,
        "assignments",
        [{"clustering_id": "c1", "sample_id": f"s{n:012d}", "cluster_id": n % 2} for n in range(10)],
        {"a": 1},
    )
    rows = store.query(lab, "FROM browse_samples('r1', 10, 1, 'NUMBER', n := 2, skip := 1)").to_pylist()
    assert [row["sample_id"] for row in rows] == ["s000000000007", "s000000000005"]


# --------------------------------------------------------------------------------------------- locked


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE x (i INT)",
        "COPY (SELECT 1) TO 'x.csv'",
        "WITH x AS (COPY (SELECT 1) TO 'x.csv') SELECT 1",
        "WITH x AS (DELETE FROM decisions RETURNING *) FROM x",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO 'x.csv'",
        "EXPLAIN /* */ ANALYZE COPY (SELECT 1) TO 'x.csv'",
        "SELECT 1; SELECT 2",
        "SET memory_limit='1TB'",
        "ATTACH 'a.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "PRAGMA database_list",
        "CALL pragma_version()",
        "DROP VIEW samples",
        "FROM arrow_scan(1, 2, 3)",
        "FROM query('SELECT 1')",
        "FROM json_execute_serialized_sql('{}')",
        "VACUUM",
        "",
        "FROM read_text('/etc/hostname')",
        "FROM read_csv('/etc/passwd')",
        "FROM '/etc/passwd'",
        "FROM glob('/*')",
        "FROM read_parquet('https://example.org/x.parquet')",
        "FROM read_duckdb('x.db')",
        "SELECT 1 +",
        "EXPORT DATABASE 'x'",
        "CHECKPOINT",
        "FROM checkpoint()",
        "PREPARE a AS SELECT 1",
        "BEGIN",
    ],
)
def test_locked_connections_refuse_all_but_reading_the_lab(lab, sql):
    publish_selection(lab)
    before = {path: path.stat().st_mtime_ns for path in lab.rglob("*")}
    con = store.connect(lab, locked=True)
    for call in (con.execute, con.sql, con.query, con.table, con.cursor().execute):
        with pytest.raises(store.StoreError) as error:
            call(sql)
        assert len(str(error.value).splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in lab.rglob("*")} == before and not Path("x.csv").exists()


def test_locked_connections_read_explain_and_refresh(lab):
    publish_selection(lab)
    con = store.connect(lab, locked=True)
    assert isinstance(con, duckdb.DuckDBPyConnection)  # for mo.sql
    assert con.sql("WITH x AS (FROM samples) SELECT count(*) FROM x").fetchall() == [(10,)]
    assert con.execute("SELECT count(*) FROM samples WHERE sample_id = $id", {"id": "s000000000003"}).fetchone() == (1,)
    for sql in (
        "EXPLAIN SELECT * FROM misalignment",
        "EXPLAIN ANALYZE SELECT 1",
        "DESCRIBE samples",
        "SUMMARIZE samples",
        "SHOW TABLES",
        "VALUES (1)",
        "FROM samples LIMIT 1",
        "PIVOT samples ON corpus IN ('broad') USING count(*)",
        f"FROM read_json_auto('{next(lab.rglob('unit-*.json'))}')",
    ):
        assert con.table(sql).num_rows > 0
    store.publish(lab, "samples", [sample(77)], {"a": 2})
    store.refresh(con)
    assert con.execute("SELECT count(*) FROM samples").fetchone() == (11,)


def test_locked_connections_stop_a_query_that_takes_too_long_or_too_much(lab):
    con = store.connect(lab, locked=True, timeout_s=0.3)
    started = time.monotonic()
    for call in (con.execute, con.sql):
        with pytest.raises(store.StoreError, match="stopped after 0.3 s"):
            call("SELECT count(*) FROM range(1000000000000) t(i) WHERE hash(i) % 7 = 1")
    assert time.monotonic() - started < 10
    assert con.execute("SELECT 1").fetchone() == (1,)
    small = store.connect(lab, locked=True, memory="50MB", timeout_s=300)  # memory ends it, on a slow machine too
    with pytest.raises(store.StoreError, match="answer is larger than 50MB"):
        small.execute("SELECT i, i + 1 FROM range(1000000000) t(i)")
    with pytest.raises(store.StoreError, match="(?i)memory"):
        small.execute("SELECT len(string_agg(i::VARCHAR, ' ')) FROM range(100000000) t(i)")


@pytest.mark.parametrize("query", ["SELECT count(*) FROM range(1000000000000) t(i) WHERE hash(i) % 7 = 1",
                                   "SELECT i FROM range(1000000000000) t(i) WHERE hash(i) = 1"])  # fmt: skip
def test_a_query_hears_ctrl_c(lab, query):
    con = store.connect(lab, locked=True, timeout_s=60)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):  # heard only at the limit, it would be StoreError
        con.execute(query)
    assert con.execute("SELECT 1").fetchone() == (1,)


# ---------------------------------------------------------------------------------------------- audio


def write_shar(lab, name="x", payloads=(b"fLaC-one", b"fLaC-two-two")):
    path = lab / "speech" / name / "recording.000000.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with tarfile.open(path, "w") as tar:
        for number, payload in enumerate(payloads):
            info = tarfile.TarInfo(f"cut{number}.flac")
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
    with tarfile.open(path) as tar:
        for number, member in enumerate(tar):
            rows.append(
                {
                    "synthesis_id": f"y{name}{number}",
                    "sample_id": f"s{number:012d}",
                    "audio_bytes": member.size,
                    "audio_path": str(path.relative_to(lab)),
                    "audio_offset": member.offset_data,
                    "speech": name,
                }
            )
    (path.parent / "cuts.000000.jsonl").write_text("{}\n")
    return rows, path


def test_audio_reads_one_flac_out_of_its_shar(lab):
    rows, path = write_shar(lab)
    store.publish(
        lab,
        "syntheses",
        [
            *rows,
            {"synthesis_id": "y_out", "sample_id": "s", "audio_path": "../secret", "audio_offset": 0, "audio_bytes": 4},
        ],
        {"a": 1},
    )
    (lab.parent / "secret").write_bytes(b"fLaC")
    for con in (store.connect(lab), store.connect(lab, locked=True)):
        assert [store.audio(con, row["synthesis_id"]) for row in rows] == [b"fLaC-one", b"fLaC-two-two"]
        for missing in ("y_none", "y_out"):
            with pytest.raises(store.StoreError, match=missing):
                store.audio(con, missing)
    path.write_bytes(path.read_bytes()[: rows[1]["audio_offset"] + 3])
    with pytest.raises(store.StoreError, match="truncated"):
        store.audio(store.connect(lab), rows[1]["synthesis_id"])
    assert [item.reason for item in store.verify(lab) if "truncated" in item.reason]


# -------------------------------------------------------------------------------------------- compact


def everything(lab):
    con = store.connect(lab)
    return {
        name: sorted(con.execute(f'SELECT * FROM "{name}"').fetchall(), key=str)
        for name in (*schema.TABLES, "misalignment", "current_decisions")
    }


def many(lab, n=12):
    for shard in range(n):
        store.publish(
            lab,
            "divergences",
            [divergence(n * 100 + shard, p, run=f"r{n % 3}") for n in range(3) for p in (0, 1)],
            {"shard": shard},
        )
        store.publish(lab, "samples", [sample(n * 100 + shard) for n in range(3)], {"shard": shard})


def test_compact_changes_no_answer_and_work_stays_known(lab):
    many(lab)
    before = everything(lab)
    old = store.connect(lab)
    summary = store.compact(lab)
    assert summary["units_joined"] == 24
    assert everything(lab) == before and one_value(old, "SELECT count(*) FROM samples") == 36
    assert store.exists(lab, "samples", {"shard": 3})
    store.publish(lab, "samples", [sample(n * 100 + 3) for n in range(3)], {"shard": 3})  # the same work, done again
    assert everything(lab) == before
    summary = store.compact(lab, grace_s=0)
    assert summary["units_removed"] >= 24 and everything(lab) == before
    assert len(list((lab / "tables").rglob("*.parquet"))) == 2
    assert store.exists(lab, "samples", {"shard": 3})
    assert store.verify(lab, grace_s=0) == []
    store.publish(lab, "samples", [sample(n * 100 + 3) for n in range(3)], {"shard": 3})
    assert everything(lab) == before


def test_work_done_again_with_other_rows_replaces_its_share_of_a_merged_unit(lab):
    many(lab)
    store.compact(lab)
    store.compact(lab, grace_s=0)
    store.publish(lab, "samples", [sample(999)], {"shard": 3})

    def texts():
        return {int(r[0][1:]) for r in store.connect(lab).execute("SELECT sample_id FROM samples").fetchall()}

    expected = {n * 100 + shard for n in range(3) for shard in range(12) if shard != 3} | {999}
    assert texts() == expected
    for grace in (3600, 0, 0, 0):
        store.compact(lab, grace_s=grace)
        assert texts() == expected
        assert one_value(store.connect(lab), "SELECT count(*) FROM samples") == len(expected)


def test_two_compactions_that_overlap_double_nothing(lab):
    many(lab)
    before = everything(lab)
    units_by_table, _ = store.units.scan(lab)
    merge(lab, units_by_table["samples"][:8])
    assert everything(lab) == before
    merge(lab, units_by_table["samples"][4:])  # another compactor that had not seen the first
    assert everything(lab) == before
    for _ in range(3):
        store.compact(lab, grace_s=0)
        assert everything(lab) == before


def test_compact_joins_finished_event_files_and_leaves_the_living(lab):
    decide(lab, sample=1)
    for writer in range(3):
        line = seal_line(
            {
                "table": "decisions",
                "event_id": f"e{writer}",
                "selection_id": "l1",
                "target": "sample",
                "sample_id": "s1",
                "verdict": "drop",
                "reviewer": "x",
                "at": "2026-01-01T00:00:00+00:00",
            }
        )
        (lab / "events" / f"{store.jsonl.host()}-{2**22 + writer}-1.jsonl").write_bytes(line)  # above pid_max
    before = everything(lab)
    assert store.compact(lab)["event_files_joined"] == 3
    assert everything(lab) == before
    assert store.compact(lab, grace_s=0)["event_files_removed"] == 3
    assert everything(lab) == before and len(list((lab / "events").glob("*.jsonl"))) == 2
    decide(lab, sample=2)
    assert one_value(store.connect(lab), "SELECT count(*) FROM decisions") == 5


# ------------------------------------------------------------------------------------ export and import


def study(lab):
    publish_selection(lab)
    rows, _ = write_shar(lab)
    store.publish(lab, "syntheses", rows, {"a": 2})
    write_run(lab, "r1", {"state": "done"}, {0: [(1, {"loss": 1.0})]})
    (lab / "runs" / "r1" / "checkpoints").mkdir()
    (lab / "runs" / "r1" / "checkpoints" / "manifest.json").write_text("{}")
    write_run(lab, "r2", {"state": "done"}, parent_run_id="r1", selection_id="l2", kind="stage2")
    publish_selection(lab, "l2", "l1", ids=range(4))
    store.publish(lab, "clusters", [{"clustering_id": "c1", "cluster_id": 1, "run_id": "r3"}], {"a": 1})
    store.publish(lab, "divergences", [divergence(n, run="r_other") for n in range(3)], {"a": 9})
    store.publish(lab, "samples", [sample(n, "elsewhere") for n in range(50, 60)], {"a": 9})
    decide(lab, sample=1)
    decide(lab, rule="cer > 0.8")
    decide(lab, selection="l_other", sample=1)


def test_a_run_travels_to_another_lab_with_all_that_it_rests_on(lab, tmp_path):
    study(lab)
    summary = store.export(lab, "r2", tmp_path / "bundle")
    assert summary["divergences"] == 20 and summary["samples"] == 10 and summary["events"] == 2
    there = tmp_path / "there"
    store.import_(there, tmp_path / "bundle")
    con, own = store.connect(there), store.connect(lab)
    assert con.execute("SELECT run_id FROM runs ORDER BY 1").fetchall() == [("r1",), ("r2",)]
    for sql in (
        "SELECT * FROM selections ORDER BY ALL",
        "SELECT * FROM selected ORDER BY ALL",
        "SELECT * FROM current_decisions WHERE selection_id IN ('l1', 'l2') ORDER BY selection_id, sample_id",
        "SELECT * FROM divergences WHERE run_id = 'r1' ORDER BY ALL",
        "FROM metrics",
    ):
        assert con.execute(sql).fetchall() == own.execute(sql).fetchall(), sql
    assert store.audio(con, "yx1") == b"fLaC-two-two"
    assert (there / "runs" / "r1" / "checkpoints" / "manifest.json").exists()
    assert not one_value(con, "SELECT count(*) FROM divergences WHERE run_id = 'r_other'")
    before = everything(there)
    assert store.import_(there, tmp_path / "bundle") == {
        name: 0 for name in ("clusters", "divergences", "samples", "selected", "selections", "syntheses", "runs", "events")
    }
    assert everything(there) == before
    assert store.exists(there, "divergences", {"a": 1})  # whole units keep their identity


def test_importing_overlapping_bundles_and_a_whole_lab_doubles_nothing(lab, tmp_path):
    study(lab)
    there = tmp_path / "there"
    for number, what in enumerate(("l2", "r1", "r2", "samples")):
        store.export(lab, what, tmp_path / f"bundle{number}")
        store.import_(there, tmp_path / f"bundle{number}")
    store.import_(there, lab)
    assert everything(there) == everything(lab)


def test_speech_under_a_name_that_is_taken_goes_to_a_folder_of_its_own(lab, tmp_path):
    study(lab)
    there = tmp_path / "there"
    rows, _ = write_shar(there, payloads=(b"fLaC-other", b"fLaC-mine"))
    store.publish(there, "syntheses", [row | {"synthesis_id": f"z{n}"} for n, row in enumerate(rows)], {"mine": 1})
    store.export(lab, "l1", tmp_path / "bundle")
    for _ in range(2):
        store.import_(there, tmp_path / "bundle")
    con = store.connect(there)
    assert [store.audio(con, name) for name in ("z0", "yx0", "yx1")] == [b"fLaC-other", b"fLaC-one", b"fLaC-two-two"]
    assert one_value(con, "SELECT count(*) FROM syntheses WHERE synthesis_id = 'yx0'") == 1


def test_export_and_import_refuse_in_one_line(lab, tmp_path):
    study(lab)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for call, message in (
        (lambda: store.export(lab, "r_none", tmp_path / "b"), "no run, selection or table"),
        (lambda: store.export(lab, "r1", tmp_path / "full"), "not empty"),
        (lambda: store.import_(lab, tmp_path / "nowhere"), "no bundle"),
        (lambda: store.import_(lab, lab), "this lab itself"),
    ):
        with pytest.raises(store.StoreError, match=message):
            call()
    store.export(lab, "r1", tmp_path / "bundle")
    unit = next((tmp_path / "bundle").rglob("*.parquet"))
    unit.write_bytes(unit.read_bytes()[:-1] + b"?")
    with pytest.raises(store.StoreError, match=unit.name):
        store.import_(tmp_path / "there", tmp_path / "bundle")
    assert not (tmp_path / "there").exists()


def test_connect_opens_no_file_of_a_thousand_units_but_each_manifest_once(lab):
    """The goal of 0.3 s is measured in benchmarks/store.py; this is what it rests on."""
    base = store.publish(lab, "divergences", [divergence(n) for n in range(10)], {"n": 0})
    for number in range(1, 1000):  # as publish writes them, without a flush to the disk for each
        unit = store.unit_id("divergences", {"n": number})
        folder = base.path.parent.parent / f"run_id={number % 20}"
        folder.mkdir(exist_ok=True)
        rows = store.rows.fit("divergences", [divergence(10 * number + n) for n in range(10)])
        pq.write_table(rows, folder / f"unit-{unit}.parquet")
        data = (folder / f"unit-{unit}.parquet").read_bytes()
        manifest = {**base.manifest, "unit_id": unit, "made_from": {"n": number}, "file": f"unit-{unit}.parquet",
                    "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}  # fmt: skip
        (folder / f"unit-{unit}.json").write_text(json.dumps(store.lab.seal(manifest)))
    assert one_value(store.connect(lab), "SELECT count(*) FROM divergences") == 10_000
    store.units.clear_cache()  # what a new process would find
    store.verification.clear_cache()
    opened, listening = [], [True]
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" and listening else None)
    store.connect(lab)
    manifests = [path for path in opened if Path(path).name.startswith("unit-")]
    assert len(manifests) == 1000 == len(set(manifests)) and all(path.endswith(".json") for path in manifests)
    assert len(opened) < 1020
    opened.clear()
    store.connect(lab)
    listening.clear()
    assert len(opened) < 20


def test_the_data_dictionary_is_that_of_the_schema():
    assert docs.DICTIONARY.read_text() == docs.dictionary(), "run python -m store.docs"


def test_the_ten_questions_of_the_documentation_can_be_asked(lab):
    with pytest.raises(store.StoreError, match="salad demo"):
        docs.answers(lab)
    study(lab)
    text = docs.answers(lab)
    assert text.count("```sql") == 10 and "worst_samples('r1', 10" in text and "text number 9" in text
