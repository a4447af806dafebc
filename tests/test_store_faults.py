"""The store under real faults: flipped bits, killed processes, a full disk, many writers and readers at once.

SALAD_FAULT_ROUNDS (1 by default) says how often; from 20 on, the crowd of processes runs for a minute."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import pytest
from fixtures.make_lab import row_of
from tools import ROUNDS, obeying_permissions, small_disk

import store
from salad.runs import RunFolder
from store import schema
from store.jsonl import parse_lines
from store.lab import is_whole, seal, seal_line

TABLES = [t.name for t in (*schema.UNITS, schema.PUBLISHED, *schema.EVENTS, *schema.RUNS)]
process = multiprocessing.get_context("forkserver")  # one warm parent, from which every worker is forked
process.set_forkserver_preload(["store", "pandas"])


def write_two(lab, name):
    """Two files of a table, of three rows each (an event, a run a file); the second is the one to be damaged."""
    table = schema.TABLES[name]
    if table.kind in ("unit", "package"):
        units = [store.publish(lab, name, [row_of(table, 3 * k + i) for i in range(3)], {"k": k}) for k in (0, 1)]
        return units[1].path
    if table.kind == "event":
        for k in (0, 1):
            store.events.close_writers()  # as another process: a file of its own
            for i in range(3):
                event = row_of(table, 3 * k + i) | {"at": f"2026-01-0{i + 1}T00:00:00+00:00"}
                fields = {"decisions": {"target": "sample", "verdict": "drop"}, "votes": {"choice": "tie"}}
                store.append(lab, name, **(event | fields.get(name, {})))
        return max((lab / "events").glob("*.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    for k in range(2):
        folder = lab / "runs" / f"r{k}"
        config = {"run_id": f"r{k}", "kind": "stage1", "config": {"lr": k}, "repetition": 0}
        store.atomic.write_json(folder / "config.json", seal(config))
        status = {"state": "done", "metrics_files": ["metrics-0.jsonl"] if name == "metrics" else []}
        store.atomic.write_json(folder / "status.json", seal(status))
        if name == "metrics":
            lines = [seal_line({"step": i, "tokens": i, "at": None, "values": {"loss": i / 7}}) for i in range(3)]
            (folder / "metrics-0.jsonl").write_bytes(b"".join(lines))
    return folder / ("metrics-0.jsonl" if name == "metrics" else "config.json")


def flip(path, rng):
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    if path.name == "config.json" and at == len(data) - 1:
        at -= 1  # a document is one without its last newline too
    data[at] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


DAMAGE = {
    "flipped": flip,
    "truncated": lambda path, rng: os.truncate(path, path.stat().st_size - 7),
    "empty": lambda path, rng: os.truncate(path, 0),
    "missing": lambda path, rng: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", TABLES)
def test_damage_is_found_before_a_number_is_shown(tmp_path, name, damage):
    kind = schema.TABLES[name].kind
    rng = random.Random(f"{name} {damage}")
    for round in range(ROUNDS if damage == "flipped" else 1):
        lab = tmp_path / str(round)
        path = write_two(lab, name)
        ships = store.catalogue.published().num_rows if name == "published" else 0
        whole = sorted(store.connect(lab).execute(f"FROM {name}").fetchall(), key=str)
        DAMAGE[damage](path, rng)
        with pytest.warns(store.DamagedWarning, match=path.name.split(".")[0]):
            con = store.connect(lab)
        rest = sorted(con.execute(f"FROM {name}").fetchall(), key=str)
        damages = con.execute("SELECT path FROM damaged").fetchall()
        assert {Path(where).name for (where,) in damages} == {path.name}, damages
        assert len(damages) == 1 or path.suffix == ".jsonl"  # a new newline makes two damaged lines of one
        assert ships < len(rest) < len(whole) and all(row in whole for row in rest)  # nothing wrong among them
        assert path.name in {Path(item.path).name for item in store.verify(lab)}
        if kind in ("unit", "package"):
            assert len(rest) == 3 + ships
            manifest = path.with_suffix(".json")
            outcome = store.verify(lab, repair=True)
            assert [Path(item.path).name for item in outcome] == [path.name] and not manifest.exists()
            assert store.verify(lab) == []
            assert sorted(store.connect(lab).execute(f"FROM {name}").fetchall(), key=str) == rest


@pytest.mark.parametrize("name", ["votes", "metrics", "runs"])
def test_no_single_bit_of_a_line_or_document_flips_unnoticed(tmp_path, name):
    """Every bit of a short file in turn, newlines and the checksums themselves included."""
    path = write_two(tmp_path, name)
    whole = path.read_bytes()
    rows, _, _ = parse_lines(whole)
    for at in range(len(whole) - 1):  # the last newline: a torn line, see below
        for bit in range(8):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            if path.suffix == ".jsonl":
                got, end, wrong = parse_lines(bytes(data))
                assert wrong and all(row in rows for row in got) and len(got) < len(rows), (at, bit)
            else:
                try:
                    document = json.loads(bytes(data))
                except ValueError:
                    continue
                assert not is_whole(document), (at, bit)
    if path.suffix == ".jsonl":
        path.write_bytes(whole[:-1] + b"\x0b")
        with pytest.warns(store.DamagedWarning, match="torn"):
            assert len(store.connect(tmp_path).execute(f"FROM {name}").fetchall()) == len(rows) + 2


def test_a_runs_own_metrics_files_are_missed_and_those_it_takes_back_are_not(tmp_path):
    run = RunFolder.get_or_create(tmp_path, "stage1", "x", {"a": 1})
    first = run.metrics_writer(0)
    assert store.verify(tmp_path) == []  # nothing logged yet: an empty file is no loss
    for step in range(1, 9):
        first.log(step, step, loss=1.0)
    run.metrics_writer(6).log(6, 6, loss=2.0)
    run.metrics_writer(4).log(4, 4, loss=3.0)  # the later checkpoint was damaged: further back
    assert run.read_status()["metrics_files"] == ["metrics-0.jsonl", "metrics-4.jsonl"]
    con = store.connect(tmp_path)
    assert con.execute("SELECT count(*), max(value) FROM metrics").fetchone() == (4, 3.0) and not store.verify(tmp_path)
    (run.path / "metrics-0.jsonl").unlink()
    os.truncate(run.path / "metrics-4.jsonl", 0)
    with pytest.warns(store.DamagedWarning, match="metrics-0.jsonl"):
        store.refresh(con)
    assert con.execute("SELECT reason FROM damaged ORDER BY path").fetchall() == [("is missing",), ("is empty",)]
    assert [item.reason for item in store.verify(tmp_path)] == ["is missing", "is empty"]


def _append_and_die(lab, table, n):
    for number in range(n):
        store.append(lab, table, run_id="r1", note=f"{number}")


def test_a_lost_event_file_is_told_until_it_is_repaired_and_compaction_is_no_loss(tmp_path):
    for _ in range(4):
        writer = process.Process(target=_append_and_die, args=(tmp_path, "run_notes", 3))
        writer.start()
        writer.join()
    gone, cut, *_ = sorted((tmp_path / "events").glob("*.jsonl"))
    gone.unlink()
    os.truncate(cut, 0)
    with pytest.warns(store.DamagedWarning, match="missing|truncated"):
        con = store.connect(tmp_path)
    assert con.execute("SELECT path, reason[:9] FROM damaged ORDER BY ALL").fetchall() == sorted(
        [(f"events/{gone.name}", "is missing"[:9]), (f"events/{cut.name}", "truncated")]
    )
    store.compact(tmp_path, grace_s=0)  # joins the other two, and keeps what tells of the loss
    assert len(store.verify(tmp_path, repair=True)) == 2 and store.verify(tmp_path) == []
    assert {path.name for path in (tmp_path / "damaged" / "events").iterdir()} == {
        cut.name, *(path.with_suffix(".json").name for path in (gone, cut))
    }  # fmt: skip
    for _ in range(3):
        store.compact(tmp_path, grace_s=0)
        assert store.verify(tmp_path) == []
        assert store.connect(tmp_path).execute("SELECT count(*) FROM run_notes").fetchone() == (6,)
    merged = list((tmp_path / "events").glob("*.jsonl"))
    assert len(merged) == 1
    merged[0].unlink()
    assert [item.reason for item in store.verify(tmp_path)] == ["is missing"]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty"])
def test_a_damaged_manifest_is_named(tmp_path, damage):
    path = write_two(tmp_path, "divergences").with_suffix(".json")
    DAMAGE[damage](path, random.Random(1))
    with pytest.warns(store.DamagedWarning, match=path.stem):
        con = store.connect(tmp_path)
    assert con.execute("SELECT count(*) FROM divergences").fetchone() == (3,)


def test_verify_finds_a_bit_that_flipped_after_it_was_checked(tmp_path):
    path = write_two(tmp_path, "divergences")
    store.connect(tmp_path)
    times = path.stat()
    flip(path, random.Random(2))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert [item.reason for item in store.verify(tmp_path)] == ["its bytes changed: sha256 does not agree with the manifest"]


def test_damage_in_a_lab_that_cannot_be_written_is_found_too():
    lab = Path(tempfile.mkdtemp(prefix="read-only-lab-"))
    try:
        hit = dict(zip(("divergences", "samples", "selected", "evaluations"), DAMAGE, strict=True)) | {"votes": "flipped"}
        paths = []
        for name, damage in hit.items():
            paths.append(write_two(lab, name))
            DAMAGE[damage](paths[-1], random.Random(3))
        shutil.rmtree(lab / ".store-cache", ignore_errors=True)
        for folder, _, files in os.walk(lab):
            os.chmod(folder, 0o555)
            for file in files:
                os.chmod(Path(folder) / file, 0o444)
        answer = process.SimpleQueue()
        worker = process.Process(target=_read_obeying_permissions, args=(str(lab), answer))
        worker.start()
        worker.join()
        assert worker.exitcode == 0  # else nothing comes
        rows, result, refused = answer.get()
        assert rows == [3, 3, 3, 3] and refused
        assert {name for (name,) in result} == {str(path.relative_to(lab)) for path in paths}
        assert not (lab / ".store-cache").exists()
    finally:
        for folder in [lab, *(path for path in lab.rglob("*") if path.is_dir())]:
            folder.chmod(0o755)
        shutil.rmtree(lab)


def _read_obeying_permissions(lab, answer):
    with obeying_permissions():
        _read(lab, answer)


def _read(lab, answer):
    warnings.simplefilter("ignore")
    con = store.connect(lab)
    tables = ("divergences", "samples", "selected", "evaluations")
    rows = [con.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables]
    try:
        store.append(lab, "votes", choice="tie")
        refused = False
    except store.StoreError:
        refused = True
    answer.put((rows, con.execute("SELECT path FROM damaged").fetchall(), refused))


# ---------------------------------------------------------------------------------------------- kill -9


def _publish_shards(lab, n):
    for shard in range(n):
        if not store.exists(lab, "divergences", {"shard": shard}):
            rows = [row_of(schema.TABLES["divergences"], shard * 200 + i) for i in range(200)]
            store.publish(lab, "divergences", rows, {"shard": shard})


def kill_at_random(target, args, rng, longest):
    worker = process.Process(target=target, args=args)
    worker.start()
    time.sleep(rng.uniform(0, longest))
    worker.kill()  # -9
    worker.join()


def test_a_publisher_killed_many_times_leaves_what_a_clean_run_leaves(tmp_path):
    _publish_shards(tmp_path / "clean", 30)
    expected = sorted(store.connect(tmp_path / "clean").execute("FROM divergences").fetchall())
    rng = random.Random(4)
    started = time.monotonic()
    worker = process.Process(target=_publish_shards, args=(tmp_path / "timed", 30))
    worker.start()
    worker.join()
    longest = time.monotonic() - started
    for round in range(ROUNDS):
        lab = tmp_path / str(round)
        for _ in range(5):
            kill_at_random(_publish_shards, (lab, 30), rng, longest)
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # half a unit is no unit: nothing to warn of
                rows = store.connect(lab).execute("FROM divergences").fetchall()
            assert len(rows) % 200 == 0 and set(rows) <= set(expected) and len(set(rows)) == len(rows)
        _publish_shards(lab, 30)
        assert sorted(store.connect(lab).execute("FROM divergences").fetchall()) == expected
        assert all(item.reason.startswith("orphaned") for item in store.verify(lab, grace_s=0))
        store.verify(lab, grace_s=0, repair=True)
        assert store.verify(lab, grace_s=0) == []


def _compact_for_ever(lab):
    while True:
        store.compact(lab, grace_s=0.2)


def test_compaction_killed_at_any_moment_changes_no_answer(tmp_path):
    rng = random.Random(5)
    _publish_shards(tmp_path, 30)
    expected = sorted(store.connect(tmp_path).execute("FROM divergences").fetchall())
    for round in range(2 * ROUNDS):
        kill_at_random(_compact_for_ever, (tmp_path,), rng, 1.5)
        assert sorted(store.connect(tmp_path).execute("FROM divergences").fetchall()) == expected
        store.publish(tmp_path, "divergences", [row_of(schema.TABLES["divergences"], -round - 1)], {"more": round})
        expected = sorted(store.connect(tmp_path).execute("FROM divergences").fetchall())
        assert len(expected) == 6000 + round + 1


def _vote_for_ever(lab, result):
    while True:
        result.send(store.append(lab, "votes", choice="tie", voter="x", question_id="q" * 300)["vote_id"])


def test_no_acknowledged_event_is_lost_when_its_process_is_killed(tmp_path):
    acknowledged, rng = set(), random.Random(6)
    for _ in range(2 * ROUNDS):
        hear, tell = process.Pipe(duplex=False)
        worker = process.Process(target=_vote_for_ever, args=(tmp_path, tell))
        worker.start()
        tell.close()
        acknowledged.add(hear.recv())
        time.sleep(rng.uniform(0, 0.2))
        worker.kill()
        try:
            while True:
                acknowledged.add(hear.recv())
        except (EOFError, OSError):
            worker.join()
    assert acknowledged
    for _ in range(2):
        ids = [r[0] for r in store.connect(tmp_path).execute("SELECT vote_id FROM votes").fetchall()]
        assert acknowledged <= set(ids) and len(set(ids)) == len(ids)
        store.compact(tmp_path, grace_s=0)
    assert len(list((tmp_path / "events").glob("*.jsonl"))) <= 2 * ROUNDS + 1


def test_a_torn_last_line_is_left_out_and_said(tmp_path):
    store.append(tmp_path, "votes", choice="tie", voter="x")
    line = seal_line({"table": "votes", "vote_id": "v1", "choice": "left", "voter": "y", "at": "2026-01-01T00:00:00+00:00"})
    torn = tmp_path / "events" / "elsewhere-1-1.jsonl"
    torn.write_bytes(line + line.replace(b"v1", b"v2")[:40])
    with pytest.warns(store.DamagedWarning, match="torn"):
        con = store.connect(tmp_path)
    assert con.execute("SELECT count(*) FROM votes").fetchone() == (2,)


# ------------------------------------------------------------------------------- many at once, full disk


def _worker(kind, number, lab, seconds, answer):
    done = 0
    try:
        until = time.monotonic() + seconds
        con = store.connect(lab) if kind == "query" else None
        while time.monotonic() < until:
            if kind == "write":
                store.publish(
                    lab,
                    "divergences",
                    [row_of(schema.TABLES["divergences"], number * 10**6 + done * 5 + i) for i in range(5)],
                    {"n": number, "done": done},
                )
                store.append(lab, "votes", choice="tie", voter=f"{number}")
                if number == 0 and done % 5 == 4:
                    store.compact(lab)
                    store.renew(lab)
            else:
                store.refresh(con) if done % 3 else (con := store.connect(lab, locked=done % 2 == 0))
                rows, different = con.execute("SELECT count(*), count(DISTINCT sample_id) FROM divergences").fetchone()
                damaged = con.execute("SELECT * FROM damaged WHERE reason NOT LIKE '%torn%'").fetchall()
                assert rows % 5 == 0 and rows == different and not damaged, (rows, different, damaged)
                assert con.execute("SELECT count(*) FROM votes").fetchone()[0] >= 0
            done += 1
        answer.put((kind, done, None))
    except BaseException:
        answer.put((kind, done, traceback.format_exc()))


def test_four_writers_and_four_readers_at_once(tmp_path):
    seconds = 60 if ROUNDS >= 20 else 2 * ROUNDS
    answer = process.SimpleQueue()
    workers = [
        process.Process(target=_worker, args=(kind, number, tmp_path, seconds, answer))
        for kind in ("write", "query")
        for number in range(4)
    ]
    for worker in workers:
        worker.start()
    result = [answer.get() for _ in workers]
    for worker in workers:
        worker.join()
    assert [error for _, _, error in result if error] == []
    done = sum(n for kind, n, _ in result if kind == "write")
    con = store.connect(tmp_path)
    assert done > 0 and con.execute("SELECT count(*), count(DISTINCT sample_id) FROM divergences").fetchone() == (5 * done,) * 2
    assert con.execute("SELECT count(*) FROM votes").fetchone() == (done,)
    assert store.verify(tmp_path) == []


@pytest.fixture(params=["files of half a megabyte at most", pytest.param("a disk of two megabytes", marks=pytest.mark.root)])
def little_room(request, tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    if request.param.startswith("a disk"):
        with small_disk(place, "2m"):
            yield place
        return
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    yield place
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_is_said_clearly_and_what_was_acknowledged_stays(little_room):
    lab, rng, published, refused = little_room / "lab", random.Random(7), 0, 0
    with pytest.raises(store.StoreError, match="could not write a unit of samples"):
        while True:
            text = rng.randbytes(60_000 * (published + 1)).hex()  # until a file is too large, or all together
            store.publish(lab, "samples", [{"sample_id": f"s{published}", "text": text, "corpus": "c"}], {"n": published})
            published += 1
            if published <= 3:
                store.append(lab, "votes", choice="tie", voter="x", question_id=rng.randbytes(1000).hex())
                refused += 1
    with pytest.raises(store.StoreError, match="the event was not recorded"):
        while True:
            store.append(lab, "votes", choice="tie", voter="x", question_id=rng.randbytes(20_000).hex())
            refused += 1
    with pytest.raises(store.StoreError, match="not recorded"):
        store.append(lab, "votes", choice="tie", voter="x", question_id=rng.randbytes(200_000).hex())
    assert published > 3 and refused >= 3
    con = store.connect(lab)
    assert con.execute("SELECT count(*) FROM samples").fetchone() == (published,)
    assert con.execute("SELECT count(*) FROM votes").fetchone() == (refused,)
    assert con.execute("SELECT count(*) FROM damaged").fetchone() == (0,)
    last = next((lab / "tables").rglob("unit-*.json"))  # not the Parquet file whose manifest found no room
    for path in (last, last.with_suffix(".parquet")):  # room again
        path.unlink()
    store.append(lab, "votes", choice="left", voter="x")
    store.refresh(con)
    assert con.execute("SELECT count(*) FROM votes").fetchone() == (refused + 1,)
    assert not list(lab.rglob("*.tmp")) and json.loads(next(lab.rglob("unit-*.json")).read_text())
