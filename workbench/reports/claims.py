"""The paper's claims, each judged by its paired difference over the seeds of a study."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

import store
from salad import analysis
from salad.analysis import ALL, GROUPS
from salad.errors import SaladError

BROAD = GROUPS["uncovered"]
SEEDS = 3  # a verdict on fewer says so
CHECKPOINTS = 12  # fewer decide nothing about a prediction
ENOUGH = 0.5  # the share of variance above which a divergence is said to predict an accuracy


@dataclass(frozen=True)
class Claim:
    """A claim as a difference between two cells that should be above 0, at the same seeds.

    `sign` is 1 where the claim is that `cell` has more of `measure` than `base`, -1 where it has less; `reason`: what
    is likely to be behind it where it does not hold."""

    text: str
    source: str
    cell: str
    base: str
    measure: str
    group: str
    sign: int
    reason: str = ""


@dataclass
class ClaimResult:
    """A claim, judged: what was seen, on how many seeds, and holds / does not hold / undecided / not run."""

    text: str
    source: str
    seen: str
    verdict: str
    reason: str = ""
    values: dict = field(default_factory=dict)
    seeds: int = 0

    @property
    def qualified_verdict(self) -> str:
        """The verdict, and that it rests on fewer seeds than a study has."""
        few = self.verdict != "not run" and self.seeds < SEEDS
        return f"{self.verdict} ({self.seeds} seed{'s' * (self.seeds > 1)} only)" if few else self.verdict


def not_run(text: str, source: str, *cells: str) -> ClaimResult:
    """The result of a claim whose cells have not been run."""
    return ClaimResult(text, source, f"needs {' and '.join(cells)} on one seed at least", "not run")


PAPER, HERE = "paper", "this project"
STARVED = (
    "The single draw sees the student as it is after Stage I: what Stage II unlearns, or a little speech would mend, "
    "gets nothing."
)
CLAIMS = (
    Claim("Distilling (α = 1) leaves less misalignment than NLL (α = 0), on broad-domain speech", PAPER,
          "broad_alpha100", "broad_alpha0", "m", ALL, -1,
          "Trained from scratch for a few hundred steps, both are far from where M saturates."),
    Claim("The same on narrow-domain speech", PAPER, "stage1", "narrow_alpha0", "m", ALL, -1,
          "Most of M is the uncovered domains', of which narrow speech teaches little whatever the objective."),
    Claim("Distilling forgets less than NLL (F, broad-domain speech)", PAPER, "broad_alpha100", "broad_alpha0", "f", ALL, -1),
    Claim("Distilling forgets less than NLL (F, narrow-domain speech)", PAPER, "stage1", "narrow_alpha0", "f", ALL, -1),
    Claim("Broad-domain speech leaves less misalignment than as much narrow speech", PAPER,
          "broad_alpha100", "stage1", "m", ALL, -1),
    Claim("Active selection lowers M where natural speech does not reach, against uniform at equal hours", PAPER,
          "active", "uniform", "m", BROAD, -1),
    Claim("and raises speech accuracy there", PAPER, "active", "uniform", "speech", BROAD, 1,
          "M falls long before accuracy rises: at this few steps accuracy is near chance on both sides."),
    Claim("It does so over all domains by P_web, too: M", HERE, "active", "uniform", "m", ALL, -1, STARVED),
    Claim("over all domains by P_web: speech accuracy", HERE, "active", "uniform", "speech", ALL, 1, STARVED),
    Claim("at no cost to the covered domain: M below uniform's", HERE, "active", "uniform", "m", "covered", -1, STARVED),
    Claim("at no cost to the partly covered domain: M below uniform's", HERE, "active", "uniform", "m",
          "partly covered", -1, STARVED),
    Claim("The paper's γ = 5 is better than γ = 2, where natural speech does not reach: M", HERE,
          "active_gamma5", "active", "m", BROAD, -1, "A cluster's d runs from 0.02 to 4 here, so γ = 5 draws from few clusters."),
    Claim("γ = 5 is better than γ = 2 over all domains: M", HERE, "active_gamma5", "active", "m", ALL, -1,
          "A cluster's d runs from 0.02 to 4 here, so γ = 5 draws from few clusters."),
    Claim("Two rounds are better than one over all domains: M", HERE, "active_rounds2", "active", "m", ALL, -1,
          "The first round is short at this few steps, and each round warms up anew."),
    Claim("Four rounds are better than one over all domains: M", HERE, "active_rounds4", "active", "m", ALL, -1,
          "The first rounds are short at this few steps, and each round warms up anew."),
    Claim("What is merely hard as text (teacher_nll) is a worse guide than D: M, uncovered domains", HERE,
          "active", "teacher_nll", "m", BROAD, -1),
    Claim("Selecting by cluster is better than by single probed text: M, all domains", HERE,
          "active", "sample_level", "m", ALL, -1),
    Claim("Knowing the uncovered domains (oracle) would lower M there further than active does", HERE,
          "oracle", "active", "m", BROAD, -1, "The active draw already is nearly all of those domains."),
    Claim("Removing the planted faults of synthesis pays: M, all domains (active)", HERE,
          "active_filtered", "active", "m", ALL, -1, "Four per cent of the syntheses are faulty; training averages them out."),
    Claim("Full fine-tuning leaves less misalignment than LoRA: M, all domains (active)", HERE,
          "active_full", "active", "m", ALL, -1),
    Claim("and forgets more: F, all domains (active)", HERE, "active_full", "active", "f", ALL, 1),
    Claim("Reverse KL leaves more misalignment than forward KL (M is a forward KL): all domains", HERE,
          "active_reverse_kl", "active", "m", ALL, 1),
    Claim("JSD leaves more misalignment than forward KL: all domains", HERE, "active_jsd", "active", "m", ALL, 1),
)  # fmt: skip


def judge(rows: pd.DataFrame, claim: Claim) -> ClaimResult:
    """A claim's paired difference over seeds, its interval and verdict."""
    both = set(last_of(rows, claim.cell).seed) & set(last_of(rows, claim.base).seed)
    rows = rows[rows.seed.isin(both)]  # the means that are shown are of the seeds that are compared
    made = analysis.compare(rows, [claim.cell], claim.base, (claim.measure,))
    made = made[made.group == claim.group] if len(made) else made
    if not len(made) or not both or not np.isfinite(made[f"{claim.measure}_over"].iloc[0]):
        return not_run(claim.text, claim.source, claim.cell, claim.base)
    row = made.iloc[0]
    value, half = row[f"{claim.measure}_over"], row[f"{claim.measure}_over_half"]
    base = analysis.interval(last_of(rows, claim.base, claim.group)[claim.measure])[0]
    seen = (
        f"{_value(row[claim.measure], claim.measure)} ({claim.cell}) against {_value(base, claim.measure)} "
        f"({claim.base}): {_change(value, half, claim.measure)}, {len(both)} seed{'s' * (len(both) > 1)}"
    )
    verdict = analysis.verdict(claim.sign * value, half)
    reason = "" if verdict == "holds" or not np.isfinite(half) else claim.reason
    return ClaimResult(claim.text, claim.source, seen, verdict, reason, {"difference": value, "half": half}, len(both))


def last_of(rows: pd.DataFrame, contender: str, group: str = ALL) -> pd.DataFrame:
    """A contender's last checkpoint in a group of domains, by seed."""
    return rows[rows["last"] & rows.contender.eq(contender) & rows.group.eq(group)]


def claims_of_prediction(rows: pd.DataFrame) -> list[ClaimResult]:
    """The claims that M predicts speech accuracy and F text accuracy."""
    out = []
    part = rows[rows.group.eq(ALL) & rows.speech.notna() & rows.m.gt(0) & rows.f.gt(0)]
    for text, measure, other, paper, partial in (
        ("M predicts speech accuracy", "M", "F", 0.75, 0.56),
        ("F predicts text accuracy", "F", "M", 0.74, 0.32),
    ):
        of = "speech" if measure == "M" else "text"
        claim = f"{text} (leave-one-out R² {paper}, partial R² about {partial} in the paper)"
        try:
            regressions = analysis.predictors(part, ALL)
            apart = analysis.predictors(part, ALL, by_seed=part.seed.nunique() > 1)[f"{of} on {measure}"].r2_loo
        except SaladError as error:
            out.append(ClaimResult(claim, PAPER, str(error), "not run"))
            continue
        alone, both = regressions[f"{of} on {measure}"], regressions[f"{of} on {measure}, {other}"]
        low, high = _loo_interval(part, of, measure)
        seen = (
            f"leave-one-out R² {alone.r2_loo:.2f} ({low:.2f} to {high:.2f}), leaving out whole seeds {apart:.2f}; partial R² "
            f"of log {measure} beside log {other} {both.partial[measure]:.2f}; {alone.n} checkpoints, all domains by P_web"
        )
        verdict = "holds" if low > ENOUGH else "does not hold" if high < ENOUGH else "undecided"
        verdict = verdict if alone.n >= CHECKPOINTS else "undecided"
        seeds = part[part[of].notna()].seed.nunique()
        reason = "" if verdict == "holds" else (
            "The checkpoints' text accuracies lie within a few points of each other: there is little to explain." if of == "text"
            else "At few steps accuracy is near chance over a wide range of M.")  # fmt: skip
        out.append(ClaimResult(claim, PAPER, seen, verdict, reason, seeds=seeds))
    return out


def _loo_interval(part: pd.DataFrame, of: str, measure: str, draws: int = 300) -> tuple[float, float]:
    """A 95 % bootstrap interval over checkpoints of the leave-one-out R²; copies of one are left out together."""
    rng, differences = np.random.default_rng(0), []
    x, y = np.log(part[measure.lower()].to_numpy()), part[of].to_numpy()
    for _ in range(draws):
        pick = rng.integers(len(y), size=len(y))
        try:
            differences.append(analysis.regression(y[pick], x[pick, None], (measure,), pick).r2_loo)
        except SaladError:  # a draw of one checkpoint only
            continue
    return tuple(np.percentile(differences, [2.5, 97.5])) if differences else (np.nan, np.nan)


def claims_of_scaling(rows: pd.DataFrame, labs: dict[int, Path]) -> list[ClaimResult]:
    """M = E + B · N^(-β) of Stage I runs before their decay, per configuration and seed."""
    fitted: dict[str, list[analysis.PowerLaw]] = {}
    for seed, lab in labs.items():
        con = store.connect(lab)
        weights = analysis.groups(analysis.read_study(lab, con), [])[ALL]
        runs = rows[rows.seed.eq(seed) & rows.kind.eq("stage1") & rows.group.eq(ALL)]
        for (contender, run_id), part in runs.groupby(["contender", "run_id"]):
            try:
                law = analysis.power_law(con, run_id, weights, analysis.before_decay(part).step, draws=200)
            except SaladError:
                continue
            fitted.setdefault(contender, []).append(law)
    out = []

    def over(name):
        return analysis.interval([law.trend for law in fitted.get(name, [])])

    mean, half = over("narrow_alpha0")
    text = "With α = 0 on narrow-domain speech M grows with tokens"
    if np.isfinite(half):
        seen = f"slope of log M over log N {mean:+.2f} ± {half:.2f}, {len(fitted['narrow_alpha0'])} seeds"
        verdict = analysis.verdict(mean, half)
        reason = "" if verdict == "holds" else "The runs are short: M still falls from where an untrained adapter starts."
        out.append(ClaimResult(text, PAPER, seen, verdict, reason, seeds=len(fitted["narrow_alpha0"])))
    else:
        out.append(ClaimResult(text, PAPER, "needs narrow_alpha0 on two seeds at least, scored at four checkpoints", "not run"))
    text = "For α > 0, E of M = E + B·N^(−β) falls as α rises (½ → 1, broad-domain speech)"
    laws = {name: fitted.get(name, []) for name in ("broad_alpha50", "broad_alpha100")}
    n = min(map(len, laws.values()))
    if n > 1:
        change = [a.e - b.e for a, b in zip(*laws.values(), strict=False)][:n]
        mean, half = analysis.interval(change)
        e, b = (analysis.interval([law.e for law in x])[0] for x in laws.values())
        most = max(law.n_max for x in laws.values() for law in x)
        verdict = analysis.verdict(mean, half)
        seen = (
            f"E {e:.2f} at α = ½ and {b:.2f} at α = 1, difference {mean:+.2f} ± {half:.2f}, {n} seeds, up to {most:,.0f} tokens"
        )
        reason = "E lies beyond the tokens that were seen: four checkpoints of short runs do not fix it."
        reason = "" if verdict == "holds" else reason
        out.append(ClaimResult(text, PAPER, seen, verdict, reason, seeds=n))
    else:
        needed = "needs broad_alpha50 and broad_alpha100 on two seeds at least, scored at four checkpoints"
        out.append(ClaimResult(text, PAPER, needed, "not run"))
    return out


def claims_of_hours(rows: pd.DataFrame) -> list[ClaimResult]:
    """The hours that uniform needs for what active reaches at the study's budget."""
    out = []
    for group in (BROAD, ALL):
        text = f"Hours of uniform selection that match active's M ({group})"
        last = rows[rows["last"] & rows.group.eq(group)]
        parts = []
        for _, part in last.groupby("seed"):
            active = part[part.contender == "active"]
            uniform = part[part.contender.isin(["uniform", "uniform_hours0.5", "uniform_hours2"])]
            if len(active) and len(uniform) > 1:
                own, target = float(active.hours.iloc[0]), float(active.m.iloc[0])
                parts.append((*analysis.hours_to_match(uniform.hours, uniform.m, target), own))
        if not parts:
            out.append(not_run(text, HERE, "active", "uniform", "uniform_hours2 or uniform_hours0.5"))
            continue
        seen = "; ".join(f"{'' if sign == '=' else sign + ' '}{hours:.2f} h against {own:.2f} h" for sign, hours, own in parts)
        more = [sign == ">" or (sign == "=" and hours > own) for sign, hours, own in parts]
        verdict = "active needs fewer" if all(more) else "uniform needs fewer" if not any(more) else "undecided"
        out.append(ClaimResult(text, HERE, f"{seen} (a seed each)", verdict, seeds=len(parts)))
    return out


def _value(x: float, measure: str) -> str:
    return f"{x:.3f}" if measure in ("m", "f") else f"{100 * x:.1f} %"


def _change(x: float, half: float, measure: str) -> str:
    width = f" ± {half:.3f}" if measure in ("m", "f") else f" ± {100 * half:.1f}"
    width = width if np.isfinite(half) else " (one seed, no interval)"
    return f"{x:+.3f}{width}" if measure in ("m", "f") else f"{100 * x:+.1f}{width} points"
