"""What the votes of the A/B app say, without pretending that votes are independent.

    python -m workbench.arena.preferences [--lab DIR] [--all]   the statistics tab as text
    python -m workbench.arena.preferences --simulate 1000       whether the 95 % intervals cover: docs/arena.md

A vote is a point for one side; a tie, and "both bad", is half a point for each. Votes on one question are alike, and
so are votes of one voter: the variance is bootstrapped by question, by voter and by their intersection, and combined
as Cameron, Gelbach and Miller (2011) combine cluster-robust variances, V = V_question + V_voter - V_both, with
Student's t at the smaller number of clusters less one.
"""

import argparse
import json
import math
import sys
from dataclasses import dataclass

import duckdb
import numpy as np
import pandas as pd
from scipy import stats

from workbench.arena.intervals import DRAWS, MARGIN, mean_interval

MINIMUM = 30
POINTS = {"left": 1.0, "right": 0.0, "tie": 0.5, "both_bad": 0.5}
ORDER = {"speech": 0, "cascade": 1, "text": 2}


def votes(con: duckdb.DuckDBPyConnection, blind_only: bool = True) -> pd.DataFrame:
    """The lab's votes, oldest first; `blind_only` leaves out those whose voter saw who answered."""
    where = "WHERE blind" if blind_only else ""
    return con.execute(f'SELECT * FROM votes {where} ORDER BY "at", vote_id').df()


def side(contender: str, modality: str) -> str:
    """How a competitor is called everywhere: `stage2_active · speech`."""
    return f"{contender} · {modality}"


def games(table: pd.DataFrame) -> pd.DataFrame:
    """One row a vote: question, voter, choice, a, b (competitors), a_left, score (of a), tokens_a, tokens_b.

    `a` is the side nearer to speech, so that a score above a half speaks for speech; among equals the first by name.
    A vote on two answers of one competitor tells nothing and is left out."""
    rows = []
    for vote in table.to_dict("records"):
        sides = [(vote[f"{s}_contender"], vote[f"{s}_modality"]) for s in ("left", "right")]
        if sides[0] == sides[1]:
            continue
        keys = [(ORDER.get(modality, 9), str(name)) for name, modality in sides]
        a_left = keys[0] <= keys[1]
        score = POINTS[vote["choice"]]
        latencies = vote.get("latencies")
        latencies = (json.loads(latencies) if isinstance(latencies, str) else latencies) or {}
        lengths = [_length(latencies.get(s)) for s in ("left", "right")]
        a, b = (0, 1) if a_left else (1, 0)
        rows.append(
            {
                "question": vote["question_id"], "voter": vote["voter"], "choice": vote["choice"],
                "a": side(*sides[a]), "b": side(*sides[b]), "a_left": a_left,
                "modality_a": sides[a][1], "modality_b": sides[b][1],
                "score": score if a_left else 1 - score, "tokens_a": lengths[a], "tokens_b": lengths[b],
            }
        )  # fmt: skip
    columns = ["question", "voter", "choice", "a", "b", "a_left", "modality_a", "modality_b", "score", "tokens_a", "tokens_b"]
    return pd.DataFrame(rows, columns=columns)


def _length(text) -> float:
    return float(text["tokens"]) if isinstance(text, dict) and text.get("tokens") is not None else math.nan


@dataclass(frozen=True)
class Preference:
    """How often `a` is preferred to `b`: `mean` of the points, 95 % interval, standard error.

    p_parity: the equivalence test's p (two one-sided t tests against 0.5 ± margin). left: share of the decided votes
    that went to the left side, with the exact binomial test's p. longer: share of the decided votes for the longer
    answer."""

    a: str
    b: str
    n: int
    questions: int
    voters: int
    wins: int
    losses: int
    ties: int
    both_bad: int
    mean: float
    low: float
    high: float
    se: float
    margin: float
    p_parity: float
    left: float
    p_left: float
    longer: float
    tokens_a: float
    tokens_b: float
    minimum: int

    @property
    def verdict(self) -> str:
        """In words; nothing before the minimum number of votes."""
        if self.n < self.minimum:
            return f"too few votes: {self.n} of {self.minimum}"
        parts = []
        if self.low > 0.5:
            parts.append(f"{self.a} is preferred")
        elif self.high < 0.5:
            parts.append(f"{self.b} is preferred")
        if self.p_parity < 0.05:
            parts.append(f"parity within ±{self.margin:g} is shown")
        return ", yet ".join(parts) or "undecided: neither a preference nor parity is shown"


def preference(
    rows: pd.DataFrame,
    a: str | None = None,
    b: str | None = None,
    margin: float = MARGIN,
    minimum: int = MINIMUM,
    draws: int = DRAWS,
    seed: int = 0,
) -> Preference:
    """The preference for `a` over all `rows` of `games` (of one pair, or of speech against text in general)."""
    n = len(rows)
    names = (a or (rows.a.iloc[0] if n else "a"), b or (rows.b.iloc[0] if n else "b"))
    if n == 0:
        nan = math.nan
        return Preference(*names, 0, 0, 0, 0, 0, 0, 0, nan, nan, nan, nan, margin, nan, nan, nan, nan, nan, nan, minimum)
    mean, low, high, error, freedom = mean_interval(rows.score, rows.question, rows.voter, draws=draws, seed=seed)
    if error > 0:
        inside = ((mean - (0.5 - margin)) / error, ((0.5 + margin) - mean) / error)
        p_parity = float(max(stats.t.sf(t, freedom) for t in inside))
    else:
        # no spread: one-sided, for the share that is no tie
        p_parity = (1 - 2 * margin) ** (freedom + 1) if mean == 0.5 and freedom else 1.0
    decided = rows[rows.choice.isin(("left", "right"))]
    left = int((decided.choice == "left").sum())
    uneven = decided[(decided.tokens_a != decided.tokens_b) & decided.tokens_a.notna() & decided.tokens_b.notna()]
    longer = ((uneven.score == 1) == (uneven.tokens_a > uneven.tokens_b)).mean() if len(uneven) else math.nan
    return Preference(
        *names, n, rows.question.nunique(), rows.voter.nunique(),
        int((rows.score == 1).sum()), int((rows.score == 0).sum()),
        int((rows.choice == "tie").sum()), int((rows.choice == "both_bad").sum()),
        mean, low, high, error, margin, p_parity,
        left / len(decided) if len(decided) else math.nan,
        float(stats.binomtest(left, len(decided)).pvalue) if len(decided) else math.nan,
        float(longer), float(rows.tokens_a.mean()), float(rows.tokens_b.mean()), minimum,
    )  # fmt: skip


def speech_against_text(rows: pd.DataFrame, **how) -> Preference:
    """All votes between a speech answer and a text answer, whoever gave them."""
    part = rows[(rows.modality_a == "speech") & (rows.modality_b == "text")]
    return preference(part, "speech", "text", **how)


def pairs(rows: pd.DataFrame, **how) -> list[Preference]:
    """Each pair of competitors that votes compare, most votes first."""
    preferences = [preference(part, *key, **how) for key, part in rows.groupby(["a", "b"], sort=True)]
    return sorted(preferences, key=lambda p: -p.n)


def _fit(played: np.ndarray, won: np.ndarray, prior: float) -> np.ndarray:
    """Log-strengths [K] from games played [K, K] and points won [K]."""
    strength = np.ones(len(won))
    for _ in range(10_000):
        below = (played / (strength[:, None] + strength[None])).sum(1) + prior / (strength + 1)
        new = (won + prior / 2) / below
        if prior == 0:
            new /= np.exp(np.log(np.maximum(new, 1e-300)).mean())
        done = np.abs(new - strength).max() < 1e-9 * strength.max()
        strength = new
        if done:
            break
    return np.log(np.maximum(strength, 1e-300))


def _counts(rows: pd.DataFrame, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """By question: games played [Q, K, K] and points won [Q, K]."""
    index = {name: i for i, name in enumerate(names)}
    _, q = np.unique(rows.question.to_numpy(str), return_inverse=True)
    a, b = rows.a.map(index).to_numpy(int), rows.b.map(index).to_numpy(int)
    score = rows.score.to_numpy(float)
    played, won = np.zeros((q.max() + 1, len(names), len(names))), np.zeros((q.max() + 1, len(names)))
    for here, there, points in ((a, b, score), (b, a, 1 - score)):
        np.add.at(played, (q, here, there), 1)
        np.add.at(won, (q, here), points)
    return played, won


def strengths(rows: pd.DataFrame, prior: float = 0.1) -> pd.Series:
    """Bradley and Terry's log-strengths by competitor, mean 0, by Hunter's (2004) MM; a tie is half a win each.

    `prior`: games drawn against an imagined competitor of mean strength, which keep the strength of one who never
    loses finite; 0 gives the maximum likelihood. NaN for competitors that no chain of votes joins to the first."""
    from scipy.sparse.csgraph import connected_components

    names = sorted(set(rows.a) | set(rows.b))
    played, won = (counted.sum(0) for counted in _counts(rows, names))
    logs, (_, parts) = _fit(played, won, prior), connected_components(played)
    joined = parts == parts[0]
    return pd.Series(np.where(joined, logs - logs[joined].mean(), math.nan), index=names)


def bradley_terry(rows: pd.DataFrame, draws: int = 200, seed: int = 0) -> pd.DataFrame | None:
    """competitor, strength, low, high (95 % percentiles, questions drawn anew), n. None for fewer than three."""
    point = strengths(rows) if len(rows) else pd.Series(dtype=float)
    if len(point) < 3:
        return None
    played, won = _counts(rows, list(point.index))
    weights = np.random.default_rng(seed).multinomial(len(won), np.full(len(won), 1 / len(won)), size=draws)
    joined = point.notna().to_numpy()
    fits = [_fit(np.tensordot(w, played, 1), w @ won, 0.1) for w in weights.astype(float)]
    fits = np.array([logs - logs[joined].mean() for logs in fits])
    low, high = np.quantile(fits, (0.025, 0.975), axis=0)
    table = pd.DataFrame({
        "competitor": point.index, "strength": point.to_numpy(), "low": np.where(joined, low, math.nan),
        "high": np.where(joined, high, math.nan), "n": played.sum((0, 2)).astype(int),
    })  # fmt: skip
    return table.sort_values("strength", ascending=False, ignore_index=True)


def lines(table: pd.DataFrame, margin: float = MARGIN, minimum: int = MINIMUM) -> list[str]:
    """The statistics as text."""
    rows = games(table)
    if rows.empty:
        return ["no votes yet; open the A/B app with: python -m workbench.arena"]
    lines_out = []
    for p in [speech_against_text(rows, margin=margin, minimum=minimum), *pairs(rows, margin=margin, minimum=minimum)]:
        if p.n:
            lines_out.append(
                f"{p.a} against {p.b}: {p.mean:.3f} [{p.low:.3f}, {p.high:.3f}] from {p.n} votes on {p.questions} "
                f"questions by {p.voters} voters ({p.ties} ties, {p.both_bad} both bad); {p.verdict}; "
                f"left {p.left:.0%} (p {p.p_left:.2f})"
            )
    ranked = bradley_terry(rows)
    if ranked is not None:
        lines_out += [f"{r.competitor}: strength {r.strength:+.2f} [{r.low:+.2f}, {r.high:+.2f}]" for r in ranked.itertuples()]
    return lines_out


def main(args: list[str] | None = None) -> int:
    """The command line: print the preferences of a lab, or simulate studies. Returns the exit code."""
    import store

    parser = argparse.ArgumentParser(prog="python -m workbench.arena.preferences", description=__doc__.split("\n")[0])
    parser.add_argument("--lab", metavar="DIR", help="the lab (default: $SALAD_LAB, else lab/)")
    parser.add_argument("--all", action="store_true", help="votes that were not blind as well")
    parser.add_argument("--margin", type=float, default=MARGIN, help="parity is 0.5 ± this (default: %(default)s)")
    parser.add_argument("--simulate", type=int, metavar="STUDIES", help="instead: simulate studies, tell the coverage")
    given = parser.parse_args(args)
    try:
        if given.simulate:
            from workbench.arena.coverage import SIMULATIONS, coverage

            for name, world in SIMULATIONS.items():
                simulated = coverage(world, given.simulate)
                figures = " | ".join(f"{simulated[k]:.3f}" for k in ("truth", "held", "naive", "parity"))
                print(f"| {name} | {figures} |", flush=True)
        else:
            con = store.connect(store.lab_path(given.lab))
            print("\n".join(lines(votes(con, not given.all), given.margin)))
    except store.UserError as error:
        print(f"preferences: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
