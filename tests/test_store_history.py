"""The lab's history and its merges: what is missing is an error, one row a key, what conflicts is told, what was said last
stands, a bundle comes whole or not at all, and nothing outside the lab is touched."""

import datetime
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
import warnings
from pathlib import Path

import pytest
from fixtures.make_lab import row_of
from test_store import (
    decide,
    divergence,
    everything,
    many,
    one_value,
    publish_selection,
    sample,
    study,
    verdicts,
    write_run,
)
from tools import ROUNDS

import store
from store import events, history, schema
from store.lab import seal, seal_line

process = multiprocessing.get_context("forkserver")
process.set_forkserver_preload(["store", "pandas"])
pytestmark = pytest.mark.filterwarnings("ignore::store.DamagedWarning")


@pytest.fixture
def lab(tmp_path):
    return tmp_path / "lab"


def damaged(lab, **options):
    return store.connect(lab, **options).execute('SELECT "table", path, reason FROM damaged ORDER BY ALL').fetchall()


def files_of(unit):
    return [unit.path, unit.path.with_suffix(".json")]


# ---------------------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize("table", [table.name for table in (*schema.UNITS, schema.PUBLISHED)])
def test_a_unit_of_which_both_files_are_gone_is_missed_until_it_is_written_off_or_made_again(lab, table):
    rows = [[row_of(schema.TABLES[table], 3 * k + n) for n in range(3)] for k in range(2)]
    kept, gone = (store.publish(lab, table, rows[k], {"k": k}) for k in range(2))
    for path in files_of(gone):
        path.unlink()
    with pytest.warns(store.DamagedWarning, match="is missing"):
        (damages,) = damaged(lab)
    assert damages[0] == table and damages[1].endswith(gone.path.name) and '{"k": 1}' in damages[2] and "3 rows" in damages[2]
    assert [item.path for item in store.verify(lab)] == [damages[1]]
    store.publish(lab, table, rows[1], {"k": 1})
    assert damaged(lab) == [] and store.verify(lab) == []
    for path in files_of(gone):
        path.unlink()
    assert len(store.verify(lab, repair=True)) == 1 and store.verify(lab) == []
    assert kept.path.exists() and not store.exists(lab, table, {"k": 1})
    store.publish(lab, table, rows[1], {"k": 1})
    assert store.verify(lab) == [] and store.exists(lab, table, {"k": 1})


def test_a_merged_unit_that_is_gone_is_missed_and_its_members_are_not_told_besides(lab):
    many(lab, 4)
    for _ in range(2):
        store.compact(lab, grace_s=0)
    (merged,) = (lab / "tables" / "samples").rglob("*.parquet")
    for path in (merged, merged.with_suffix(".json")):
        path.unlink()
    assert [(table, Path(path).name) for table, path, _ in damaged(lab)] == [("samples", merged.name)]


def test_a_lab_without_a_log_is_read_as_before_and_gets_one_from_verify_and_from_the_first_writer(lab, tmp_path):
    many(lab, 3)
    before = everything(lab)
    for write in (store.verify, lambda lab: store.publish(lab, "samples", [sample(n * 100) for n in range(3)], {"shard": 0})):
        shutil.rmtree(lab / "log")
        history.clear_cache()
        history.close_writers()
        assert everything(lab) == before and not (lab / "log").exists()
        write(lab)
        assert everything(lab) == before and store.verify(lab) == []
        past = history.read(lab)
        assert len(past.versions) == 6
        victim = next((lab / "tables" / "divergences").rglob("*.parquet"))
        saved = {path: path.read_bytes() for path in (victim, victim.with_suffix(".json"))}
        for path in saved:
            path.unlink()
        assert [Path(path).name for _, path, _ in damaged(lab)] == [victim.name]
        for path, data in saved.items():
            path.write_bytes(data)


def test_entries_of_a_log_that_are_lost_are_missed_where_somebody_had_seen_them(lab):
    store.publish(lab, "samples", [sample(1)], {"a": 1})
    (first,) = (lab / "log").iterdir()
    history.close_writers()  # another process
    store.publish(lab, "samples", [sample(2)], {"a": 2})
    assert damaged(lab) == []
    data = first.read_bytes()
    first.unlink()
    assert [(table, path) for table, path, _ in damaged(lab)] == [("log", f"log/{first.name}")]
    first.write_bytes(data)
    assert damaged(lab) == []


def test_the_log_says_who_published_and_removed_what(lab):
    many(lab, 2)
    store.compact(lab, grace_s=0)
    store.compact(lab, grace_s=0)
    rows = history.rows(lab)
    assert [row["op"] for row in rows] == ["publish"] * 6 + ["remove"] * 4
    assert {row["table"] for row in rows} == {"samples", "divergences"} and all(row["by"] and row["at"] for row in rows)
    assert [row["clock"] for row in rows] == sorted(row["clock"] for row in rows)
    assert rows[0]["made_from"] == {"shard": 0} and rows[4]["members"] == 2 and "compact" in rows[-1]["why"]


# ------------------------------------------------------------------------------------------ one row a key


def test_rows_with_the_same_keys_under_two_made_from_count_once_and_equal_ones_are_no_conflict(lab):
    store.publish(lab, "samples", [sample(n) for n in range(4)], {"a": 1})
    store.publish(lab, "divergences", [divergence(n, p) for n in range(4) for p in (0, 1)], {"batch": 8})
    before = everything(lab)
    store.publish(lab, "divergences", [divergence(n, p) for n in range(1, 4) for p in (0, 1)], {"batch": 16})
    assert everything(lab) == before and store.verify(lab) == []


@pytest.mark.parametrize("table", [table.name for table in schema.UNITS])
def test_a_conflict_by_key_is_told_the_later_is_shown_and_a_user_decides(lab, table):
    declared = schema.TABLES[table]
    other = next(c for c in reversed(declared.columns) if c.name not in declared.key and c.type in (schema.TEXT, schema.NUMBER)
                 and not c.json and c.name not in ("audio_path", "cut_id", "speech"))  # fmt: skip
    fields = {schema.TEXT: "changed", schema.NUMBER: 99.0}[other.type]
    rows = [row_of(declared, n) for n in range(4)]
    changed = [row | {other.name: fields} for row in rows[1:3]]
    first = store.publish(lab, table, rows, {"first": 1})
    second = store.publish(lab, table, changed, {"second": 1})

    def shown():
        con = store.connect(lab)
        name = "raw.divergences" if table == "divergences" else table
        got = con.execute(f'SELECT "{other.name}" FROM {name} ORDER BY "{declared.key[-1]}"').fetchall()
        return [row[0] == fields for row in got]

    assert shown() == [False, True, True, False]
    ((where, path, why),) = damaged(lab)
    assert (where, Path(path).name) == (table, first.path.name) and "2 rows" in why and second.unit_id in why
    assert [item.reason for item in store.verify(lab)] == [why]
    assert store.prefer(lab, first.unit_id) == [table]
    assert shown() == [False] * 4 and damaged(lab) == []
    store.prefer(lab, second.unit_id)
    assert shown() == [False, True, True, False] and damaged(lab) == []
    store.compact(lab, grace_s=0)
    store.compact(lab, grace_s=0)
    assert shown() == [False, True, True, False] and damaged(lab) == []
    store.prefer(lab, first.unit_id)
    assert shown() == [False] * 4


def test_store_duckdb_and_locked_sql_leave_out_what_another_unit_tells_better(lab):
    import duckdb

    store.publish(lab, "samples", [sample(n) for n in range(4)], {"a": 1})
    store.publish(lab, "samples", [sample(n, domain="x") for n in range(2)], {"a": 2})
    assert store.query(lab, "SELECT count(*) AS n, count(domain) AS d FROM samples").to_pylist() == [{"n": 4, "d": 2}]
    with duckdb.connect(str(store.renew(lab)), read_only=True) as con:
        assert con.execute("SELECT count(*), count(domain) FROM samples").fetchone() == (4, 2)


def test_random_units_that_overlap_are_told_as_a_dictionary_would(lab):
    """Against a plain dict: units published, published again with other rows, merged and preferred, in random order."""
    rng = random.Random(11)
    for round in range(ROUNDS):
        where, units, order = lab / str(round), {}, []
        for step in range(12):
            name, keys = rng.randrange(5), rng.sample(range(12), rng.randrange(0, 6))
            rows = [sample(key, domain=f"{step}" if rng.random() < 0.5 else "same") for key in keys]
            store.publish(where, "samples", rows, {"unit": name})
            units[name] = {row["sample_id"]: row["domain"] for row in rows}
            order = [n for n in order if n != name] + [name]
            if rng.random() < 0.3:
                store.compact(where, grace_s=0)
            expected = {}
            for name in order:
                expected.update(units[name])
            got = store.connect(where).execute("SELECT sample_id, domain FROM samples").fetchall()
            assert len(got) == len(expected) and dict(got) == expected, step


# ------------------------------------------------------------------------------------- who said it last


@pytest.mark.parametrize("back_s", [1, 3600, 10**9])
def test_what_is_said_last_stands_when_the_clock_steps_back(lab, monkeypatch, back_s):
    publish_selection(lab)
    decide(lab, "drop", sample=1)
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() - back_s * 10**9)
    events.close_writers()  # and in another process
    decide(lab, "keep", sample=1, at="2001-01-01T00:00:00Z")
    assert verdicts(lab) == {1: "keep"}
    assert one_value(store.connect(lab), "SELECT decision FROM misalignment WHERE sample_id = 's000000000001'") == "keep"
    first = store.publish(lab, "samples", [sample(n, domain="later") for n in range(10)], {"a": 1})
    assert one_value(store.connect(lab), "SELECT count(*) FROM samples WHERE domain = 'later'") == 10 and first.rows == 10


def test_events_from_before_there_was_a_clock_are_ordered_by_their_time(lab):
    publish_selection(lab)
    (lab / "events").mkdir(parents=True)
    base = {"table": "decisions", "selection_id": "l1", "target": "sample", "sample_id": "s000000000001", "reviewer": "ann"}
    old = [base | {"event_id": "e1", "verdict": "keep", "at": "2026-01-02T00:00:00+00:00"},
           base | {"event_id": "e2", "verdict": "drop", "at": "2026-01-01T00:00:00+00:00"}]  # fmt: skip
    (lab / "events" / "old-1-1.jsonl").write_bytes(b"".join(map(seal_line, old)))
    assert verdicts(lab) == {1: "keep"}
    decide(lab, "drop", sample=1)
    assert verdicts(lab) == {1: "drop"}


# ------------------------------------------------------------------------------------------- as of a moment


def test_a_lab_is_read_as_of_a_moment(lab, tmp_path):
    moments, answers = [], []
    for step in range(3):
        store.publish(lab, "samples", [sample(n, domain=f"{step}") for n in range(step + 2)], {"a": 1})
        store.publish(lab, "divergences", [divergence(10 * step + n) for n in range(3)], {"step": step})
        store.append(lab, "run_notes", run_id="r1", note=f"{step}")
        time.sleep(0.01)
        moments.append(time.time_ns() // 1000)
        answers.append(everything(lab))
        time.sleep(0.01)
    store.compact(lab, grace_s=10**6)  # joined, nothing removed
    for moment, expected in zip(moments, answers, strict=True):
        at = datetime.datetime.fromtimestamp(moment / 1e6, datetime.UTC)
        con = store.connect(lab, as_of=at)
        for name in ("samples", "divergences", "run_notes", "damaged"):
            assert sorted(con.execute(f'SELECT * FROM "{name}"').fetchall(), key=str) == expected[name], name
        rows = store.query(lab, "SELECT count(*) AS n FROM samples", as_of=at.isoformat())
        assert rows.to_pylist() == [{"n": len(expected["samples"])}]
    before = datetime.datetime.fromtimestamp(moments[0] / 1e6 - 10, datetime.UTC)
    assert one_value(store.connect(lab, as_of=before), "SELECT count(*) FROM samples") == 0
    for _ in range(2):
        store.compact(lab, grace_s=0)
    damages = damaged(lab, as_of=datetime.datetime.fromtimestamp(moments[0] / 1e6, datetime.UTC))
    assert [(table, why.split(":")[0]) for table, _, why in damages] == [("samples", "was removed since")]
    assert one_value(store.connect(lab, as_of=datetime.datetime.fromtimestamp(moments[1] / 1e6, datetime.UTC)),
               "SELECT count(*) FROM divergences") == 6  # fmt: skip
    with pytest.raises(store.StoreError, match="zone"):
        store.connect(lab, as_of="2026-11-27T10:00")
    with pytest.raises(store.StoreError, match="is not a time such as"):
        store.connect(lab, as_of="yesterday")


# --------------------------------------------------------------------------------------- two publishers


def _publish_one(lab, number, start):
    start.wait()
    store.publish(lab, "samples", [sample(n, domain=f"{number}") for n in range(3)], {"a": 1})


def test_two_publishers_of_one_work_with_other_bytes_leave_one_readable_unit(lab):
    for _ in range(2 * ROUNDS):
        start = process.Barrier(2)
        workers = [process.Process(target=_publish_one, args=(lab, number, start)) for number in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [worker.exitcode for worker in workers] == [0, 0]
        rows = store.connect(lab).execute("SELECT count(*), count(DISTINCT domain) FROM samples").fetchone()
        assert rows == (3, 1) and damaged(lab) == []


# --------------------------------------------------------------------------------------- bundles and merges


def _dying(call, survive):
    """`call`, killed at the `survive`-th time that it puts a file in its place."""
    real, left = os.replace, [survive]

    def replace(source, target):
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return real(source, target)

    os.replace = replace
    call()


def _export_and_die(lab, to, survive):
    _dying(lambda: store.export(lab, "r2", to), survive)


def _import_and_die(lab, bundle, survive):
    _dying(lambda: store.import_(lab, bundle), survive)


def _killed(target, *args):
    worker = process.Process(target=target, args=args)
    worker.start()
    worker.join()
    return worker.exitcode == -signal.SIGKILL


def _points(n, rng):
    return range(n) if ROUNDS >= 20 else sorted(rng.sample(range(n), ROUNDS))


def test_an_export_killed_at_any_write_is_no_bundle(lab, tmp_path):
    study(lab)
    store.export(lab, "r2", tmp_path / "whole")
    n = sum(1 for path in (tmp_path / "whole").rglob("*") if path.is_file() and path.name[0] != ".") + 1
    for survive in _points(n - 4, random.Random(1)):
        assert _killed(_export_and_die, lab, tmp_path / f"half{survive}", survive)
        with pytest.raises(store.StoreError, match="half an export|no bundle"):
            store.import_(tmp_path / f"there{survive}", tmp_path / f"half{survive}")
        assert not (tmp_path / f"there{survive}").exists()


def test_a_bundle_of_which_something_is_missing_or_changed_is_refused(lab, tmp_path):
    study(lab)
    store.export(lab, "r2", tmp_path / "bundle")
    listed = json.loads((tmp_path / "bundle" / "bundle.json").read_bytes())["files"]
    assert len(listed) > 10
    rng = random.Random(2)
    for name in sorted(rng.sample(sorted(listed), min(len(listed), 4 * ROUNDS))):
        path = tmp_path / "bundle" / name
        data = path.read_bytes()
        for change in ("missing", "flipped"):
            if change == "missing":
                path.unlink()
            else:
                at = rng.randrange(len(data))
                path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
            with pytest.raises(store.StoreError, match="damaged"):
                store.import_(tmp_path / "there", tmp_path / "bundle")
            path.write_bytes(data)
    assert not (tmp_path / "there").exists()
    store.import_(tmp_path / "there", tmp_path / "bundle")


def test_an_import_killed_at_any_write_and_done_again_is_an_import(lab, tmp_path):
    study(lab)
    store.export(lab, "r2", tmp_path / "bundle")
    store.import_(tmp_path / "whole", tmp_path / "bundle")
    expected = everything(tmp_path / "whole")
    for survive in _points(20, random.Random(3)):
        there = tmp_path / f"there{survive}"
        assert _killed(_import_and_die, there, tmp_path / "bundle", survive)
        everything(there)  # opens
        store.import_(there, tmp_path / "bundle")
        assert everything(there) == expected
        assert all(item.reason.startswith("orphaned") for item in store.verify(there, grace_s=0))


def test_merges_of_labs_that_overlap_give_one_answer_in_either_direction(tmp_path):
    rng = random.Random(5)
    for round in range(ROUNDS):
        labs = [tmp_path / f"{round}-{name}" for name in "abc"]
        for number, lab in enumerate(labs):
            for step in range(4):
                keys = rng.sample(range(10), 4)
                rows = [divergence(key, m=float(rng.randrange(2)), synthesis_id=f"y{key}") for key in keys]
                store.publish(lab, "divergences", rows, {"shard": step if rng.random() < 0.5 else f"{number}.{step}"})
                store.append(lab, "decisions", selection_id="l", target="sample", sample_id=f"s{rng.randrange(3)}",
                             verdict=rng.choice(["keep", "drop"]), reviewer="ann")  # fmt: skip
                if rng.random() < 0.3:
                    store.compact(lab, grace_s=0)
        answers = []
        for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
            there = tmp_path / f"{round}-{order}"
            shutil.copytree(labs[order[0]], there)
            for number in order[1:]:
                store.import_(there, labs[number])
            answers.append({name: rows for name, rows in everything(there).items() if name != "damaged"})
            assert all(rows == 0 for rows in store.import_(there, labs[order[1]]).values())
        assert answers[0] == answers[1] == answers[2]


def test_what_an_import_brings_of_other_content_is_told(tmp_path):
    own, yours = tmp_path / "mine", tmp_path / "yours"
    store.publish(own, "samples", [sample(n) for n in range(3)], {"a": 1})
    store.publish(yours, "samples", [sample(n, domain="x") for n in range(2)], {"b": 1})
    summary = store.import_(own, yours)
    assert summary["samples"] == 0 and len(summary["conflicts"]) == 1 and "2 rows" in summary["conflicts"][0]
    assert [reason.split(":")[0] for _, _, reason in damaged(own)] == ["conflict"]
    assert history.rows(own)[-1]["op"] == "import"
    same = tmp_path / "same"  # the same work, with other bytes
    store.publish(same, "samples", [sample(n, domain="z") for n in range(3)], {"a": 1})
    summary = store.import_(same, own)
    assert any("two labs published unit" in line for line in summary["conflicts"])
    name = store.unit_id("samples", {"a": 1})
    shown = next(unit for unit in store.units.scan(same)[0]["samples"] if unit.unit_id == name)
    assert store.prefer(same, f"{name}-{shown.manifest['sha256'][:8]}") == ["samples"]


def test_a_run_that_has_gone_on_elsewhere_goes_on_here_and_never_back(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    line = [(n, {"loss": 1.0 / n}) for n in range(1, 9)]
    write_run(a, "r1", {"state": "running", "step": 4, "heartbeat_at": "2026-01-01T00:00:04Z"}, {0: line[:4]})
    store.import_(b, a)
    write_run(a, "r1", {"state": "done", "step": 8, "heartbeat_at": "2026-01-01T00:00:08Z"}, {0: line})
    assert store.import_(b, a)["runs"] == 1
    query = "SELECT status, step, (SELECT count(*) FROM metrics) FROM runs"
    assert one_value(store.connect(b), query) == ("done", 8, 8)
    write_run(tmp_path / "c", "r1", {"state": "running", "step": 4, "heartbeat_at": "2026-01-01T00:00:04Z"}, {0: line[:4]})
    assert store.import_(b, tmp_path / "c")["runs"] == 0 and one_value(store.connect(b), query) == ("done", 8, 8)
    write_run(tmp_path / "d", "r1", {"state": "done", "step": 8, "heartbeat_at": "2026-01-01T00:00:08Z"},
              {0: [(1, {"loss": 7.0})]})  # fmt: skip
    assert ["metrics-0.jsonl" in line for line in store.import_(b, tmp_path / "d")["conflicts"]] == [True]


# --------------------------------------------------------------------------------------------- ways in


def reseal(path, **fields):
    manifest = {**json.loads(path.read_bytes()), **fields}
    path.write_text(json.dumps(seal({key: value for key, value in manifest.items() if value is not ...})))


@pytest.mark.parametrize("name", ["../{}", "../../../outside.parquet", "{absolute}", "x/../{}", "sub/{}", ".", "..", ""])
def test_a_manifest_that_names_a_file_elsewhere_is_damaged_and_nothing_elsewhere_is_touched(lab, tmp_path, name):
    kept = store.publish(lab, "samples", [sample(1)], {"a": 1})
    unit = store.publish(lab, "samples", [sample(2)], {"a": 2})
    outside = tmp_path / "outside.parquet"
    shutil.copyfile(unit.path, outside)
    shutil.copyfile(unit.path, unit.path.parent.parent / unit.path.name)
    reseal(unit.path.with_suffix(".json"), file=name.format(unit.path.name, absolute=outside))
    before = outside.read_bytes()
    assert one_value(store.connect(lab), "SELECT count(*) FROM samples") == 1
    assert [Path(path).stem for _, path, _ in damaged(lab)] == [unit.path.stem]
    with pytest.raises(store.StoreError, match="damaged"):
        store.import_(tmp_path / "there", lab)
    store.verify(lab, repair=True)
    for _ in range(2):
        store.compact(lab, grace_s=0)
    assert outside.read_bytes() == before and kept.path.exists()
    assert one_value(store.connect(lab), "SELECT count(*) FROM samples") == 1


@pytest.mark.parametrize(
    "where", ["runs/r1/notes.txt", "speech/x/more.tar", "events/a-1-1.jsonl", "tables/samples/corpus=x", "log/w.jsonl"]
)
def test_an_import_follows_no_link(lab, tmp_path, where):
    study(lab)
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "secret").write_text("secret")
    path = lab / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(tmp_path / ("folder" if where.startswith("tables") else "secret"))
    with pytest.raises(store.StoreError, match="not a plain file"):
        store.import_(tmp_path / "there", lab)
    assert not (tmp_path / "there").exists()
    if where.startswith(("runs", "speech")):
        store.export(lab, "r2", tmp_path / "bundle")
        assert not [path for path in (tmp_path / "bundle").rglob("*") if path.is_file() and path.read_bytes() == b"secret"]


def test_audio_that_a_row_names_outside_the_lab_is_neither_read_nor_carried(lab, tmp_path):
    study(lab)
    (tmp_path / "secret.000000.tar").write_bytes(b"fLaC" * 100)
    for number, name in enumerate(("../secret.000000.tar", str(tmp_path / "secret.000000.tar"))):
        store.publish(lab, "syntheses", [{"synthesis_id": f"yy{number}", "sample_id": "s000000000001", "audio_path": name,
                                          "audio_offset": 0, "audio_bytes": 4}], {"stranger": number})  # fmt: skip
        with pytest.raises(store.StoreError, match="outside the lab"):
            store.audio(store.connect(lab), f"yy{number}")
    assert sum("outside the lab" in item.reason for item in store.verify(lab)) == 2
    before = sorted(tmp_path.rglob("*"))
    store.export(lab, "r2", tmp_path / "bundle")
    new = [path for path in tmp_path.rglob("*") if path not in before and tmp_path / "bundle" not in (path, *path.parents)]
    assert [path for path in new if ".store-cache" not in str(path)] == [] and not list((tmp_path / "bundle").rglob("secret*"))


@pytest.mark.parametrize("name", ["l[a]b*?", "l*", "l?b", "l[a-z]b", "l[!x]b", "{a,b}", "it's [1]"])
def test_a_lab_whose_path_has_what_stands_for_other_names_reads_its_own_rows(tmp_path, name):
    for other in ("lab", "l", "lxb", "labxx", "a", "b", "it's 1"):
        store.publish(tmp_path / other, "samples", [sample(9), sample(8)], {"a": 1})
    lab = tmp_path / name
    study(lab)
    con = store.connect(lab)
    assert one_value(con, "SELECT count(*) FROM samples WHERE corpus = 'broad'") == 10
    assert store.query(lab, "SELECT count(*) AS n FROM samples WHERE corpus = 'broad'").to_pylist() == [{"n": 10}]
    before = everything(lab)
    store.renew(lab)
    for _ in range(2):
        store.compact(lab, grace_s=0)
    assert everything(lab) == before and store.verify(lab) == []
    store.export(lab, "r2", tmp_path / f"bundle {name}")
    assert store.import_(tmp_path / f"there {name}", tmp_path / f"bundle {name}")["divergences"] == 20
    assert store.audio(store.connect(tmp_path / f"there {name}"), "yx1") == b"fLaC-two-two"


# -------------------------------------------------------------------------- what is no unit, and no event


def test_verify_finds_a_bit_that_flipped_in_a_corpus_task_model_list_of_cuts_checkpoint_or_frame(lab):
    rng, written = random.Random(4), {}
    for name in (
        "corpora/natural/part-0.parquet",
        "tasks/piqa.jsonl",
        "models/teacher/model.safetensors",
        "speech/x/cuts.000000.jsonl",
        "runs/r1/checkpoints/step-5/model/adapter.safetensors",
        "frames/x/0123-float32/recording.000000.safetensors",
    ):
        path = lab / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(500))
        written[path] = path.read_bytes()
    sha = {path: store.verification.sha256(path) for path in written}
    *_, weights, frames = written
    manifest = {"step": 5, "sha256": {"model/adapter.safetensors": sha[weights]}}
    (lab / "runs/r1/checkpoints/step-5/manifest.json").write_text(json.dumps(manifest))
    frames.with_suffix(".json").write_text(json.dumps({"sha256": sha[frames]}))
    assert store.verify(lab) == [] and store.verify(lab) == []
    for path, data in written.items():
        for _ in range(ROUNDS):
            times, at = path.stat(), rng.randrange(len(data))
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a disk does it: no program wrote
            assert [item.path for item in store.verify(lab)] == [str(path.relative_to(lab))]
            path.write_bytes(data)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    (lab / "corpora/natural/part-0.parquet").write_bytes(b"prepared anew, by a program")
    assert store.verify(lab) == []
    weights.unlink()
    assert [item.reason for item in store.verify(lab)] == ["is missing"]


# ------------------------------------------------------------------------------------------- joining the log


def _publish_some(lab, number):
    for k in range(2):
        store.publish(lab, "samples", [row_of(schema.TABLES["samples"], 10 * number + k)], {"number": number, "k": k})


def test_logs_of_processes_that_ended_are_joined_and_say_what_they_said(lab):
    for number in range(4):
        worker = process.Process(target=_publish_some, args=(lab, number))
        worker.start()
        worker.join()
    store.append(lab, "run_notes", run_id="r", note="x", author="x")
    _publish_some(lab, 9)  # this process goes on, and so does its log
    own = {path.name for path in (lab / "log").glob(f"*-{os.getpid()}-*.jsonl")}
    assert len(own) == 1
    before, then = store.log(lab), store.log(lab)[4]["at"]
    as_of = store.connect(lab, as_of=then).execute("FROM samples ORDER BY ALL").fetchall()
    told = store.compact(lab, grace_s=3600)
    assert told["log_files_joined"] == 4 and told["log_files_removed"] == 0
    assert store.compact(lab, grace_s=0)["log_files_removed"] == 4
    names = {path.name for path in (lab / "log").glob("*.jsonl")}
    assert len(names) == 2 and own < names
    store.history.clear_cache()
    assert store.log(lab)[: len(before)] == before and store.verify(lab) == []
    assert store.connect(lab, as_of=then).execute("FROM samples ORDER BY ALL").fetchall() == as_of
    (joined,) = (lab / "log").glob("joined-*.jsonl")
    joined.unlink()
    store.history.clear_cache()
    assert [item.reason for item in store.verify(lab) if item.table == "log"] != []  # what is gone is missed as ever


def test_a_log_with_a_damaged_or_torn_line_is_not_joined(lab):
    for number in range(3):
        worker = process.Process(target=_publish_some, args=(lab, number))
        worker.start()
        worker.join()
    first, second, _ = sorted((lab / "log").glob("*.jsonl"))
    first.write_bytes(first.read_bytes() + b'{"sum": "')
    lines = second.read_bytes()
    second.write_bytes(lines.replace(b"publish", b"pUblish", 1))
    store.compact(lab, grace_s=0)
    store.compact(lab, grace_s=0)
    assert first.exists() and second.exists() and [d.path for d in store.verify(lab)][:1] == [f"log/{second.name}"]


# ------------------------------------------------------------------------ readers while somebody compacts


def _compact_for_ever(lab):
    number = 0
    while True:
        store.publish(lab, "divergences", [row_of(schema.TABLES["divergences"], 10**6 + number)], {"more": number})
        store.compact(lab, grace_s=0)
        number += 1


def test_readers_go_on_while_units_are_joined_and_removed_without_grace(lab):
    many(lab)
    worker = process.Process(target=_compact_for_ever, args=(lab,))
    worker.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", store.DamagedWarning)
            until = time.monotonic() + ROUNDS
            while time.monotonic() < until:
                store.connect(lab)
                units_by_table, wrong = store.units.scan(lab)
                assert wrong == [] and sum(unit.rows for unit in units_by_table["samples"]) == 36
    finally:
        worker.kill()
        worker.join()


def test_publishing_into_a_lab_that_cannot_be_written_is_one_line(tmp_path):
    lab = tmp_path / "file"
    lab.write_text("no folder")
    for write in (lambda: store.publish(lab, "samples", [sample(1)], {"a": 1}),
                  lambda: store.append(lab, "votes", choice="tie", voter="x"), lambda: store.renew(lab),
                  lambda: store.compact(lab), lambda: store.prefer(lab, "u1")):  # fmt: skip
        with pytest.raises(store.StoreError) as error:
            write()
        assert len(str(error.value).splitlines()) == 1
