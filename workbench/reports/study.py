"""The table that joins the seeds of a study: divergences of held-out speech, and answers to every task, seed by seed."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

import store
from salad.errors import SaladError
from salad.evaluation import statistics
from salad.study import conduct, graph, state
from salad.study.config import Study
from workbench.reports.measures import checkpoints, warm_start_in_words
from workbench.reports.tables import ReportTable, as_csv, latex, markdown_table

POOLED_BELOW = 20  # held-out texts of a domain; smaller domains stand together as "smaller domains"
FEWEST_SEEDS = 3  # for a mean with an interval

DIVERGENCES_SQL = """
WITH texts AS (
    SELECT c.contender, y.speech, s.domain, v.sample_id,
        sum(v.n_positions) AS n, sum(v.d * v.n_positions) / sum(v.n_positions) AS d,
        sum(v.m * v.n_positions) / sum(v.n_positions) AS m
    FROM raw.scored AS v JOIN contenders AS c ON v.run_id = c.run_id AND v.step = c.step
        JOIN samples AS s ON s.sample_id = v.sample_id
        JOIN (SELECT DISTINCT synthesis_id, speech FROM syntheses) AS y ON y.synthesis_id = v.synthesis_id
    WHERE v.m IS NOT NULL AND v.n_positions > 0 AND y.speech IN ('heldout', 'heldout_natural')
    GROUP BY ALL
), pooled AS (
    SELECT * REPLACE (CASE WHEN count(DISTINCT sample_id) OVER (PARTITION BY speech, domain) < $1
        THEN 'smaller domains' ELSE coalesce(domain, 'no domain') END AS domain) FROM texts
)
SELECT contender, speech, domain, count(DISTINCT sample_id) AS texts, token_mean(d, n) AS d, token_mean_se(d, n) AS d_se,
    token_mean(m, n) AS m, token_mean_se(m, n) AS m_se
FROM pooled GROUP BY ALL
HAVING domain <> 'smaller domains' OR speech IN (SELECT speech FROM pooled WHERE domain <> 'smaller domains')
UNION ALL
SELECT contender, speech, 'all domains', count(DISTINCT sample_id), token_mean(d, n), token_mean_se(d, n),
    token_mean(m, n), token_mean_se(m, n)
FROM pooled GROUP BY ALL
ORDER BY speech, domain = 'all domains' DESC, domain, contender
"""


@dataclass
class StudyTables:
    """`divergences`: seed, contender, speech, domain, texts, d, d_se, m, m_se (nats a text position after speech,
    token-weighted, standard errors over texts). `answers`: seed, contender, task, modality, items, accuracy, standard_error,
    gap and heard share with their intervals (`salad.evaluation.statistics.summary`). `warm_start`: what every table says."""

    name: str
    divergences: pd.DataFrame
    answers: pd.DataFrame
    warm_start: str
    smoke: bool = False

    def tables(self) -> list[ReportTable]:
        """As people read them; where there are three seeds or more, their mean and its standard error over seeds."""
        out = []
        if len(self.divergences):
            keys = ["speech", "domain", "contender"]
            heads = ["speech", "domain", "contender", "texts"]
            title = "Divergences of held-out speech (nats a text position)"
            out.append(self._joined("divergences", title, self.divergences, keys, heads, ["d", "m"], "texts", 1.0, 3))
        if len(self.answers):
            keys = ["task", "modality", "contender"]
            out.append(self._joined("answers", "Accuracy (per cent, length-normalised)", self.answers, keys, [*keys, "items"],
                                    ["accuracy"], "items", 100.0, 1))  # fmt: skip
        return out

    def _joined(self, name, title, rows, keys, heads, measures, count, scale, digits) -> ReportTable:
        seeds = sorted(rows.seed.unique())
        columns = [f"{m.upper() if len(m) == 1 else m}, seed {seed}" for m in measures for seed in seeds]
        means = [f"{m.upper() if len(m) == 1 else m}, mean" for m in measures] if len(seeds) >= FEWEST_SEEDS else []
        heard = name == "answers" and rows.hearing.notna().any()
        cells = []
        for key, part in rows.groupby(keys, sort=False, dropna=False):
            by_seed = part.set_index("seed")
            row = [str(k) for k in key] + [str(int(part[count].max()))]
            for measure in measures:
                error = "standard_error" if measure == "accuracy" else f"{measure}_se"
                for seed in seeds:
                    if seed not in by_seed.index:
                        row.append("–")
                        continue
                    value, se = by_seed.loc[seed, measure], by_seed.loc[seed, error]
                    row.append(f"{scale * value:.{digits}f}" + (f" ± {scale * se:.{digits}f}" if pd.notna(se) else ""))
            if means:
                for measure in measures:
                    values = scale * by_seed[measure].dropna()
                    row.append(
                        f"{values.mean():.{digits}f} ± {values.std() / len(values) ** 0.5:.{digits}f}"
                        if len(values) >= FEWEST_SEEDS
                        else "–"
                    )
            if heard:
                row.append("; ".join(_heard(r) for r in part.to_dict("records") if pd.notna(r["hearing"])) or "–")
            cells.append(row)
        return ReportTable(name, title, [*heads, *columns, *means, *(["heard share"] if heard else [])], cells)

    def markdown(self) -> str:
        """All tables, with what they rest on."""
        parts = [f"# {self.name}\n", self.warm_start + "\n"]
        if self.smoke:
            parts.append("A smoke run: these figures mean nothing.\n")
        for table in self.tables():
            parts.append(f"## {table.title}\n\n{markdown_table(table.heads, table.cells)}\n")
        parts.append(
            "± one standard error: over texts (divergences) or items (accuracy) within a seed; of a mean, over seeds. The heard "
            "share is (speech − deaf) / (text − deaf) with its 95 % interval by bootstrap over items; where that holds 0, "
            "nothing shows that the contender hears.\n"
        )
        return "\n".join(parts)

    def write(self, lab: Path | str) -> list[Path]:
        """lab/study.md, and each table as CSV and LaTeX in lab/report/study-*; returns what was written."""
        lab = Path(lab)
        files = {lab / "study.md": self.markdown().encode()}
        for table in self.tables():
            files[lab / "report" / f"study-{table.name}.csv"] = as_csv(table)
            files[lab / "report" / f"study-{table.name}.tex"] = latex(table.title, table.heads, table.cells).encode()
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            store.atomic.write_bytes(path, data)
        return list(files)


def _heard(row: dict) -> str:
    """The heard share in per cent with its interval, or what may be said where there is none."""
    if pd.isna(row["heard_share"]):
        return str(row["hearing"])
    low, high = (f"{100 * row[key]:.0f}" if pd.notna(row[key]) else "∞" for key in ("heard_low", "heard_high"))
    zero = "" if pd.notna(row["heard_low"]) and row["heard_low"] > 0 else ", holds 0"
    return f"{100 * row['heard_share']:.0f} ({low} to {high}){zero}"


def _trained(lab: Path, config: Study) -> pd.DataFrame:
    """contender, run_id, step of Stage I and of each arm's Stage II, as far as they are trained."""
    names = ["stage1", *(f"stage2_{arm.name}" for arm in graph.arms_of(config))]
    rows = [(name, *noted) for name in names if (noted := state.noted(lab, name))]
    return pd.DataFrame(rows, columns=["contender", "run_id", "step"]).astype({"contender": str, "run_id": str, "step": "int64"})


def study_tables(lab: Path | str, config: Study) -> StudyTables:
    """What every seed's lab has measured so far, joined."""
    divergences, answers = [], []
    for seed, path in conduct.all_labs(lab, config):
        con = store.connect(path)
        con.register("contenders", _trained(path, config))
        found = con.execute(DIVERGENCES_SQL, [POOLED_BELOW]).df()
        divergences.append(found.assign(seed=seed))
        for row in checkpoints(con).to_dict("records"):
            step = None if pd.isna(row["step"]) else int(row["step"])
            try:
                rows = statistics.summary(path, row["contender"], row["who"], step, [task.name for task in config.tasks])
            except SaladError:
                continue  # it has answered none of this study's tasks
            answers.append(pd.DataFrame(rows).assign(seed=seed, contender=row["contender"]))
    first = conduct.labs_of(lab, config)[0]
    empty = pd.DataFrame({"seed": []})
    record = json.loads((first / "study.json").read_text()) if (first / "study.json").exists() else {}
    smoke = bool(record) and record["config"].get("text", {}).get("limit") is not None
    return StudyTables(
        config.name,
        pd.concat(divergences, ignore_index=True) if divergences else empty,
        pd.concat(answers, ignore_index=True) if answers else empty,
        warm_start_in_words(first) or "The adapter was trained from scratch in Stage I; there was no warm start.",
        smoke,
    )
