"""The questions behind notebooks/divergences.py: where and why checkpoints diverge. All of it is SQL over the store's
views; a mean is token-weighted, sum(x·n)/sum(n), and its 95 % interval is over texts."""

import weakref
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pandas as pd

from workbench.review import dicts, read_speech, read_tokens

MEASURES = {
    "m": "misalignment M: the student on text against itself on speech",
    "d": "distillation divergence D: the teacher on text against the student on speech",
    "f": "forgetting F: the teacher against the student, both on text",
}
LOGGED = {"d_speech": "d", "d_text": "f", "m": "m"}  # the measure beside each logged curve; nothing logs M
GROUPS = {"domain": "domain", "corpus": "corpus", "cluster": "cluster"}
KINDS = ("name", "number", "content word", "function word", "sentence start", "rest of a word", "punctuation", "end of turn")
FUNCTION_WORDS = """
    a an the this that these those and or but nor so if as of in on at by for from to with into over under
    about than then it its he she they we you i him her them his their our your my is are was were be been
    being am do does did has have had not no who what which when where how why there here will would can could
    may might shall should must one all each some any more most also very
""".split()
ANSWER = "\n\n"  # between a text and its answer, where both are shown
_OF = "($corpus IS NULL OR corpus = $corpus)"
TEXTS = 20_000  # texts whose tokens are read for figures by token: a fixed random part of a larger lab


_held: "weakref.WeakKeyDictionary[duckdb.DuckDBPyConnection, dict]" = weakref.WeakKeyDictionary()


class ScoredCheckpoint(NamedTuple):
    """A scored checkpoint, and how figures call it."""

    run_id: str
    step: int
    label: str


def checkpoints(con: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    """The checkpoints and diagnosed models that have divergences: run_id, step, contender, label, n_texts, diagnosis
    (whether the whole prompt was speech: `salad diagnose`); Stage I first, diagnoses last, then by time."""
    return con.execute("""
        WITH scored AS (SELECT run_id, step, count(DISTINCT sample_id) AS n_texts FROM raw.scored GROUP BY ALL)
        SELECT s.*, coalesce(r.config->>'contender', r.kind, 'run') AS contender,
            format('{} · {} · {}', coalesce(r.config->>'contender', r.kind, 'run'),
                if(r.kind = 'diagnose', 'diagnosis', 'step ' || s.step), s.run_id) AS label,
            r.kind IS NOT DISTINCT FROM 'diagnose' AS diagnosis
        FROM scored AS s LEFT JOIN runs AS r USING (run_id)
        ORDER BY diagnosis, r.kind IS DISTINCT FROM 'stage1', r.started_at, s.run_id, s.step""").df()


def two(listed: pd.DataFrame) -> tuple[str, str]:
    """Labels of the two checkpoints to compare first: the first one, and the newest of Stage II's active arm. Diagnoses are
    compared with each other, where there is nothing else."""
    listed = listed if listed.diagnosis.all() else listed[~listed.diagnosis]
    arm = listed[listed.contender == "stage2_active"]
    return listed.label.iloc[0], (arm if len(arm) else listed).label.iloc[-1]


def read(con: duckdb.DuckDBPyConnection, chosen: list[ScoredCheckpoint]) -> str:
    """Bring the chosen checkpoints' texts into a temporary table and return its name: one row per checkpoint and
    text, m, d over n and f over n_f positions, with label, domain, corpus and (newest clustering's) cluster."""
    name = "scored_" + "_".join(f"{c.run_id}_{c.step}" for c in chosen)
    of = " UNION ALL ".join("SELECT ? AS run_id, ?::BIGINT AS step, ? AS label" for _ in chosen)
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE "{name}" AS
        WITH chosen AS ({of}), texts AS (
            SELECT c.label, v.run_id, v.step, v.sample_id, min(v.synthesis_id) AS synthesis_id,
                sum(n_positions) FILTER (m IS NOT NULL) AS n, sum(n_positions_f) FILTER (f IS NOT NULL) AS n_f,
                token_mean(m, n_positions) AS m,
                token_mean(d, n_positions) AS d,
                token_mean(f, n_positions_f) AS f
            FROM raw.scored AS v JOIN chosen AS c ON v.run_id = c.run_id AND v.step = c.step GROUP BY ALL
        )
        SELECT t.*, coalesce(s.domain, '–') AS domain, coalesce(s.corpus, '–') AS corpus, a.cluster_id
        FROM texts AS t LEFT JOIN samples AS s USING (sample_id)
        LEFT JOIN current_assignments AS a ON a.sample_id = t.sample_id""",
        [value for c in chosen for value in c],
    )
    held = _held.setdefault(con, {})
    for key in [key for key in held if key[0] == f'"{name}"' and key[-1] == "made"]:
        del held[key]  # what was summed of an earlier reading
    held.pop("both", None)
    return f'"{name}"'


def of_checkpoints(con: duckdb.DuckDBPyConnection, measure: str, runs: list[str] | None = None) -> pd.DataFrame:
    """run (contender and id), step, corpus, n_texts, value (token-weighted mean), low, high (95 % over texts) of every
    scored checkpoint of `runs`, by default all, and each corpus that it was scored on."""
    _n(measure)
    rows = con.execute(
        f"""WITH texts AS (
            SELECT run_id, step, coalesce(corpus, '–') AS corpus, sample_id, sum(n) AS n, token_mean(value, n) AS value
            FROM (SELECT run_id, step, sample_id, {measure} AS value,
                n_positions{"_f" if measure == "f" else ""} AS n FROM raw.scored
                WHERE {measure} IS NOT NULL AND ($runs IS NULL OR run_id IN (SELECT unnest($runs))))
            LEFT JOIN samples USING (sample_id) GROUP BY ALL
        )
        SELECT any_value(coalesce(config->>'contender', kind)) || ' ' || run_id AS run, texts.step AS step,
            corpus, count(*) AS n_texts, token_mean(value, n) AS value, token_mean_half_95(value, n) AS half
        FROM texts JOIN runs USING (run_id) WHERE n > 0 GROUP BY run_id, texts.step, corpus ORDER BY ALL""",
        {"runs": runs},
    ).df()
    rows["low"], rows["high"] = np.maximum(rows.value - rows.half, 0), rows.value + rows.half
    return rows.drop(columns="half")


def corpora(con: duckdb.DuckDBPyConnection, scored: str) -> list[str]:
    """The corpora whose texts every chosen checkpoint has scored, the one with the most texts first."""
    rows = con.execute(f"""SELECT corpus FROM {scored} GROUP BY corpus
        HAVING count(DISTINCT label) = (SELECT count(DISTINCT label) FROM {scored}) ORDER BY count(*) DESC, corpus""")
    return [row[0] for row in rows.fetchall()]


def _n(measure: str) -> str:
    if measure not in MEASURES:
        raise ValueError(f"{measure}: one of {', '.join(MEASURES)}")
    return "n_f" if measure == "f" else "n"


def facts(con: duckdb.DuckDBPyConnection, scored: str, measure: str, corpus: str | None = None) -> pd.DataFrame:
    """label, n_texts, mean (token-weighted), low, high (95 %), mean_per_text and median of each checkpoint."""
    return _intervals(con, scored, measure, corpus, "'all'")


def by_group(con: duckdb.DuckDBPyConnection, scored: str, measure: str, group: str, corpus: str | None = None) -> pd.DataFrame:
    """label, group, mean, low, high (95 %), n by domain, corpus or cluster (without unclustered texts); the highest
    group first. `group` has the cluster's words beside its number."""
    if group == "cluster":
        words = "cluster_id || ' ' || coalesce((SELECT array_to_string(terms[1:4], ', ') FROM current_clusters AS k"
        return _intervals(con, scored, measure, None, f"{words} WHERE k.cluster_id = x.cluster_id), '')", "cluster_id")
    return _intervals(con, scored, measure, None if group == "corpus" else corpus, GROUPS[group])


def _intervals(con, scored, measure, corpus, group, needs="label") -> pd.DataFrame:
    table = con.execute(
        f"""WITH texts AS (
            SELECT label, {group} AS "group", {measure} AS value, {_n(measure)} AS n FROM {scored} AS x
            WHERE {measure} IS NOT NULL AND {_n(measure)} > 0 AND {needs} IS NOT NULL AND {_OF}
        )
        SELECT label, "group", count(*) AS n_texts, sum(n)::BIGINT AS n_positions, token_mean(value, n) AS mean,
            avg(value) AS mean_per_text, median(value) AS median, token_mean_half_95(value, n) AS half
        FROM texts GROUP BY label, "group" ORDER BY label, mean DESC, "group" """,
        {"corpus": corpus},
    ).df()
    table["low"], table["high"] = np.maximum(table["mean"] - table.half, 0), table["mean"] + table.half
    return table


def histogram(
    con: duckdb.DuckDBPyConnection, scored: str, measure: str, corpus: str | None = None, bins: int = 40
) -> pd.DataFrame:
    """label, low, high, n, share: texts counted in even bins from 0 to the 99.5th percentile; the last takes the
    rest."""
    top = con.execute(f"SELECT quantile_cont({measure}, 0.995) FROM {scored} WHERE {_OF}", {"corpus": corpus}).fetchone()[0]
    return con.execute(
        f"""SELECT label, i * $width AS low, (i + 1) * $width AS high, count(*) AS n,
            count(*) / sum(count(*)) OVER (PARTITION BY label) AS share
        FROM (SELECT label, least(floor({measure} / $width), $bins - 1) AS i FROM {scored}
            WHERE {measure} IS NOT NULL AND {_OF})
        GROUP BY label, i ORDER BY label, i""",
        {"corpus": corpus, "width": (top or 1.0) / bins, "bins": bins},
    ).df()


def _sums(con, scored: str, corpus: str | None) -> str:
    """Name of a temporary table of what the positions of the chosen checkpoints add up to: for each measure x its
    n_x, sum_x and square_x, by label and position (kind null), and by label, kind (of KINDS) and token (position null).

    Made once for a choice of checkpoints and corpus, in one pass over the tokens: another measure costs no other. A
    lab of more than TEXTS texts is read by a fixed random part."""
    held = _held.setdefault(con, {})
    name = held.setdefault((scored, corpus), f'"sums {len(held)}"')
    if (scored, corpus, "made") in held:
        return name
    sums = ", ".join(f"count({x}) AS n_{x}, sum({x}) AS sum_{x}, sum({x} * {x}) AS square_{x}" for x in MEASURES)
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE {name} AS WITH part AS (
            SELECT DISTINCT sample_id FROM {scored} WHERE {_OF} ORDER BY md5(sample_id) LIMIT {TEXTS}
        ), words AS (
            SELECT c.label, v.position, v.token, v.m, v.d, v.f, v.char_start = v.char_end AS of_no_text,
                regexp_extract(ltrim(coalesce(nullif(substr(s.text, v.char_start + 1, 40), ''), v.token)), '^[\\p{{L}}\\p{{N}}]+')
                    AS word,
                substr(s.text, v.char_start, 1) AS before, right(rtrim(left(s.text, v.char_start)), 1) AS ended
            FROM raw.scored_tokens AS v JOIN (SELECT DISTINCT label, run_id, step FROM {scored}) AS c
                ON v.run_id = c.run_id AND v.step = c.step
            JOIN part ON part.sample_id = v.sample_id
            JOIN (SELECT sample_id, text || coalesce(answer, '') AS text FROM samples) AS s ON s.sample_id = v.sample_id
        ), kinds AS (
            SELECT label, position, token, m, d, f, CASE
                WHEN of_no_text THEN 'end of turn'  -- what the chat template adds
                WHEN NOT regexp_matches(token, '[\\p{{L}}\\p{{N}}]') THEN 'punctuation'
                WHEN regexp_matches(token, '\\p{{N}}') THEN 'number'
                WHEN NOT regexp_matches(token, '^\\s') AND regexp_matches(before, '[\\p{{L}}\\p{{N}}]')
                    THEN 'rest of a word'
                WHEN ended IN ('', '.', '?', '!') THEN 'sentence start'
                WHEN lower(word) IN (SELECT unnest($function)) THEN 'function word'
                WHEN regexp_matches(word, '^\\p{{Lu}}') THEN 'name' ELSE 'content word' END AS kind
            FROM words
        )
        SELECT label, position, kind, token, {sums} FROM kinds
        GROUP BY GROUPING SETS ((label, position), (label, kind, token))""",
        {"corpus": corpus, "function": FUNCTION_WORDS},
    )
    held[scored, corpus, "made"] = True
    return name


def _means(rows: pd.DataFrame) -> pd.DataFrame:
    """n, total and square (the sum of squares) become mean with low and high (95 %, at least 0)."""
    n = rows.n.to_numpy(float)
    rows["mean"] = rows.total / n
    spread = np.maximum(rows.square - rows.total * rows["mean"], 0)  # n variances; 0 of one value
    half = 1.96 * np.sqrt(spread / np.maximum(n - 1, 1) / n)
    rows["low"], rows["high"] = np.maximum(rows["mean"] - half, 0), rows["mean"] + half
    return rows.drop(columns=["total", "square"])


def by_position(
    con: duckdb.DuckDBPyConnection, scored: str, measure: str, corpus: str | None = None, bins: int = 24
) -> pd.DataFrame:
    """label, position (middle of a bin, in tokens from the text's start), mean, low, high (95 %), n."""
    _n(measure)
    rows = con.execute(
        f"""WITH sums AS (FROM {_sums(con, scored, corpus)} WHERE position IS NOT NULL),
        top AS (SELECT greatest(1, ceil((max(position) + 1) / $bins)) AS width FROM sums)
        SELECT label, (floor(position / width) + 0.5) * width - 0.5 AS position, sum(n_{measure})::BIGINT AS n,
            sum(sum_{measure}) AS total, sum(square_{measure}) AS square
        FROM sums, top WHERE n_{measure} > 0 GROUP BY label, floor(position / width), width ORDER BY label, position""",
        {"bins": bins},
    ).df()
    return _means(rows)


def by_kind(con: duckdb.DuckDBPyConnection, scored: str, measure: str, corpus: str | None = None) -> pd.DataFrame:
    """label, kind (of KINDS), mean, low, high (95 %), n, share of all that diverges, and examples: the three tokens
    that add most to it."""
    _n(measure)
    rows = con.execute(
        f"""SELECT label, kind, sum(n_{measure})::BIGINT AS n, sum(sum_{measure}) AS total,
            sum(square_{measure}) AS square, total / sum(sum(sum_{measure})) OVER (PARTITION BY label) AS share,
            array_to_string(list(trim(token) ORDER BY sum_{measure} DESC)[1:3], ', ') AS examples
        FROM {_sums(con, scored, corpus)} WHERE kind IS NOT NULL AND n_{measure} > 0
        GROUP BY label, kind ORDER BY label, total / n DESC"""
    ).df()
    return _means(rows)


def _both(con, scored: str, measure: str, a: str, b: str, corpus: str | None) -> str:
    """Name of a temporary table of the texts that both checkpoints scored, with the measure under each and its change;
    made anew when something else is compared, so that another page or order costs no join."""
    _n(measure)
    held, asked = _held.setdefault(con, {}), (scored, measure, a, b, corpus)
    if held.get("both") != asked:
        con.execute(
            f"""CREATE OR REPLACE TEMP TABLE both_scored AS
            SELECT x.sample_id, x.synthesis_id, x.domain, x.corpus, x.cluster_id, x.{measure} AS a, y.{measure} AS b,
                y.{measure} - x.{measure} AS change
            FROM {scored} AS x JOIN {scored} AS y ON x.sample_id = y.sample_id AND x.label = $a AND y.label = $b
            WHERE x.{measure} IS NOT NULL AND y.{measure} IS NOT NULL AND ($corpus IS NULL OR x.corpus = $corpus)""",
            {"a": a, "b": b, "corpus": corpus},
        )
        held["both"] = asked
    return "both_scored"


def compared(
    con: duckdb.DuckDBPyConnection, scored: str, measure: str, a: str, b: str, corpus: str | None = None, cells: int = 40
) -> Any:
    """Texts that both checkpoints scored, counted in cells of a and b (even in the square root) by domain: a, b
    (means of the cell's texts), n. A small lab's cells hold one text each; at most 2,000 rows."""
    both = _both(con, scored, measure, a, b, corpus)
    return con.execute(
        f"""WITH top AS (SELECT sqrt(greatest(max(a), max(b), 1e-6)) AS top FROM {both})
        SELECT domain, avg(a) AS a, avg(b) AS b, count(*) AS n FROM {both}, top
        GROUP BY domain, floor(sqrt(a) / top * $cells), floor(sqrt(b) / top * $cells) ORDER BY n DESC LIMIT 2000""",
        {"cells": cells},
    ).df()


ORDERS = {"a": "worst under A", "b": "worst under B", "rise": "rose most", "fall": "fell most"}
_ORDER = {"a": "a DESC", "b": "b DESC", "rise": "change DESC", "fall": "change"}


def texts(
    con: duckdb.DuckDBPyConnection,
    scored: str,
    measure: str,
    a: str,
    b: str,
    corpus: str | None = None,
    brushed: dict | None = None,
    words: str = "",
    order: str = "b",
    page: int = 0,
    size: int = 10,
) -> tuple:
    """One page of the texts that both scored, and how many there are: sample_id, domain, a, b, change, text, cer.

    `brushed` ({"a": (low, high), "b": (low, high)}) and `words` (any case) narrow it; `order` is a key of ORDERS."""
    values, where = {}, ["true"]
    if words:
        where.append("contains(lower(s.text), lower($words))")
        values["words"] = words
    for axis, (low, high) in (brushed or {}).items():
        where.append(f"{'a' if axis == 'a' else 'b'} BETWEEN $low_{axis} AND $high_{axis}")
        values |= {f"low_{axis}": float(low), f"high_{axis}": float(high)}
    source = f"""WITH texts AS (
        SELECT x.* FROM {_both(con, scored, measure, a, b, corpus)} AS x {"JOIN samples AS s USING (sample_id)" if words else ""}
        WHERE {" AND ".join(where)})"""
    total = con.execute(f"{source} SELECT count(*) FROM texts", values).fetchone()[0]
    rows = con.execute(
        f"""{source}, page AS (
            FROM texts ORDER BY {_ORDER[order]}, sample_id LIMIT {int(size)} OFFSET {int(page) * int(size)})
        SELECT x.*, s.text, y.cer, y.voice FROM page AS x JOIN samples AS s USING (sample_id)
        LEFT JOIN syntheses AS y USING (synthesis_id) ORDER BY {_ORDER[order]}, sample_id""",
        values,
    ).df()
    return rows, total


def card(con: duckdb.DuckDBPyConnection, checkpoint: ScoredCheckpoint, sample_id: str) -> dict | None:
    """What the listening widget shows of a text under a checkpoint (as review.card has it); None if it is not there."""
    # A look into each table by id: a join of them, and the view divergences, would read every text's row to have this one's.
    measured = dicts(
        con.execute(
            """SELECT synthesis_id, token_mean(d, n_positions) AS d, token_mean(m, n_positions) AS m,
            token_mean(f, n_positions_f) AS f
        FROM raw.scored WHERE run_id = ? AND step = ? AND sample_id = ? GROUP BY ALL ORDER BY synthesis_id LIMIT 1""",
            [checkpoint.run_id, checkpoint.step, sample_id],
        )
    )
    texts = dicts(
        con.execute(
            "SELECT sample_id, text, answer, domain, coalesce(flags, []) AS flags FROM samples WHERE sample_id = ?", [sample_id]
        )
    )
    if not measured or not texts:
        return None
    clusters = dicts(
        con.execute(
            """SELECT cluster_id, array_to_string(terms[1:4], ', ') AS terms FROM current_clusters
        WHERE cluster_id = (SELECT cluster_id FROM current_assignments WHERE sample_id = ?)""",
            [sample_id],
        )
    )
    speech = read_speech(con, measured[0]["synthesis_id"])
    tokens = read_tokens(con, checkpoint.run_id, checkpoint.step, sample_id, measured[0]["synthesis_id"])
    text, tokens = with_answer(texts[0]["text"], texts[0].pop("answer"), tokens)
    return {
        "cluster_id": None, "terms": None, **texts[0], **measured[0], **(clusters[0] if clusters else {}), **speech,
        "said": [], "flags": texts[0]["flags"] + speech["flags"], "text": text, "tokens": tokens,
    }  # fmt: skip


def with_answer(text: str, answer: str | None, tokens: list[dict]) -> tuple[str, list[dict]]:
    """A text with its answer behind a blank line, and its tokens with their characters there.

    An answer's characters count on from the text's end. One that no sample holds (a task's right choice) is what its tokens
    spell."""
    beyond = [token for token in tokens if token["char_end"] > len(text)]
    if answer is None:
        answer = "".join(dict((token["char_start"], token["token"]) for token in beyond).values()).lstrip()
    if not answer or not beyond:
        return text, tokens
    shift = len(ANSWER)
    moved = [
        token | {"char_start": token["char_start"] + shift, "char_end": token["char_end"] + shift}
        if token["char_start"] >= len(text) else token
        for token in tokens
    ]  # fmt: skip
    return text + ANSWER + answer, moved


def tokens(cards: dict[str, dict | None]) -> pd.DataFrame:
    """A text's tokens under each checkpoint, of `card` by the checkpoints' labels: label, place, token, m, d, f, teacher
    and student (their likeliest tokens, in words)."""
    parts = []
    for label, card in cards.items():
        for place, token in enumerate(card.get("tokens", []) if card else []):
            sides = {side: ", ".join(f"{t} {p:.0%}" for t, p in token[side][:4]) for side in ("teacher", "student")}
            figures = {key: token[key] for key in ("token", *MEASURES)}
            parts.append({"label": label, "place": place, **figures, **sides})
    return pd.DataFrame(parts, columns=["label", "place", "token", *MEASURES, "teacher", "student"])
