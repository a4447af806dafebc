"""A selection's texts: which there are, in which order people read them, and all that is shown of one."""

import duckdb
import pandas as pd

from workbench.review.held import of_lab, texts_with_verdicts, verdicts_of

QUEUES = {
    "worst": "worst first: the highest divergence, then the highest character error rate",
    "random": "random: in an order that is the same for everybody",
    "flagged": "flagged first: texts and syntheses with a flag",
    "disagreement": "reviewers' disagreement: one says keep, another drop",
    "audit": "audit: the cluster's audit draw, see below",
}
_KEYS = {
    "worst": "d DESC NULLS LAST, cer DESC NULLS LAST, d_cluster DESC NULLS LAST, draw",
    "random": "md5(sample_id)",
    "flagged": "len(flags) DESC, d DESC NULLS LAST, draw",
    "disagreement": "d DESC NULLS LAST, draw",
    "audit": "md5(selection_id || sample_id)",
    "draw": "draw",
    "divergence": "d DESC NULLS LAST, draw",
    "character error rate": "cer DESC NULLS LAST, draw",
}


def texts(
    con: duckdb.DuckDBPyConnection,
    selection_id: str,
    cluster_ids: list[int] = (),
    search: str = "",
    order: str = "divergence",
    page: int = 0,
    size: int = 12,
    standing: str = "all",
    within: dict | None = None,
) -> tuple[pd.DataFrame, int]:
    """One page of a selection's texts, and how many there are.

    `cluster_ids` empty means all; `search` is looked for in the text, without regard to case; `order` is a key
    of _KEYS; `standing` is "all", "kept" or "dropped"; `within` ({"cer": (low, high), "d": (low, high)}) narrows them.
    """
    where, values = _where(cluster_ids, search, standing, within)
    source = texts_with_verdicts(con, selection_id)
    total = con.execute(f"{source} SELECT count(*) FROM texts WHERE {where}", values).fetchone()[0]
    rows = con.execute(
        f"""{source} SELECT * FROM texts WHERE {where} ORDER BY {_KEYS[order]}, sample_id
            LIMIT {int(size)} OFFSET {int(page) * int(size)}""",
        values,
    ).df()
    return rows, total


def _where(cluster_ids=(), search="", standing="all", within=None):
    parts, values = ["true"], {}
    if len(cluster_ids):
        parts.append("cluster_id IN (SELECT unnest($clusters))")
        values["clusters"] = [int(c) for c in cluster_ids]
    if search:
        parts.append("contains(lower(text), lower($search))")
        values["search"] = search
    if standing != "all":
        parts.append("dropped" if standing == "dropped" else "NOT dropped")
    for name in {"cer", "d"} & set(within or {}):
        parts.append(f"{name} BETWEEN $low_{name} AND $high_{name}")
        values |= {f"low_{name}": float(within[name][0]), f"high_{name}": float(within[name][1])}
    return " AND ".join(parts), values


def queue(
    con: duckdb.DuckDBPyConnection,
    selection_id: str,
    order: str = "worst",
    cluster_ids: list[int] = (),
    reviewer: str | None = None,
    unjudged: bool = False,
    limit: int = 5000,
    search: str = "",
    per_cluster: int = 20,
    within: dict | None = None,
) -> list[str]:
    """Sample ids in the order in which to read them; with `unjudged`, without those that `reviewer` has judged.

    The order "audit" holds each cluster's first `per_cluster` texts, the same that `audit` counts.
    """
    where, values = _where(cluster_ids, search, within=within)
    if order == "flagged":
        where += " AND len(flags) > 0"
    if order == "disagreement":
        where += " AND dropped AND kept"
    if unjudged:
        where += f" AND sample_id NOT IN (SELECT sample_id FROM {verdicts_of(con, selection_id)[0]} WHERE reviewer = $reviewer)"
        values["reviewer"] = reviewer
    first = (
        f"""QUALIFY row_number() OVER (PARTITION BY cluster_id ORDER BY {_KEYS["audit"]}, sample_id)
                <= {int(per_cluster)}"""
        if order == "audit"
        else ""
    )
    rows = con.execute(
        f"{texts_with_verdicts(con, selection_id)} SELECT sample_id FROM (SELECT * FROM texts {first}) WHERE {where} "
        f"ORDER BY {_KEYS[order]}, sample_id LIMIT {int(limit)}",
        values,
    )
    return [row[0] for row in rows.fetchall()]


def dicts(result: duckdb.DuckDBPyConnection) -> list[dict]:
    """The rows of a DuckDB result, by the names of their columns."""
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def card(con: duckdb.DuckDBPyConnection, selection_id: str, sample_id: str) -> dict | None:
    """All the listening widget shows of one text: the text, its speech, its words' times, what stands about it,
    and for each token the divergences (nats) and both models' top tokens. None if the text is not there."""
    rows = con.execute(
        f"{texts_with_verdicts(con, selection_id)} SELECT * FROM texts WHERE sample_id = $sample",
        {"sample": sample_id},
    )
    cards = dicts(rows)
    if not cards:
        return None
    row = cards[0]
    row["said"] = (
        con.execute(
            f"""SELECT reviewer, verdict, reason FROM {verdicts_of(con, selection_id)[0]}
           WHERE sample_id = ? ORDER BY "at", reviewer""",
            [sample_id],
        )
        .df()
        .to_dict("records")
    )
    row["words"] = read_speech(con, row["synthesis_id"])["words"]
    drawn = con.execute("SELECT run_id, step FROM selections WHERE selection_id = ?", [selection_id]).fetchone()
    row["tokens"] = read_tokens(con, *drawn, sample_id, row["synthesis_id"])
    return row


def read_speech(con: duckdb.DuckDBPyConnection, synthesis_id: str | None) -> dict:
    """tts, voice, cer, duration_s and flags of a synthesis, and its words as [char_start, char_end, start_s, end_s]."""
    columns = ("tts", "voice", "cer", "duration_s", "flags", "words")
    row = con.execute(f"SELECT {', '.join(columns)} FROM syntheses WHERE synthesis_id = ?", [synthesis_id]).fetchone()
    synthesis = dict(zip(columns, row or [None] * len(columns), strict=True))
    times = ("char_start", "char_end", "start_s", "end_s")
    words = [[word[key] for key in times] for word in synthesis["words"] or []]
    return synthesis | {"flags": synthesis["flags"] or [], "words": words}


def read_tokens(con: duckdb.DuckDBPyConnection, run_id: str, step: int, sample_id: str, synthesis_id: str | None) -> list[dict]:
    """A text's tokens as a checkpoint scored them, in order, with both models' likeliest tokens as [token, p]."""
    tokens = dicts(
        con.execute(
            """
        SELECT token, char_start, char_end, start_s, end_s, d, m, f, after_speech, teacher_top AS teacher,
            student_top AS student
        FROM raw.scored_tokens
        WHERE run_id = ? AND step = ? AND sample_id = ? AND synthesis_id = ? ORDER BY position, pattern""",
            [run_id, step, sample_id, synthesis_id],
        )
    )
    for token in tokens:
        for side in ("teacher", "student"):
            token[side] = [[t["token"], t["p"]] for t in token[side] or []]
    return tokens


def top_divergence(con: duckdb.DuckDBPyConnection) -> float:
    """Where the ribbon's colour is fullest: the lab's 98th percentile of D per token (of M where nothing has a teacher), so
    that it is one scale for every text of a lab."""
    top = of_lab(con, "SELECT coalesce(quantile_cont(d, 0.98), quantile_cont(m, 0.98)) FROM raw.scored_tokens")
    return float(top) if top else 1.0
