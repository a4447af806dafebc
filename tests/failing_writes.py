"""Does one operation of the store again and again while its n-th write, rename, fsync … fails; run by tests/test_store_errors.py
under LD_PRELOAD of fixtures/failing_writes.c, which makes them fail.

    python -m tests.failing_writes OPERATION FOLDER ROUNDS

Prints one JSON document: how many places there are, how many were tried, and what went wrong at which."""

import ctypes
import errno
import json
import random
import shutil
import sys
import traceback
import warnings
from pathlib import Path

import store
from store import events, history, runs, schema, units, verification
from tests.fixtures.make_lab import row_of

LIBRARY = ctypes.CDLL(None)
ERRORS = (errno.ENOSPC, errno.EIO)
ONCE, FROM_THEN_ON, HALF = range(3)


def rows(table, *numbers):
    return [row_of(schema.TABLES[table], n) for n in numbers]


def as_new(lab):
    """Forget what this process has read and close the files that it appends to, as a new process would."""
    for clear in (units.clear_cache, verification.clear_cache, runs.clear_cache, history.clear_cache):
        clear()
    events.clear_cache(lab)
    events.close_writers()
    history.close_writers()


def state(lab):
    """The rows of every table of a lab as a new process reads them; what is damaged; what verify finds."""
    as_new(lab)
    con = store.connect(lab)
    names = [name for name in store.schema.TABLES if name not in ("published", "damaged")]
    found = {name: sorted(map(str, con.execute(f"FROM {name}").fetchall())) for name in names}
    con.execute("SELECT count(*) FROM misalignment").fetchall()
    wrong = con.execute("FROM damaged").fetchall() + [tuple(item) for item in store.verify(lab)]
    as_new(lab)
    return found, wrong


# ---------------------------------------------------------------------------------------- the operations


def base(lab):
    """A lab with units, events, a run and a recorded file."""
    for k in range(2):
        store.publish(lab, "samples", rows("samples", 3 * k, 3 * k + 1), {"k": k})
        store.publish(lab, "divergences", rows("divergences", k), {"k": k})
    store.append(lab, "run_notes", run_id="r1", note="first", author="x")
    store.events.close_writers()
    store.append(lab, "run_notes", run_id="r1", note="second", author="x")
    folder = lab / "runs" / "r1"
    store.atomic.write_json(folder / "config.json", store.lab.seal(
        {"run_id": "r1", "kind": "stage1", "config": {"lr": 1}, "repetition": 0}))  # fmt: skip
    store.atomic.write_json(folder / "status.json", store.lab.seal({"state": "done", "metrics_files": []}))
    store.atomic.write_bytes(lab / "tasks/a.jsonl", b"{}\n")
    store.files.record(lab, [lab / "tasks/a.jsonl"], "a test")


def compacted(lab):
    base(lab)
    store.compact(lab, grace_s=0)


def with_a_damaged_unit(lab):
    base(lab)
    unit = store.publish(lab, "samples", rows("samples", 20), {"k": 20})
    unit.path.write_bytes(unit.path.read_bytes()[:-1] + b"x")


def with_a_conflict(lab):
    base(lab)
    for k in (30, 31):
        store.publish(lab, "samples", [row_of(schema.TABLES["samples"], 40) | {"text": f"{k}"}], {"k": k})


def other(folder):
    """Another lab that has rows in common with `base`."""
    lab = folder / "other"
    if not lab.exists():
        base(lab)
        store.publish(lab, "samples", rows("samples", 50, 51), {"k": 50})
        store.publish(lab, "divergences", rows("divergences", 50), {"k": 50})
    return lab


def with_a_changed_task(lab):
    base(lab)
    (lab / "tasks/a.jsonl").write_bytes(b'{"a": 1}\n')


OPERATIONS = {  # name: (the lab before, what is done, whether an error says that nothing was done)
    "publish": (base, lambda lab: store.publish(lab, "samples", rows("samples", 9), {"k": 9}), True),
    "publish again": (base, lambda lab: store.publish(lab, "samples", rows("samples", 9), {"k": 1}), True),
    "publish first": (lambda lab: lab.mkdir(), lambda lab: store.publish(lab, "samples", rows("samples", 9), {"k": 1}), True),
    "append": (base, lambda lab: store.append(lab, "run_notes", run_id="r1", note="new", author="x", event_id="e9",
                                              at="2026-01-01T00:00:00Z"), True),
    "compact": (base, lambda lab: store.compact(lab, grace_s=0), False),
    "compact again": (compacted, lambda lab: store.compact(lab, grace_s=0), False),
    "renew": (base, lambda lab: store.renew(lab), False),
    "export": (base, lambda lab: store.export(lab, "samples", lab / "export"), False),
    "import": (base, lambda lab: store.import_(lab, other(lab.parent)), False),
    "repair": (with_a_damaged_unit, lambda lab: store.verify(lab, repair=True), False),
    "prefer": (with_a_conflict, lambda lab: store.prefer(lab, store.unit_id("samples", {"k": 30})), True),
    "record": (with_a_changed_task, lambda lab: store.files.record(lab, [lab / "tasks/a.jsonl"], "a test"), True),
    "accept": (with_a_changed_task, lambda lab: store.files.accept(lab, "tasks/a.jsonl"), True),
}  # fmt: skip


def without_times(found):
    """Rows without the clocks that each writing sets anew."""
    return {name: [row for row in there if name != "run_notes"] + [str(len(there))] * (name == "run_notes")
            for name, there in found.items()}  # fmt: skip


def once(folder, name, nth, error, mode):
    """One try, in a copy of the lab; what went wrong, and whether the operation ended before the nth call."""
    make, act, all_or_nothing = OPERATIONS[name]
    lab = folder / "lab"
    shutil.rmtree(lab, ignore_errors=True)
    shutil.copytree(folder / "base", lab)
    as_new(lab)
    message = None
    LIBRARY.arm(f"{lab}/".encode(), ctypes.c_long(nth), error, mode)
    try:
        act(lab)
    except store.StoreError as fault:
        message = str(fault)
    finally:
        calls = LIBRARY.disarm()
    wrong = []
    if message is not None and len(message.splitlines()) != 1:
        wrong.append(f"not one line: {message}")
    before, after = (json.loads((folder / f"{when}.json").read_text()) for when in ("before", "after"))
    found, damaged = state(lab)
    found = without_times(found)
    dead = error == errno.EIO and mode == FROM_THEN_ON  # nothing can be taken back on a disk that takes nothing
    for table in found:
        expected = [before[0][table], after[0][table]]
        if message is not None and all_or_nothing and not dead:
            expected = expected[:1]
        elif message is None and not dead:
            expected = expected[1:]
        if found[table] not in expected and not (
            not all_or_nothing and set(before[0][table]) <= set(found[table]) <= set(after[0][table])
        ):
            wrong.append(f"{table}: {found[table]} after {message!r}, and before were {expected}")
    known = [tuple(item) for item in before[1] + after[1]]
    damaged = [item for item in damaged if tuple(item) not in known and not (dead and "torn" in item[2])]
    if damaged:
        wrong.append(f"damaged after {message!r}: {damaged}")
    if name != "append" or found == before[0]:
        if name == "export":
            shutil.rmtree(lab / "export", ignore_errors=True)
        act(lab)
        last = without_times(state(lab)[0])
        if last != after[0]:
            wrong.append(f"done again after {message!r}: {[t for t in last if last[t] != after[0][t]]} differ")
    return [f"{name} {nth} {errno.errorcode[error]} mode {mode}: {text}" for text in wrong], calls


def main(name, folder, rounds):
    warnings.simplefilter("ignore")
    LIBRARY.disarm.restype = ctypes.c_long
    make, act, _ = OPERATIONS[name]
    make(folder / "base")
    other(folder)
    found, damaged = state(folder / "base")
    (folder / "before.json").write_text(json.dumps([without_times(found), damaged]))
    (folder / "after.json").write_text(json.dumps([without_times(found), damaged]))
    shutil.copytree(folder / "base", folder / "clean")
    as_new(folder / "clean")
    act(folder / "clean")
    found, damaged = state(folder / "clean")
    (folder / "after.json").write_text(json.dumps([without_times(found), damaged]))
    shutil.rmtree(folder / "clean")
    rng, wrong, tried = random.Random(name), [], 0
    _, places = once(folder, name, 10**9, errno.EIO, ONCE)
    every = [(nth, error, mode) for nth in range(1, places + 1) for error in ERRORS for mode in (ONCE, FROM_THEN_ON, HALF)]
    for nth, error, mode in every if rounds >= 20 else rng.sample(every, min(len(every), 2 * rounds)):
        tried += 1
        try:
            wrong += once(folder, name, nth, error, mode)[0]
        except Exception:
            LIBRARY.disarm()
            wrong.append(f"{name} {nth} {errno.errorcode[error]} mode {mode}: {traceback.format_exc()}")
    print(json.dumps({"places": places, "tried": tried, "wrong": wrong}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
