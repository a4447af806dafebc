"""What a lab's runs show, read from its store alone: contenders by coverage, M and F as predictors of accuracy, scaling
of M with tokens, strategies at equal hours. `salad report` and `salad findings` print it; docs/findings.md shows it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

import store
from salad.errors import SaladError
from salad.evaluation import statistics
from salad.fits import PowerLaw, Regression, fit_power_law, regression

ALL, GROUPS = "all domains, by P_web", {
    "covered": "covered", "partly covered": "partly covered", "uncovered": "broad", "user": "your texts",
}  # fmt: skip
MEASURES = ("m", "f", "text", "speech", "cascade", "gap")
# an item's domain; with examples before it ("piqa@5") it is another figure, which stands apart
DOMAIN = "coalesce(domain, regexp_replace(task, '@.*', '')) || regexp_extract(task, '@.*')"


# --- what was measured, by domain and by group of domains ---


def read_study(lab: Path | str, con: duckdb.DuckDBPyConnection) -> dict:
    """lab/study.json: P_web's mass and the coverage of each domain. Without it every domain weighs the same."""
    path = Path(lab) / "study.json"
    try:
        study = json.loads(path.read_text())
    except FileNotFoundError:
        study = {}
    except (OSError, RecursionError, ValueError) as error:
        raise store.StoreError(f"{path} is not JSON ({error}); the demo writes it anew") from None
    domains = [d for (d,) in con.execute(f"SELECT DISTINCT {DOMAIN} FROM evaluations ORDER BY 1").fetchall()]
    plain = sorted({plain_domain(d) for d in domains})
    study.setdefault("p_web", {d: 1 / len(plain) for d in plain})
    study.setdefault("coverage", {})
    return {**study, "domains": domains}


def plain_domain(domain: str) -> str:
    """A domain without the setting of its task: "piqa" of "piqa@5"."""
    return domain.partition("@")[0]


def by_domain(con: duckdb.DuckDBPyConnection, heldout: str = "heldout") -> pd.DataFrame:
    """One row per contender, domain and measure: value, standard error, n. Needs the view `contenders`
    (contender, run_id, step, and `who`, a fingerprint, where contenders of one name are no runs).

    Accuracies 0 to 1, length-normalised; the gap is the accuracy on text of the teacher that the contender was made from
    minus speech, paired by item; M and F in nats on the samples of the corpus `heldout`, token-weighted, their standard
    error over texts. Nothing is averaged over settings:
    domains of a task with examples carry its setting ("piqa@5"), and of several synthesisers or recognisers the one that
    most was answered with speaks for all. Makes the view `answers`."""
    _answers(con)
    accuracy = con.execute("""
        SELECT contender, domain, modality AS measure, avg(correct) AS value,
            stddev_samp(correct) / sqrt(count(*)) AS se, count(*) AS n FROM answers GROUP BY ALL
        UNION ALL
        SELECT s.contender, s.domain, 'gap', avg(t.correct - s.correct),
            stddev_samp(t.correct - s.correct) / sqrt(count(*)), count(*)
        FROM answers AS s JOIN teachers AS o USING (contender)
            JOIN teachers_answers AS t ON t.who IS NOT DISTINCT FROM o.who AND t.step IS NOT DISTINCT FROM o.step
                AND (t.task, t.item_id, t.domain) = (s.task, s.item_id, s.domain)
        WHERE s.modality = 'speech' GROUP BY ALL""").df()
    # Per text first: its two patterns are one observation.
    parts = []
    for measure, n in (("m", "n_positions"), ("f", "n_positions_f")):
        parts.append(
            con.execute(
                f"""
            WITH x AS (
                SELECT c.contender, s.domain, v.sample_id, sum(v.{n}) AS n, sum(v.{measure} * v.{n}) / sum(v.{n}) AS x
                FROM raw.scored AS v JOIN contenders AS c ON v.run_id = c.run_id AND v.step = c.step
                JOIN samples AS s ON s.sample_id = v.sample_id
                WHERE v.{measure} IS NOT NULL AND v.{n} > 0 AND s.corpus = $corpus GROUP BY ALL
            )
            SELECT contender, domain, '{measure}' AS measure, token_mean(x, n) AS value, token_mean_se(x, n) AS se,
                count(*) AS n
            FROM x GROUP BY contender, domain""",
                {"corpus": heldout},
            ).df()
        )
    return pd.concat([accuracy, *parts], ignore_index=True)


def _answers(con) -> None:
    """The views `answers` (of the contenders) and `teachers_answers`, each item once, and the table `teachers`: whose
    text each contender's gap is from."""
    statistics.answered(con)
    named = con.execute("SELECT DISTINCT * FROM contenders").df()
    con.execute("""CREATE OR REPLACE TEMP TABLE sides_known
        (contender VARCHAR, who VARCHAR, step BIGINT, taught BOOLEAN, teacher_who VARCHAR, teacher_step BIGINT)""")
    for row in named.to_dict("records"):
        known = [value for value in (row.get("who"), row["run_id"]) if value is not None and value == value]
        step = None if pd.isna(row["step"]) else int(row["step"])
        side = statistics.identity(con, row["contender"], known[0] if known else None, step)
        teacher = statistics.teacher_of(con, side)
        con.execute("INSERT INTO sides_known VALUES (?, ?, ?, ?, ?, ?)", [*side, teacher is not None, *(teacher or side)[1:]])
    con.execute(f"""CREATE OR REPLACE TEMP VIEW answers_of_any_setting AS
        SELECT e.contender, e.who, e.step, e.modality, e.task, e.tts, e.asr, e.item_id, e.correct_norm, {DOMAIN} AS domain
        FROM answered AS e WHERE e.correct_norm IS NOT NULL""")
    con.execute("""CREATE OR REPLACE TEMP VIEW answers AS
        WITH shown AS (
            SELECT e.* FROM answers_of_any_setting AS e JOIN sides_known AS k ON e.contender = k.contender
                AND e.who IS NOT DISTINCT FROM k.who AND e.step IS NOT DISTINCT FROM k.step
        ),
        chosen AS (
            SELECT task, modality, tts, asr FROM shown GROUP BY task, modality, tts, asr
            QUALIFY row_number() OVER (PARTITION BY task, modality ORDER BY count(*) DESC, tts, asr) = 1
        )
        SELECT contender, modality, domain, task, item_id, avg(correct_norm::INT) AS correct
        FROM shown SEMI JOIN chosen ON shown.task = chosen.task AND shown.modality = chosen.modality
            AND shown.tts IS NOT DISTINCT FROM chosen.tts AND shown.asr IS NOT DISTINCT FROM chosen.asr
        GROUP BY ALL""")
    con.execute("""CREATE OR REPLACE TEMP VIEW teachers AS
        SELECT contender, teacher_who AS who, teacher_step AS step FROM sides_known WHERE taught""")
    con.execute("""CREATE OR REPLACE TEMP VIEW teachers_answers AS
        SELECT who, step, task, domain, item_id, avg(correct_norm::INT) AS correct FROM answers_of_any_setting
        WHERE contender = 'teacher' AND modality = 'text' GROUP BY ALL""")


def hearing(con: duckdb.DuckDBPyConnection, weights: Mapping[str, float], contender: str) -> statistics.Heard | None:
    """The heard share of a contender over domains with weights, (speech - deaf) / (text - deaf), an item weighing its
    domain's share; None where it was not asked deaf. Needs the view `answers`, which `by_domain` makes."""
    rows = con.execute(
        """SELECT domain, modality, domain || '/' || task || '/' || item_id AS item, correct FROM answers
        WHERE contender = ? AND modality IN ('text', 'speech', 'deaf')""",
        [contender],
    ).df()
    rows = rows[rows.domain.isin([domain for domain, weight in weights.items() if weight > 0])]
    by = {name: dict(zip(part.item, part.correct, strict=True)) for name, part in rows.groupby("modality")}
    if len(by) < 3:
        return None
    shared = rows[rows.item.isin(by["speech"].keys() & by["text"].keys() & by["deaf"].keys())].drop_duplicates("item")
    times = shared.domain.value_counts()
    of = {row.item: weights[row.domain] / times[row.domain] for row in shared.itertuples()}
    return statistics.heard_share(by["speech"], by["text"], by["deaf"], of)


def groups(study: dict, domains: Iterable[str]) -> dict[str, dict[str, float]]:
    """The rows of a table: each group's name, and the weights of its domains. Where a domain was asked with several
    numbers of examples, the groups stand once more for each further one, under its name."""
    known = sorted({*study["domains"], *pd.Series(domains).dropna()})
    settings: dict[str, list[str]] = {}
    for domain in known:
        settings.setdefault(plain_domain(domain), []).append(domain)
    first = {plain: some[0] for plain, some in settings.items()}
    further = sorted({domain.removeprefix(plain) for plain, some in settings.items() for domain in some[1:]})
    weights_of_group = {}
    for setting in (None, *further):
        of = (
            first
            if setting is None
            else {plain: plain + setting for plain, some in settings.items() if plain + setting in some[1:]}
        )
        suffix = "" if setting is None else f" ({setting})"
        whole = {of.get(d, d): w for d, w in study["p_web"].items() if setting is None or d in of}
        weights_of_group[ALL + suffix] = whole
        for coverage, name in GROUPS.items():
            chosen = sorted(cell for plain, cell in of.items() if study["coverage"].get(plain) == coverage)
            if chosen:
                weights_of_group[name + suffix] = {cell: 1 / len(chosen) for cell in chosen}
    return weights_of_group


def by_group(con: duckdb.DuckDBPyConnection, study: dict) -> pd.DataFrame:
    """One row per group of domains and contender: n_items and, for each of MEASURES, its value and `<measure>_se`; the
    heard share as heard, heard_low, heard_high (its 95 % interval) and heard_n (items; 0 where it was not asked deaf).
    Needs the view `contenders` (contender, run_id, step, place)."""
    cells = by_domain(con, study.get("heldout", "heldout"))
    rows = []
    evaluated = sorted(cells[cells.measure.isin(("text", "speech", "cascade"))].domain.dropna().unique())
    for group, massed in groups(study, cells.domain).items():
        # tasks that have no mass under P_web (PIQA beside genres of text) weigh the same
        alone = group.startswith(ALL) and evaluated and not any(massed.get(domain) for domain in evaluated)
        by_task = dict.fromkeys(evaluated, 1 / len(evaluated)) if alone else massed
        for contender in con.execute("SELECT contender FROM contenders ORDER BY place, contender").df().contender:
            row = {"group": group, "contender": contender}
            for measure in MEASURES:
                weights = massed if measure in ("m", "f") else by_task
                part = cells[(cells.contender == contender) & (cells.measure == measure)].set_index("domain")
                part = part[part.index.isin(weights)]
                # A group's figure stands only where every domain with mass has been measured.
                whole = len(part) and not any(w > 0 and d in study["domains"] and d not in part.index for d, w in weights.items())
                w = np.array([weights[d] for d in part.index])
                row[measure] = float((w * part.value).sum() / w.sum()) if whole else np.nan
                row[f"{measure}_se"] = float(np.sqrt((w**2 * part.se.fillna(0) ** 2).sum()) / w.sum()) if whole else np.nan
                if measure == "speech" or (measure == "text" and "n_items" not in row):
                    row["n_items"] = int(part.n.sum()) if len(part) else 0
            share = hearing(con, by_task, contender)
            row["heard_n"] = share.n if share else 0
            estimate = (None,) * 3 if share is None else (share.share, share.low, share.high)
            row |= {
                name: np.nan if x is None else x for name, x in zip(("heard", "heard_low", "heard_high"), estimate, strict=True)
            }
            rows.append(row)
    return pd.DataFrame(rows)


_CHECKPOINTS = """
    SELECT p.run_id, p.step, coalesce(e.contender, json_extract_string(r.config, '$.contender')) AS contender,
        r.kind, r.parent_run_id, r.selection_id, r.max_steps AS steps,
        json_extract(r.config, '$.objective.alpha')::DOUBLE AS alpha,
        json_extract_string(r.config, '$.llm.finetune') AS finetune,
        json_extract(r.config, '$.optim.decay')::INT AS decay
    FROM (SELECT DISTINCT run_id, step FROM raw.scored UNION SELECT DISTINCT run_id, step FROM evaluations
          WHERE contender <> 'teacher') AS p
    JOIN runs AS r ON r.run_id = p.run_id
    LEFT JOIN (SELECT DISTINCT run_id, step, contender FROM evaluations) AS e
        ON e.run_id = p.run_id AND e.step = p.step
    WHERE r.kind IN ('stage1', 'stage2') AND ($1 IS NULL OR p.run_id IN (SELECT unnest($1)))
    ORDER BY ALL"""


def tokens_at(con: duckdb.DuckDBPyConnection, run_id: str, steps: Sequence[int]) -> np.ndarray:
    """Tokens that a run had fed at `steps`: as logged, interpolated between logged steps; NaN where none is logged."""
    logged = con.execute(
        "SELECT step, max(tokens) FROM metrics WHERE run_id = ? AND tokens IS NOT NULL GROUP BY 1 ORDER BY 1", [run_id]
    ).fetchall()
    if not logged:
        return np.full(len(steps), np.nan)
    return np.interp(steps, [0, *(s for s, _ in logged)], [0, *(t for _, t in logged)], right=np.nan)


def collect(labs: Mapping[object, Path | str], runs: list[str] | None = None) -> pd.DataFrame:
    """Every measured checkpoint of a set of labs, one row per lab, checkpoint and group of domains.

    `labs`: a label (a seed) for each lab's folder; `runs` names runs, by default all. Columns: seed (the label),
    contender, run_id, step, last (whether the run has no later measured step), kind, alpha, finetune, tokens, steps,
    decay, strategy, gamma, n_clusters, hours (of the selection, as it was spoken), group, m, f, text, speech, … with
    `<measure>_se`. A checkpoint that was only scored has no accuracy, and the other way round."""
    parts = []
    for seed, lab in labs.items():
        con = store.connect(lab)
        points = con.execute(_CHECKPOINTS, [runs]).df()
        if points.empty:
            continue
        for run_id, part in points.groupby("run_id"):
            points.loc[part.index, "tokens"] = tokens_at(con, run_id, part.step)
        points["key"] = [f"{run}@{step}" for run, step in zip(points.run_id, points.step, strict=True)]
        study = read_study(lab, con)
        values = _measured(con, study, points)
        about = con.execute("""
            SELECT l.selection_id, coalesce(p.strategy, l.strategy) AS strategy, coalesce(p.gamma, l.gamma) AS gamma,
                (SELECT count(*) FROM clusters c WHERE c.clustering_id = l.clustering_id) AS n_clusters,
                (SELECT sum(seconds) / 3600 FROM selected_speech t WHERE t.selection_id = l.selection_id) AS hours
            FROM selections l LEFT JOIN selections p ON p.selection_id = l.parent_selection_id""").df()
        merged = points.merge(values, on="key").merge(about, on="selection_id", how="left")
        merged["last"] = merged.step == merged.groupby("run_id").step.transform("max")
        parts.append(merged.assign(seed=seed))
    return pd.concat(parts, ignore_index=True).drop(columns="key") if parts else pd.DataFrame()


def _measured(con, study: dict, points: pd.DataFrame) -> pd.DataFrame:
    """by_group of checkpoints, whatever their contenders are called: `key`, group and the measures."""
    # a contender stands once in the view: checkpoints of one name go one after the other
    named, parts = points.assign(place=0), []
    for _, batch in named.groupby(named.groupby("contender").cumcount()):
        con.register("contenders", batch[["contender", "run_id", "step", "place"]])
        parts.append(by_group(con, study).merge(batch[["contender", "key"]], on="contender"))
    return pd.concat(parts, ignore_index=True).drop(columns="contender")


def teachers(labs: Mapping[object, Path | str]) -> pd.DataFrame:
    """The teacher of each lab that has evaluated it (of several the one that answered most): seed (the label),
    contender, group and the measures it has."""
    parts = []
    for seed, lab in labs.items():
        con = store.connect(lab)
        statistics.answered(con)
        newest_teacher = con.execute("""SELECT contender, run_id, step, who, 0 AS place FROM answered
            WHERE contender = 'teacher' GROUP BY ALL ORDER BY count(*) DESC, run_id, step, who LIMIT 1""").df()
        if len(newest_teacher):
            con.register("contenders", newest_teacher)
            parts.append(by_group(con, read_study(lab, con)).assign(seed=seed))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


# --- M and F as predictors of accuracy ---


def predictors(rows: pd.DataFrame, group: str = ALL, by_seed: bool = False) -> dict[str, Regression]:
    """How far log M and log F of checkpoints (`collect`) explain accuracy: "speech on M", "speech on M, F", "text on
    F", "text on F, M". `by_seed` leaves out a seed's checkpoints together instead of one checkpoint."""
    part = rows[(rows.group == group) & rows.m.gt(0) & rows.f.gt(0)]
    logs = pd.DataFrame({"M": np.log(part.m), "F": np.log(part.f)})
    labels = part.seed.to_numpy() if by_seed else None
    return {
        f"{measure} on {', '.join(names)}": regression(part[measure], logs[list(names)], names, labels)
        for measure, names in (
            ("speech", ("M",)),
            ("speech", ("M", "F")),
            ("text", ("F",)),
            ("text", ("F", "M")),
        )
    }


# --- how M falls with tokens ---


def before_decay(rows: pd.DataFrame) -> pd.DataFrame:
    """Of `collect`'s rows those whose learning rate had not begun to decay: what a law of tokens speaks of."""
    return rows[rows.step <= rows.steps - rows.decay.fillna(0)]


def power_law(
    con: duckdb.DuckDBPyConnection,
    run_id: str,
    weights: Mapping[str, float],
    steps: Iterable[int] | None = None,
    draws: int = 300,
    seed: int = 0,
    corpus: str = "heldout",
) -> PowerLaw:
    """The power law of a run's M over its scored checkpoints, bootstrapped over held-out texts within domains.

    `weights`: of each domain (a group of `groups`); `steps`: which checkpoints, by default all that are scored. A
    text's patterns stay together. Raises SaladError with fewer than four checkpoints whose tokens are logged."""
    rows = con.execute(
        """
        SELECT v.step, s.domain, v.sample_id, sum(v.m * v.n_positions) AS total, sum(v.n_positions) AS n
        FROM raw.scored v JOIN samples s ON s.sample_id = v.sample_id
        WHERE v.run_id = $run AND s.corpus = $corpus AND v.m IS NOT NULL GROUP BY ALL ORDER BY ALL""",
        {"run": run_id, "corpus": corpus},
    ).df()
    rows = rows[rows.domain.isin([d for d, w in weights.items() if w > 0])]
    if steps is not None:
        rows = rows[rows.step.isin(list(steps))]
    wanted = sorted(rows.step.unique())
    n = tokens_at(con, run_id, wanted)
    wanted, n = [step for step, t in zip(wanted, n, strict=True) if np.isfinite(t)], n[np.isfinite(n)]
    rng, parts = np.random.default_rng(seed), []
    for domain, part in rows.groupby("domain") if len(n) else ():
        total = part.pivot(index="sample_id", columns="step", values="total").reindex(columns=wanted).to_numpy()
        count = part.pivot(index="sample_id", columns="step", values="n").reindex(columns=wanted).to_numpy()
        whole = np.isfinite(total).all(1)
        total, count = total[whole], count[whole]
        times = rng.multinomial(len(total), np.full(len(total), 1 / len(total)), draws)
        parts.append((weights[domain], total.sum(0) / count.sum(0), (times @ total) / (times @ count)))
    if not len(n) or not parts:
        raise SaladError(f"run {run_id} has no scored checkpoint whose tokens are logged")
    mass = sum(w for w, _, _ in parts)
    m = sum(w * value for w, value, _ in parts) / mass
    m_draws = sum(w * value for w, _, value in parts) / mass
    fitted = np.array([fit_power_law(n, row) for row in m_draws])
    slopes = np.array([np.polyfit(np.log(n), np.log(np.maximum(row, 1e-12)), 1)[0] for row in m_draws])
    bounds = np.percentile(fitted, [2.5, 97.5], axis=0)
    e, b, beta = fit_power_law(n, m)
    names = ("e", "b", "beta")
    trend_low, trend_high = np.percentile(slopes, [2.5, 97.5])
    return PowerLaw(
        e, b, beta,
        n_min=float(n.min()), n_max=float(n.max()),
        low=dict(zip(names, map(float, bounds[0]), strict=True)),
        high=dict(zip(names, map(float, bounds[1]), strict=True)),
        trend=float(np.polyfit(np.log(n), np.log(np.maximum(m, 1e-12)), 1)[0]),
        trend_low=float(trend_low), trend_high=float(trend_high),
        draws=fitted,
    )  # fmt: skip


# --- strategies at equal hours ---


def interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Mean and half the width of its interval (Student's t) over repetitions; NaN width under two."""
    from scipy import stats

    x = np.asarray(values, float)
    x = x[np.isfinite(x)]
    if len(x) < 2:
        return (float(x.mean()) if len(x) else np.nan), np.nan
    return float(x.mean()), float(stats.t.ppf((1 + level) / 2, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))


def compare(
    rows: pd.DataFrame,
    contenders: Iterable[str],
    base: str | None = "uniform",
    measures: Iterable[str] = ("m", "f", "speech", "text"),
) -> pd.DataFrame:
    """Contenders' last checkpoints over seeds, and what each has over `base` at the same seeds.

    One row per contender and group: seeds (how many), hours, and of each measure `<measure>`, `<measure>_half` (half a
    95 % interval over seeds), `<measure>_over`, `<measure>_over_half` (the paired difference)."""
    last, out = rows[rows["last"]], []
    known = last.group.drop_duplicates().tolist()
    for contender in contenders:
        for group in known:
            own = last[(last.contender == contender) & (last.group == group)].set_index("seed")
            if own.empty:
                continue
            baseline = last[(last.contender == base) & (last.group == group)].set_index("seed")
            row = {"contender": contender, "group": group, "seeds": len(own), "hours": own.hours.mean()}
            both = own.index.intersection(baseline.index)
            for measure in measures:
                row[measure], row[f"{measure}_half"] = interval(own[measure])
                change = own.loc[both, measure] - baseline.loc[both, measure]
                row[f"{measure}_over"], row[f"{measure}_over_half"] = interval(change)
            out.append(row)
    return pd.DataFrame(out)


def hours_to_match(hours_T: ArrayLike, value_T: ArrayLike, target: float, lower_is_better: bool = True) -> tuple[str, float]:
    """The hours at which a measure reaches `target`, by interpolation over the logarithm of hours.

    Returns ("=", hours), or ("<", the fewest measured) where those do already, or (">", the most measured) where even
    those do not: nothing is extrapolated. Raises SaladError with fewer than two budgets."""
    hours, value = np.asarray(hours_T, float), np.asarray(value_T, float)
    use = np.isfinite(hours) & np.isfinite(value) & (hours > 0)
    order = np.argsort(hours[use])
    hours, value = hours[use][order], value[use][order]
    if len(hours) < 2:
        raise SaladError(f"{len(hours)} budget is too few; measure the strategy at two budgets or more")
    gap = (value - target) if lower_is_better else (target - value)
    if gap[0] <= 0:
        return "<", float(hours[0])
    reached = np.flatnonzero(gap <= 0)
    if not len(reached):
        return ">", float(hours[-1])
    i = int(reached[0])
    share = gap[i - 1] / (gap[i - 1] - gap[i])
    return "=", float(np.exp(np.log(hours[i - 1]) + share * (np.log(hours[i]) - np.log(hours[i - 1]))))


def verdict(difference: float, half: float) -> str:
    """Of a claim that a difference is above 0: holds, does not hold, or undecided, by its 95 % interval."""
    if not (np.isfinite(difference) and np.isfinite(half)):
        return "undecided"
    return "holds" if difference - half > 0 else "does not hold" if difference + half < 0 else "undecided"
