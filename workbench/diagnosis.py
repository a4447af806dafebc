"""What `salad diagnose` has found, as tables: diagnosed models side by side on the same texts, and the clusters in which one
hears worst. All of it is read from the store's tables, so it holds for models that no run of the lab has trained."""

from typing import NamedTuple

import duckdb
import numpy as np
import pandas as pd

DRAWS = 2000  # of a bootstrap over texts
CLUSTERS = 10


class Diagnosed(NamedTuple):
    """A diagnosed model: its label, the run and step of its rows, and the runs of its controls (`deaf`, `silent`)."""

    label: str
    run_id: str
    step: int
    controls: dict[str, str]


def diagnosed(con: duckdb.DuckDBPyConnection) -> list[Diagnosed]:
    """The diagnosed models of a lab, the newest first. Where several have one name, their runs stand behind it."""
    rows = con.execute("""
        SELECT run_id, config->>'diagnosed', config->>'condition', (config->>'checkpoint_step')::BIGINT,
            [config->>'diagnosed', config->>'fingerprint', config->>'base', config->>'instruction', config->>'checkpoint_step',
             parent_run_id] AS who
        FROM runs WHERE kind = 'diagnose' AND run_id IN (SELECT run_id FROM raw.scored)
        ORDER BY started_at DESC NULLS LAST, run_id""").fetchall()
    names = [name for _, name, condition, *_ in rows if condition == "speech"]
    out = []
    for run, name, condition, step, who in rows:
        if condition == "speech":
            label = name if names.count(name) == 1 else f"{name} · {run}"
            out.append(Diagnosed(label, run, step, {c: r for r, _, c, _, other in rows if c != "speech" and other == who}))
    return out


def read(con: duckdb.DuckDBPyConnection, sides: list[Diagnosed]) -> pd.DataFrame:
    """A row for each text and run of `sides` and their controls: run_id, sample_id, n tokens, chars (of the answer), and the
    sums of m, d and f over the tokens (a text's recordings count as one, their mean)."""
    runs = [run for side in sides for run in (side.run_id, *side.controls.values())]
    return con.execute(
        """WITH heard AS (
            SELECT run_id, step, sample_id, synthesis_id, n_positions AS n, m * n AS m, d * n AS d, f * n AS f
            FROM raw.scored WHERE run_id IN (SELECT unnest($runs)) AND span_max = 0
        ), lengths AS (
            SELECT run_id, step, sample_id, max(char_end) - min(char_start) AS chars FROM raw.scored_tokens
            WHERE run_id IN (SELECT unnest($runs)) AND span_max = 0 GROUP BY ALL
        )
        SELECT run_id, sample_id, avg(n) AS n, any_value(chars) AS chars, avg(m) AS m, avg(d) AS d, avg(f) AS f
        FROM heard JOIN lengths USING (run_id, step, sample_id) GROUP BY ALL ORDER BY ALL""",
        {"runs": runs},
    ).df()


def compared(con: duckdb.DuckDBPyConnection, sides: list[Diagnosed], samples: list[str] | None = None) -> pd.DataFrame:
    """Diagnosed models on the texts that all of them have (of `samples`, by default all), a row each.

    model, texts, tokens; m with m_low and m_high, nats a token; per_char, nats a character, which compares models whose
    tokenizers differ; difference with its interval, of nats a character, to the first model's; deaf and silent, M of the
    controls; heard with its interval, 1 − M / M(deaf), the share of what a deaf one lacks that hearing gives; d and f. Intervals
    are 95 %, by a paired bootstrap over texts. Empty where they have no text in common."""
    rows = read(con, sides)
    rows = rows if samples is None else rows[rows.sample_id.isin(samples)]
    by = {run: part.set_index("sample_id") for run, part in rows.groupby("run_id")}
    common = None
    for side in sides:
        there = set(by[side.run_id].index) if side.run_id in by else set()
        common = there if common is None else common & there
    order = sorted(common or ())
    if not order:
        return pd.DataFrame()
    times = np.random.default_rng(0).multinomial(len(order), np.full(len(order), 1 / len(order)), DRAWS)
    out, first = [], None
    for side in sides:
        own = by[side.run_id].loc[order]
        value, low, high = _ratio(own.m, own.n, times)
        row = {"model": side.label, "texts": len(order), "tokens": round(own.n.sum()), "m": value, "m_low": low, "m_high": high}
        row["per_char"] = own.m.sum() / own.chars.sum()
        if first is None:
            first = own
        else:
            drawn = (times @ own.m) / (times @ own.chars) - (times @ first.m) / (times @ first.chars)
            row["difference"] = row["per_char"] - first.m.sum() / first.chars.sum()
            row["difference_low"], row["difference_high"] = np.quantile(drawn, (0.025, 0.975))
        for control, run in side.controls.items():
            other = by[run].reindex(order) if run in by else None
            if other is None or other.m.isna().any():
                continue
            row[control] = other.m.sum() / other.n.sum()
            if control == "deaf":
                row["heard"], row["heard_low"], row["heard_high"] = _share(own.m, other.m, times)
        for measure in ("d", "f"):
            if own[measure].notna().all():
                row[measure] = own[measure].sum() / own.n.sum()
        out.append(row)
    return pd.DataFrame(out)


def _ratio(total: pd.Series, n: pd.Series, times: np.ndarray) -> tuple[float, float, float]:
    low, high = np.quantile((times @ total) / (times @ n), (0.025, 0.975))
    return total.sum() / n.sum(), float(low), float(high)


def _share(speech: pd.Series, deaf: pd.Series, times: np.ndarray) -> tuple[float, float, float]:
    """1 − M / M(deaf) with its interval; NaN where a deaf control diverges nowhere."""
    if not deaf.sum() > 0:
        return np.nan, np.nan, np.nan
    low, high = np.quantile(1 - (times @ speech) / (times @ deaf), (0.025, 0.975))
    return 1 - speech.sum() / deaf.sum(), float(low), float(high)


def worst_clusters(con: duckdb.DuckDBPyConnection, side: Diagnosed, k: int = CLUSTERS,
                   samples: list[str] | None = None) -> pd.DataFrame:  # fmt: skip
    """The `k` clusters of the newest clustering in which a model hears worst, by M a token, the worst first.

    cluster_id, terms, texts, m with low and high (95 %, over texts), deaf (M of its deaf control on the same texts), cer (mean
    of its recordings), and the cluster's worst text: sample_id, synthesis_id, text, its m and speech_s."""
    rows = con.execute(
        """WITH heard AS (
            SELECT sample_id, sum(m * n_positions) / sum(n_positions) AS m, avg(n_positions) AS n,
                arg_max(synthesis_id, m) AS synthesis_id, avg(speech_s) AS speech_s
            FROM raw.scored WHERE run_id = $run AND step = $step GROUP BY ALL
        ), deaf AS (
            SELECT sample_id, sum(m * n_positions) / sum(n_positions) AS deaf, avg(n_positions) AS n_deaf
            FROM raw.scored WHERE run_id = $deaf AND step = $step GROUP BY ALL
        )
        SELECT a.cluster_id, any_value(k.terms[1:5]) AS terms, count(*) AS texts, token_mean(h.m, h.n) AS m,
            token_mean_half_95(h.m, h.n) AS half, token_mean(d.deaf, d.n_deaf) AS deaf, avg(y.cer) AS cer,
            arg_max(h.sample_id, h.m) AS sample_id, arg_max(h.synthesis_id, h.m) AS synthesis_id, max(h.m) AS worst_m,
            arg_max(h.speech_s, h.m) AS speech_s
        FROM heard AS h JOIN current_assignments AS a USING (sample_id)
            JOIN current_clusters AS k ON k.cluster_id = a.cluster_id
            LEFT JOIN deaf AS d USING (sample_id) LEFT JOIN syntheses AS y ON y.synthesis_id = h.synthesis_id
        WHERE $samples IS NULL OR h.sample_id IN (SELECT unnest($samples))
        GROUP BY a.cluster_id ORDER BY m DESC, a.cluster_id LIMIT $k""",
        {"run": side.run_id, "step": side.step, "deaf": side.controls.get("deaf"), "samples": samples, "k": k},
    ).df()
    rows["low"], rows["high"] = np.maximum(rows.m - rows.half, 0), rows.m + rows.half
    texts = con.execute("SELECT sample_id, text FROM samples WHERE sample_id IN (SELECT unnest(?))", [rows.sample_id.tolist()])
    rows["text"] = rows.sample_id.map(dict(texts.fetchall()))
    return rows.drop(columns="half")


def assigned(con: duckdb.DuckDBPyConnection, samples: list[str]) -> int:
    """How many of these texts the newest clustering holds."""
    return con.execute(
        "SELECT count(DISTINCT sample_id) FROM current_assignments WHERE sample_id IN (SELECT unnest(?))", [samples]
    ).fetchone()[0]


# --- in words ---


def interval(value: float, low: float, high: float, digits: int = 3) -> str:
    """1.234 [1.100, 1.350]; the value alone where one text gives no interval, – where there is none."""
    if value is None or not np.isfinite(value):
        return "–"
    words = f"{value:.{digits}f}"
    return words if low is None or not np.isfinite(low) else f"{words} [{low:.{digits}f}, {high:.{digits}f}]"


def model_rows(table: pd.DataFrame) -> list[dict[str, str]]:
    """`compared` as people read it: a dict of words a row, without columns that no model has."""
    out = []
    for row in table.to_dict("records"):
        cells = {
            "model": row["model"], "texts": str(row["texts"]), "tokens": f"{row['tokens']:,}",
            "M": interval(row["m"], row["m_low"], row["m_high"]), "M a character": f"{row['per_char']:.4f}",
        }  # fmt: skip
        if len(table) > 1:
            change = [row.get(name, np.nan) for name in ("difference", "difference_low", "difference_high")]
            cells["against the first"] = interval(*change, digits=4)
        for name in ("deaf", "silent"):
            cells[f"M {name}"] = interval(row.get(name, np.nan), np.nan, np.nan)
        cells["heard share"] = interval(*(row.get(name, np.nan) for name in ("heard", "heard_low", "heard_high")), digits=2)
        for name in ("d", "f"):
            cells[name.upper()] = interval(row.get(name, np.nan), np.nan, np.nan)
        out.append(cells)
    empty = [name for name in out[0] if all(row[name] == "–" for row in out)] if out else []
    return [{name: value for name, value in row.items() if name not in empty} for row in out]


def cluster_rows(table: pd.DataFrame, excerpt: int = 60) -> list[dict[str, str]]:
    """`worst_clusters` as people read it."""
    out = []
    for row in table.to_dict("records"):
        text = " ".join((row["text"] or "").split())
        out.append({
            "cluster": str(row["cluster_id"]), "its words": ", ".join(list(row["terms"]) if row["terms"] is not None else []),
            "texts": str(row["texts"]), "M": interval(row["m"], row["low"], row["high"]),
            "M deaf": interval(row["deaf"], np.nan, np.nan), "CER": interval(row["cer"], np.nan, np.nan, 2),
            "worst text": text if len(text) <= excerpt else text[: excerpt - 1] + "…",
        })  # fmt: skip
    empty = [name for name in out[0] if all(row[name] == "–" for row in out)] if out else []
    return [{name: value for name, value in row.items() if name not in empty} for row in out]


def verdict(row: dict) -> str:
    """Whether a row of `compared` shows that the model hears, in a sentence."""
    if not np.isfinite(row.get("heard", np.nan)):
        return "There is no deaf control beside it, so nothing shows how much of M is not hearing at all."
    if row["heard_low"] > 0:
        share, low, high = (f"{row[name]:.0%}" for name in ("heard", "heard_low", "heard_high"))
        return f"It hears: its M is {share} [{low}, {high}] below that with another text's recording."
    if row["heard_high"] < 0:
        return "Its M is higher than with another text's recording: what it hears leads it astray."
    return "Nothing shows that it hears: its M is not surely below that with another text's recording."
