"""What the report's tables hold: the checkpoints that stand for contenders, what was measured of them, their runs, and
every published figure beside them."""

from pathlib import Path

import duckdb
import numpy as np
import pandas as pd

from salad.analysis import ALL, DOMAIN, by_domain, by_group, read_study
from salad.evaluation import statistics
from salad.runs import read_json
from workbench.reports.tables import steady

WARM_START = "warm-start.json"  # in a run's folder: salad.training.warm_start writes it
ORDER = ("teacher", "stage1", "stage2_active", "stage2_uniform")


def measured(lab: Path, con: duckdb.DuckDBPyConnection, chosen: pd.DataFrame) -> tuple[dict, pd.DataFrame]:
    """The study, and Report.rows of the chosen checkpoints, which stand in the view `contenders` afterwards."""
    con.register("contenders", chosen)
    study = read_study(lab, con)
    return study, by_group(con, study)


def checkpoints(con: duckdb.DuckDBPyConnection, runs: list[str] | None = None) -> pd.DataFrame:
    """contender, run_id, step, who (its run or fingerprint): the newest evaluated checkpoint of each contender (by the
    run's end, then its step; of several that are no runs the one that answered most)."""
    statistics.answered(con)
    rows = con.execute(
        """
        SELECT e.contender, e.run_id, e.step, e.who FROM
            (SELECT contender, run_id, step, who, count(*) AS n FROM answered GROUP BY ALL) AS e
            LEFT JOIN runs AS r USING (run_id)
        WHERE $1 IS NULL OR e.run_id IN (SELECT unnest($1)) OR e.contender = 'teacher'
        QUALIFY row_number() OVER (PARTITION BY e.contender
            ORDER BY r.ended_at DESC NULLS LAST, e.step DESC, e.run_id, e.n DESC, e.who) = 1
        """,
        [runs],
    ).df()
    rows["place"] = [ORDER.index(c) if c in ORDER else len(ORDER) for c in rows.contender]
    return rows.sort_values(["place", "contender"]).reset_index(drop=True)


def accuracies(rows: pd.DataFrame) -> pd.DataFrame:
    """Report.rows, one row per modality: contender, group, modality, accuracy, se, n."""
    return pd.concat(
        [
            rows[["contender", "group"]].assign(modality=m, accuracy=rows[m], se=rows[f"{m}_se"], n=rows.n_items)
            for m in ("text", "speech", "cascade")
        ]
    ).dropna(subset=["accuracy"])


def arms_of(con: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    """The runs behind the table: what each trained on, for how long."""
    return con.execute("""
        SELECT c.contender, c.run_id, r.kind, l.strategy, l.gamma, r.step AS steps, r.tokens,
            round(sum(t.seconds) / 3600, 3) AS selected_h, count(t.sample_id) AS texts,
            round(date_diff('second', any_value(r.started_at), any_value(r.ended_at)), 0) AS seconds
        FROM contenders AS c LEFT JOIN runs AS r USING (run_id) LEFT JOIN selections AS l USING (selection_id)
        LEFT JOIN selected_speech AS t USING (selection_id)
        WHERE c.run_id IS NOT NULL GROUP BY ALL ORDER BY any_value(c.place)""").df()


def warm_start_in_words(lab: Path | str) -> str:
    """How the adapters of a lab's Stage I runs were warm-started: steps, seconds and supervision, as a note beside every
    table. Empty if none was."""
    runs_by_warm_start: dict[str, list[str]] = {}
    for path in sorted(Path(lab).glob("runs/r*/config.json")):
        record = read_json(path) or {}
        warm = (record.get("config") or {}).get("adapter", {}).get("warm_start") or {}
        result = read_json(path.parent / WARM_START)
        if record.get("kind") != "stage1" or not warm.get("steps") or result is None:
            continue
        how = (
            "its output for a word is drawn to the mean embedding of the word's tokens, supervised by the word times of Stage "
            "I's own natural speech"
            if warm.get("loss", "words") == "words"
            else "its outputs are trained by CTC over the embeddings of Stage I's own transcripts, without word times"
        )
        runs_by_warm_start.setdefault(f"{warm['steps']:,} steps in {result['seconds']:,.0f} s in which {how}", []).append(
            path.parent.name
        )
    return " ".join(
        f"The adapter of {', '.join(names)} was warm-started before Stage I: {how}. The paper has no such step."
        for how, names in runs_by_warm_start.items()
    )


def published_means(con: duckdb.DuckDBPyConnection) -> pd.DataFrame:
    """The published means over six benchmarks: system, model, modality, accuracy (%), gap (points), source."""
    return con.execute("""SELECT system, model, modality, accuracy, gap, source FROM published
        WHERE task = 'mean' ORDER BY modality DESC, accuracy DESC""").df()


# lm-evaluation-harness's names of the published benchmarks
BENCHMARKS = {
    "StoryCloze": ("storycloze", "xstorycloze_en"), "MMSU": ("mmsu", "voicebench_mmsu"),
    "OpenBookQA": ("openbookqa",), "HellaSwag": ("hellaswag",), "ARC-Challenge": ("arc_challenge",), "PIQA": ("piqa",),
}  # fmt: skip


def beside_published(con: duckdb.DuckDBPyConnection, rows: pd.DataFrame) -> pd.DataFrame:
    """Every published system beside this lab's contenders: system, model, modality, a column for each benchmark and for
    the mean (accuracy in per cent / gap in points; several figures of one source are parted by "; "), source.

    This lab's rows give its own tasks under the benchmarks of their names, and its whole (all domains by P_web) under
    `mean`; they are of another scale of model, data and task. Needs the view `contenders`."""
    heads = [*BENCHMARKS, "mean"]
    figures = con.execute("FROM published").df()
    out = []
    for key, part in figures.groupby(["system", "model", "modality", "source"], sort=False, dropna=False):
        row = dict(zip(("system", "model", "modality", "source"), key, strict=True))
        for head in heads:
            cells = part[(part.task == head) & (part.accuracy.notna() | part.gap.notna())]
            row[head] = "; ".join(_pair(a, g) for a, g in zip(cells.accuracy, cells.gap, strict=True)) or "–"
        out.append(row)
    published_rows = pd.DataFrame(out)
    published_rows["whose"] = "published"
    own = by_domain(con)
    tasks = dict(con.execute(f"SELECT DISTINCT {DOMAIN}, regexp_replace(task, '@.*', '') FROM evaluations").fetchall())
    own_rows = []
    for contender in rows.contender.unique():
        whole = rows[(rows.group == ALL) & (rows.contender == contender)].iloc[0]
        for modality in ("text", "speech", "cascade"):
            if not np.isfinite(whole[modality]):
                continue
            row = {"system": contender, "model": "this lab", "modality": modality, "source": "this lab", "whose": "ours"}
            for head, names in BENCHMARKS.items():
                part = own[(own.contender == contender) & own.domain.map(lambda d, n=names: tasks.get(d) in n)]
                cells = []
                for setting, of in part.groupby(part.domain.str.extract("(@.*)$", expand=False).fillna("")):
                    value, gap = (of[of.measure == x].value for x in (modality, "gap"))
                    pair = _pair(100 * value.mean(), 100 * gap.mean() if modality == "speech" else np.nan)
                    cells += [f"{pair} {setting}".strip()] if len(value) else []
                row[head] = "; ".join(cells) or "–"
            row["mean"] = _pair(100 * whole[modality], 100 * whole.gap if modality == "speech" else np.nan)
            own_rows.append(row)
    made = pd.concat([pd.DataFrame(own_rows), published_rows], ignore_index=True)
    return made[["system", "model", "modality", *heads, "source", "whose"]]


def _pair(accuracy, gap) -> str:
    """accuracy/gap as the paper has it; – for what is not there."""
    a, g = (f"{steady(x):.1f}" if x is not None and np.isfinite(x) else "–" for x in (accuracy, gap))
    return a if g == "–" else f"{a}/{g}"
