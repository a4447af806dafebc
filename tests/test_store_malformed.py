"""What is malformed costs itself alone: every field of every document takes every wrong value, resealed so that its checksum
agrees, and the lab opens, shows the rest, and says in `damaged` what it left out and where.

SALAD_FUZZ_S (0 by default) is how many seconds each of the fuzzers at the end goes on beyond its short form."""

import copy
import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest
from fixtures import make_lab
from test_store import many, publish_selection, sample
from tools import ROUNDS, mangled

import store
from store import events, history, runs, units, verification
from store.lab import seal, seal_line

LONG = float(os.environ.get("SALAD_FUZZ_S", "0"))
pytestmark = pytest.mark.filterwarnings("ignore::store.DamagedWarning")
WRONG = [
    None,
    "",
    "x",
    "../../x",
    "/etc/passwd",
    "\ud800",
    "2026-13-45",
    "9" * 30,
    -1,
    0,
    1.5,
    2**31,
    2**63,
    10**30,
    1e308,
    float("nan"),
    float("inf"),
    True,
    [],
    {},
    [None],
    ["x"],
    [[["x"]]],
    {"x": {}},
    [{"unit_id": 1}],
    "u" * 10_000,
]
DOCUMENTS = ("tables/*/*/unit-*.json", "events/*.json", "runs/*/config.json", "runs/*/status.json")
LINES = ("events/*.jsonl", "runs/*/metrics-*.jsonl", "log/*.jsonl")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A lab with something in every table, an event file, a run, a log and a merged unit."""
    lab = tmp_path_factory.mktemp("malformed") / "lab"
    make_lab.make(lab)
    many(lab, 2)
    store.compact(lab)
    return lab


def as_new(lab):
    """Forget everything that this process has read, as a new process would."""
    units.clear_cache()
    verification.clear_cache()
    runs.clear_cache()
    history.clear_cache()
    events.clear_cache(lab)


def rows_of(lab):
    con = store.connect(lab)
    names = [name for name in store.schema.TABLES if name != "published"]
    places = {"divergences": "raw.divergences"}  # as published: the view adds the newest clustering
    found = {name: con.execute(f"FROM {places.get(name, name)}").fetchall() for name in names}
    con.execute("SELECT count(*) FROM misalignment").fetchall()
    con.execute("SELECT count(*) FROM current_decisions").fetchall()
    return found


def variants(value, rng, n):
    """At most `n` copies of a document, each with one field gone or wrong; a nested one's fields too."""
    paths = [[key] for key in value]
    for key, inner in value.items():
        if isinstance(inner, dict):
            paths += [[key, deeper] for deeper in inner]
        if isinstance(inner, list) and inner and isinstance(inner[0], dict):
            paths += [[key, 0, deeper] for deeper in inner[0]]
    every = [(path, wrong) for path in paths if path != ["sum"] for wrong in [..., *WRONG]]
    for path, wrong in rng.sample(every, min(n, len(every))):
        changed = copy.deepcopy(value)
        place = changed
        for step in path[:-1]:
            place = place[step]
        if wrong is ...:
            del place[path[-1]]
        else:
            place[path[-1]] = wrong
        yield path, wrong, changed


def resealed(value, line):
    """Its bytes with a checksum that agrees; JSON that Python writes and other readers may not."""
    import hashlib
    import zlib

    value = {key: inner for key, inner in value.items() if key != "sum"}
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    if line:
        body = text.encode()[1:]
        return b'{"sum": "%08x", ' % zlib.crc32(body) + body + b"\n"
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    value["sum"] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return json.dumps(value).encode()


def check(lab, before, name, path, wrong):
    """The lab opens, nothing of other files is lost, and what is lost is told with its file."""
    where = str(Path(name).relative_to(lab))
    as_new(lab)
    after = rows_of(lab)
    told = [(table, at, why) for table, at, why in after["damaged"]]
    lost = {t for t in before if t != "damaged" and len(after[t]) < len(before[t])}
    stem = where.rpartition(".")[0]
    if lost and not where.startswith("log/"):
        assert any(stem in at or Path(at).parent == Path(where).parent for _, at, _ in told), (where, path, wrong, lost, told)
    for table in before:
        if table != "damaged":
            assert len(before[table]) - len(after[table]) <= 6, (where, path, wrong, table)
    found = store.verify(lab)
    assert len(found) >= len({at for _, at, _ in told}), (where, path, wrong)


@pytest.mark.parametrize("pattern", [*DOCUMENTS, *LINES])
def test_a_malformed_field_costs_its_own_file_or_line_and_is_told(whole, tmp_path, pattern):
    lab = tmp_path / "lab"
    shutil.copytree(whole, lab)
    as_new(lab)
    before, rng = rows_of(lab), random.Random(pattern)
    assert before["damaged"] == []
    paths = sorted(lab.glob(pattern))
    assert paths
    for path in paths if ROUNDS >= 20 else rng.sample(paths, min(len(paths), 3)):
        data = path.read_bytes()
        lines = [json.loads(line) for line in data.splitlines()] if path.suffix == ".jsonl" else None
        document = rng.choice(lines) if lines else json.loads(data)
        for where, wrong, changed in variants(document, rng, 4 * ROUNDS if ROUNDS < 20 else max(1, 20 * ROUNDS // len(paths))):
            if lines:
                path.write_bytes(b"".join(resealed(changed if line is document else line, True) for line in lines))
            else:
                path.write_bytes(resealed(changed, False))
            check(lab, before, path, where, wrong)
        path.write_bytes(data)
    as_new(lab)
    assert rows_of(lab)["damaged"] == []


@pytest.mark.parametrize(
    "line",
    [
        b"{}",
        b"[]",
        b"null",
        b"nonsense",
        b'"x"',
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"table": "votes"}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"\x00" * 50,
        b"{}\r",
    ],
)
@pytest.mark.parametrize("pattern", LINES)
def test_a_line_that_is_no_event_metric_or_entry_is_told_by_its_number(whole, tmp_path, pattern, line):
    lab = tmp_path / "lab"
    shutil.copytree(whole, lab)
    path = sorted(lab.glob(pattern))[0]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + line + b"\n" + b"".join(lines[1:]))
    as_new(lab)
    con = store.connect(lab)
    told = con.execute("SELECT path, reason FROM damaged").fetchall()
    assert [at for at, _ in told] == [str(path.relative_to(lab))] and "line 2" in told[0][1]
    rest = {"events": "votes", "runs": "metrics", "log": "samples"}[pattern.split("/")[0]]
    assert con.execute(f"SELECT count(*) FROM {rest}").fetchone()[0] >= 2
    assert [item.path for item in store.verify(lab)] == [told[0][0]]


def test_a_unit_whose_columns_are_not_its_tables_is_left_out(whole, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    lab = tmp_path / "lab"
    store.publish(lab, "samples", [sample(1)], {"a": 1})
    for number, rows in enumerate((pa.table({"x": [1]}), pa.table({"sample_id": [1], "text": ["t"], "corpus": ["c"]}))):
        unit = store.publish(lab, "samples", [sample(2 + number)], {"b": number})
        manifest = json.loads(unit.path.with_suffix(".json").read_bytes())
        pq.write_table(rows, unit.path)
        manifest |= {"sha256": verification.sha256(unit.path), "bytes": unit.path.stat().st_size}
        unit.path.with_suffix(".json").write_text(json.dumps(seal(manifest)))
    as_new(lab)
    con = store.connect(lab)
    assert con.execute("SELECT count(*) FROM samples").fetchone() == (1,)
    assert con.execute("SELECT count(*) FROM damaged WHERE reason LIKE '%no column%'").fetchone() == (2,)


# ------------------------------------------------------------------------------------------------ rules


NOT_RULES = [
    "random() < 0.5",
    "hash(random()) > 3",
    "now() > TIMESTAMPTZ '2020-01-01'",
    "uuid() IS NOT NULL",
    "nextval('x') > 1",
    "current_setting('threads') = 1",
    "getvariable('x') IS NULL",
    "true) USING SAMPLE 10 PERCENT (bernoulli",
    "true) QUALIFY (true",
    "true) GROUP BY ALL HAVING (true",
    "true) GROUP BY sample_id HAVING (true",
    "true), (false",
    "true) AS x, (true",
    "true) FROM rule_rows WHERE (true",
    "true) UNION SELECT (true",
    "COLUMNS(*) > 3",
    "count(*) > 1",
    "sum(cer) > 1",
    "1",
    "n_tokens",
    "'x'",
    "row_number() OVER () > 3",
    "$1 > 1",
    "?",
    "(SELECT true)",
    "sample_id IN (FROM samples)",
    "exists (FROM samples)",
    "len(repeat('x', 4000000000)) > 1",
    "list_sum(range(500000000)) > 1",
    "len(generate_series(1, 10)) > 1",
    "true ORDER BY 1",
    "true; ",
    "true LIMIT 1",
    "nothing > 1",
    "cer >",
    "",
    "  ",
    "-- x",
    "/* x",
    "x" * 20_000,
    "cer > 0.3 OR random() < 2",
    "list_any_value([random()]) > 1",
    "list_filter([1], lambda x: random() < 0.5) = []",
    "case when uuid() = 'x' then true else false end",
    "true) TABLESAMPLE (10%",
    "today() > DATE '2020-01-01'",
    "age(TIMESTAMP '2020-01-01') > INTERVAL 1 DAY",
    "setseed(0.5) IS NULL",
    "error('x') IS NULL",
]
RULES = [
    "cer > 0.3",
    "cer > 0.3 OR list_contains(flags, 'formula')",
    "text LIKE 'a%' AND n_tokens BETWEEN 1 AND 3",
    "cer IS NULL",
    "regexp_matches(text, '[0-9]+')",
    "len(flags) > 0",
    "lower(text) = 'x' -- why",
    "flags[1] = 'code'",
    "domain IN ('a', 'b')",
    "CASE WHEN cer > 1 THEN true ELSE false END",
    "list_filter(flags, lambda x: x = 'code') <> []",
    "TRY_CAST(text AS INTEGER) > 3",
    "list_has_any(flags, ['code', 'url'])",
    "coalesce(cer, 1.0) > 0.5",
    "NOT (cer > 0.2)",
    "text SIMILAR TO 'a.*'",
    "true",
    "m > f * 2 + 1",
    "(cer > 0.3) OR (wer > 0.5)",
    "contains(text, 'x')",
    "levenshtein(text, spoken) > 3",
    "list_max([m, f, d]) > 1",
]


@pytest.mark.parametrize("rule", NOT_RULES)
def test_what_is_not_one_deterministic_predicate_is_no_rule(tmp_path, rule):
    with pytest.raises(store.StoreError, match="rule") as error:
        store.append(tmp_path, "decisions", selection_id="l1", target="rule", rule=rule, verdict="drop", reviewer="x")
    assert len(str(error.value).splitlines()) <= 2 and not (tmp_path / "events").exists()


def test_predicates_over_a_row_are_rules_and_say_the_same_each_time(tmp_path):
    publish_selection(tmp_path)
    said = [
        store.append(tmp_path, "decisions", selection_id="l1", target="rule", rule=rule, verdict="drop", reviewer="x")
        for rule in RULES
    ]
    query = "SELECT event_id, sample_id FROM rule_matches ORDER BY ALL"
    first = store.connect(tmp_path).execute(query).fetchall()
    assert first == store.connect(tmp_path).execute(query).fetchall() and {e for e, _ in first} <= {e["event_id"] for e in said}
    assert store.connect(tmp_path).execute("FROM damaged").fetchall() == []
    from workbench import review

    con = store.connect(tmp_path)
    for rule, event in zip(RULES, said, strict=True):
        count, _ = review.rule_preview(con, "l1", rule)
        assert count == sum(e == event["event_id"] for e, _ in first), rule


def test_a_rule_that_fails_on_some_texts_is_told_and_stops_nothing(tmp_path):
    publish_selection(tmp_path)
    store.publish(tmp_path, "samples", [sample(n) | {"text": f"{n}"} for n in range(4)], {"b": 1})
    with pytest.warns(store.DamagedWarning, match="fails on 6 of 10"):
        event = store.append(
            tmp_path,
            "decisions",
            selection_id="l1",
            target="rule",
            rule="CAST(text AS INTEGER) > 1",
            verdict="drop",
            reviewer="x",
        )
    con = store.connect(tmp_path)
    assert con.execute("SELECT sample_id FROM current_decisions ORDER BY 1").fetchall() == [
        ("s000000000002",),
        ("s000000000003",),
    ]
    ((path, why),) = con.execute("SELECT path, reason FROM damaged WHERE path LIKE 'event%'").fetchall()
    assert event["event_id"] in path and "fails on 6 texts, such as s000000000004" in why
    store.append(tmp_path, "decisions", verdict="undo", undoes=event["event_id"], reviewer="x")
    store.refresh(con)
    assert con.execute("SELECT count(*) FROM damaged WHERE path LIKE 'event%'").fetchone() == (0,)
    with pytest.raises(store.StoreError, match="fails on every text"):
        store.append(
            tmp_path,
            "decisions",
            selection_id="l1",
            target="rule",
            rule="CAST(corpus AS INTEGER) > 1",
            verdict="drop",
            reviewer="x",
        )


@pytest.mark.parametrize(
    "rule", ["random() < 0.5", "true) GROUP BY sample_id HAVING (true", "1", "((((", "CAST(corpus AS INTEGER) > 1"]
)
def test_a_rule_that_somebody_else_wrote_into_the_lab_stops_no_connect(tmp_path, rule):
    publish_selection(tmp_path)
    line = {
        "table": "decisions",
        "event_id": "e1",
        "selection_id": "l1",
        "target": "rule",
        "rule": rule,
        "verdict": "drop",
        "reviewer": "eve",
        "at": "2026-01-01T00:00:00+00:00",
    }
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "eve-1-1.jsonl").write_bytes(seal_line(line))
    con = store.connect(tmp_path)
    assert con.execute("SELECT count(*) FROM current_decisions").fetchone() == (0,)
    assert con.execute("SELECT path FROM damaged").fetchall() == [("event e1",)]


# ----------------------------------------------------------------------------------------------- locked SQL


HUNGRY = [
    "SELECT length(repeat('x', 4000000000))",
    "SELECT list_sum(range(500000000))",
    "SELECT damerau_levenshtein(repeat('ab', 60000), repeat('ba', 60000))",
    "SELECT levenshtein(repeat('ab', 300000), repeat('ba', 300000))",
    "SELECT count(*) FROM range(1000000000000) t(i) WHERE hash(i) % 7 = 1",
    "SELECT list(i) FROM range(2000000000) t(i)",
]


def test_locked_sql_that_takes_too_much_is_stopped_and_the_next_question_is_answered(tmp_path):
    import resource

    con = store.connect(tmp_path, locked=True, timeout_s=1, memory="500MB")
    for query in HUNGRY:
        with pytest.raises(store.StoreError, match="stopped|(?i:memory)"):
            con.execute(query)
        assert con.execute("SELECT 1").fetchone() == (1,)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 3_000_000  # kB
    con.close()


GRAMMAR = {
    "query": [
        "SELECT {value}, {value} FROM {source} WHERE {value} = {value}",
        "FROM {source} LIMIT 3",
        "EXPLAIN {query}",
        "WITH x AS ({query}) FROM x",
        "({query}) UNION ALL ({query})",
        "SELECT {value}",
        "COPY ({query}) TO 'x'",
        "SET x = {value}",
    ],
    "source": [
        "samples",
        "misalignment",
        "range(5)",
        "read_text('/etc/passwd')",
        "({query})",
        "rule_rows",
        "glob('/*')",
        "nothing",
        "repeat({value}, 5)",
        "unnest([1, 2])",
        "raw.hidden",
        "duckdb_settings()",
    ],
    "value": [
        "1",
        "'x'",
        "NULL",
        "m",
        "text",
        "[{value}, {value}]",
        "repeat('x', {big})",
        "range({big})",
        "CAST({value} AS INTEGER)",
        "lpad('x', {big}, 'y')",
        "({query})",
        "{value} + {value}",
        "list_sum({value})",
        "lambda x: x",
        "*",
        "$1",
        "getenv('HOME')",
    ],
    "big": ["10", "1000000", "4000000000", "-1", "9223372036854775807"],
}


def _query(rng, symbol="query", depth=0):
    import re

    options = GRAMMAR[symbol] if depth < 6 else [text for text in GRAMMAR[symbol] if "{" not in text] or ["1"]
    return re.sub(r"{(\w+)}", lambda found: _query(rng, found[1], depth + 1), rng.choice(options))


def test_fuzzed_sql_is_answered_or_refused_within_its_limits(tmp_path):
    publish_selection(tmp_path)
    rng, con = random.Random(8), store.connect(tmp_path, locked=True, timeout_s=2, memory="300MB")
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    until, n, answered = time.monotonic() + LONG, 0, 0
    while n < 60 * ROUNDS or time.monotonic() < until:
        query = _query(rng)
        try:
            con.table(query)
            answered += 1
        except store.StoreError as error:
            assert len(str(error).splitlines()) == 1, query
        n += 1
    assert answered > 5, n
    after = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert [path for path in after if path not in before and ".store-cache" not in str(path)] == []
    print(f"{n} queries, {answered} answered")


# ------------------------------------------------------------------------------------------- fuzzed files


def test_fuzzed_files_of_a_lab_never_stop_it_and_never_bring_a_row_that_nobody_wrote(whole, tmp_path):
    lab, rng = tmp_path / "lab", random.Random(9)
    shutil.copytree(whole, lab)
    as_new(lab)
    before = {name: set(map(str, rows)) for name, rows in rows_of(lab).items()}
    files = sorted(path for path in lab.rglob("*") if path.is_file() and path.name != "rows.json" and path.suffix != ".duckdb")
    files = [path for path in files if not str(path.relative_to(lab)).startswith((".store-cache", "speech"))]
    until, n, unnoticed = time.monotonic() + LONG, 0, []
    while n < 15 * ROUNDS or time.monotonic() < until:
        path = rng.choice(files)
        data = path.read_bytes()
        changed = mangled(data, rng)
        path.write_bytes(changed)
        as_new(lab)
        after = rows_of(lab)
        for name, rows in after.items():
            if name not in ("damaged", "runs"):
                assert set(map(str, rows)) <= before[name], (path, name)
        if changed != data and not after["damaged"] and not store.verify(lab):
            unnoticed.append(path)
        path.write_bytes(data)
        n += 1
    # white space at a document's end is no damage, and a log's last entry is needed by none while its unit is there
    assert all(path.suffix == ".json" or path.parent.name == "log" for path in unnoticed), unnoticed
    assert len(unnoticed) <= n // 5
    print(f"{n} files, {len(unnoticed)} changes of no consequence")
