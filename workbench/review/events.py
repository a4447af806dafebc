"""What reviewers say, as events: verdicts, rules, audits, and how far reviewers agree."""

import getpass
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pandas as pd

import store
from store.rules import holds, try_rule
from workbench.review.held import texts_with_verdicts, verdicts_of

REASONS = ("bad synthesis", "not speakable", "duplicate", "off-topic", "unsafe", "other")


def reviewer_name() -> str:
    """Who says it: the account's name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in some containers
        return "reviewer"


@dataclass
class Review:
    """What one reviewer says about one selection. Every method appends an event; nothing is ever taken away."""

    lab: Path
    selection_id: str
    reviewer: str

    def _append(self, **fields) -> dict:
        event = store.append(self.lab, "decisions", selection_id=self.selection_id, reviewer=self.reviewer, **fields)
        store.renew_soon(self.lab)
        return event

    def drop(self, sample_id: str, reason: str, note: str | None = None) -> dict:
        """Drop a text, with a reason and an optional note. Returns the event."""
        return self._append(target="sample", sample_id=sample_id, verdict="drop", reason=reason, note=note)

    def keep(self, sample_id: str, note: str | None = None) -> dict:
        """Keep a text, with an optional note. Returns the event."""
        return self._append(target="sample", sample_id=sample_id, verdict="keep", note=note)

    def rule(self, predicate: str, reason: str) -> dict:
        """Drop by a SQL predicate over rule_rows; it holds for refills and child selections too."""
        return self._append(target="rule", rule=predicate, verdict="drop", reason=reason)

    def cluster(self, cluster_id: int, verdict: str, reason: str | None = None, weight: float | None = None) -> dict:
        """verdict: drop (leave it out), keep, or reweight by `weight` at the next draw."""
        return self._append(target="cluster", cluster_id=int(cluster_id), verdict=verdict, reason=reason, weight=weight)

    def undo(self, con: duckdb.DuckDBPyConnection, event_id: str | None = None) -> dict | None:
        """Take back an event, or the reviewer's latest standing one on this selection: what it was, None if there
        is none."""
        events = standing_events(con, self.selection_id, self.reviewer, event_id=event_id, limit=1)
        if events.empty:
            return None
        last = events.iloc[0]
        self._append(
            target=last.target,
            sample_id=_value(last.sample_id),
            rule=_value(last.rule),
            verdict="undo",
            cluster_id=None if pd.isna(last.cluster_id) else int(last.cluster_id),
            undoes=last.event_id,
        )
        return {key: _value(value) for key, value in last.items()}


def _value(x):
    return None if pd.api.types.is_scalar(x) and pd.isna(x) else x


def standing_events(
    con: duckdb.DuckDBPyConnection,
    selection_id: str,
    reviewer: str | None = None,
    target: str | None = None,
    event_id: str | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """The events on a selection that no undo has taken back, newest first, at most `limit`."""
    return con.execute(
        f"""
        SELECT * FROM decisions WHERE selection_id = $1 AND verdict <> 'undo' AND ($2 IS NULL OR reviewer = $2)
            AND ($3 IS NULL OR target = $3) AND ($4 IS NULL OR event_id = $4)
            AND event_id NOT IN (SELECT undoes FROM decisions WHERE undoes IS NOT NULL)
        ORDER BY clock DESC, event_id DESC {"" if limit is None else f"LIMIT {int(limit)}"}""",
        [selection_id, reviewer, target, event_id],
    ).df()


def rule_preview(
    con: duckdb.DuckDBPyConnection, selection_id: str, predicate: str, examples: int = 20
) -> tuple[int, pd.DataFrame]:
    """How many of the selection's texts a predicate would drop, and some of them; StoreError if it is no predicate.

    The store accepts a predicate over one row only: no query of its own, nothing that says something else each time. One
    that fails on some texts does not hold for them; one that fails on all is refused.
    """
    try_rule(con, predicate, selection_id)
    source = f"FROM rule_rows WHERE selection_id = $selection AND {holds(predicate)}"
    try:
        count = con.execute(f"SELECT count(*) {source}", {"selection": selection_id}).fetchone()[0]
        rows = con.execute(f"SELECT * {source} ORDER BY md5(sample_id) LIMIT {int(examples)}", {"selection": selection_id}).df()
    except duckdb.Error as error:
        raise store.StoreError(f"this rule does not run: {str(error).splitlines()[0]}") from None
    return count, rows


def audit(
    con: duckdb.DuckDBPyConnection, selection_id: str, cluster_id: int, n: int, reviewer: str | None = None, more: int = 20
) -> dict:
    """A cluster's audit: its first `n` texts in a fixed random order, how many are judged, and the fault rate.

    A text is judged once someone has kept or dropped it by hand (`reviewer` alone, if named), and faulty if someone
    dropped it. The interval is Jeffreys', 95 %; `width_after` is the expected width after `more` further texts
    at the same rate. `sample_ids` in the order to read them.
    """
    rows = con.execute(
        f"""{texts_with_verdicts(con, selection_id)},
        drawn AS (SELECT sample_id FROM texts WHERE cluster_id = $cluster
            ORDER BY md5(selection_id || sample_id), sample_id LIMIT $n),
        judged AS (SELECT sample_id, bool_or(verdict = 'drop') AS fault FROM decisions
            WHERE target = 'sample' AND selection_id = $selection AND verdict IN ('keep', 'drop')
                AND ($reviewer IS NULL OR reviewer = $reviewer)
                AND event_id NOT IN (SELECT undoes FROM decisions WHERE undoes IS NOT NULL) GROUP BY sample_id)
        SELECT sample_id, fault FROM drawn LEFT JOIN judged USING (sample_id)""",
        {"selection": selection_id, "cluster": int(cluster_id), "n": int(n), "reviewer": reviewer},
    ).fetchall()
    judged = sum(fault is not None for _, fault in rows)
    faults = sum(bool(fault) for _, fault in rows)
    low, high = fault_interval(faults, judged)
    rate = (faults + 0.5) / (judged + 1)  # one half before anything is judged
    after = fault_interval(faults + round(rate * more), judged + more)
    return {
        "sample_ids": [s for s, _ in rows],
        "unjudged": [s for s, fault in rows if fault is None],
        "drawn": len(rows),
        "judged": judged,
        "faults": faults,
        "rate": faults / judged if judged else None,
        "low": low,
        "high": high,
        "width": high - low,
        "more": more,
        "width_after": after[1] - after[0],
    }


def fault_interval(faults: int, judged: int) -> tuple[float, float]:
    """Jeffreys' 95 % interval of a rate: Beta(faults + ½, judged − faults + ½), closed at 0 and 1."""
    from scipy import special  # a fifth of a second to import, and seldom asked for

    low, high = special.betaincinv(faults + 0.5, judged - faults + 0.5, [0.025, 0.975])
    return (0.0 if faults == 0 else float(low)), (1.0 if faults == judged else float(high))


def agreement(con: duckdb.DuckDBPyConnection, selection_id: str) -> pd.DataFrame:
    """For each pair of reviewers: texts that both judged, share on which they agree, Cohen's kappa (null where
    chance alone would agree)."""
    verdicts, _ = verdicts_of(con, selection_id)
    pairs = con.execute(
        f"""
        SELECT a.reviewer AS one, b.reviewer AS other, count(*) AS both,
            avg((a.verdict = b.verdict)::INT) AS agree, avg((a.verdict = 'drop')::INT) AS pa,
            avg((b.verdict = 'drop')::INT) AS pb
        FROM {verdicts} AS a JOIN {verdicts} AS b USING (sample_id)
        WHERE a.reviewer < b.reviewer GROUP BY ALL ORDER BY ALL"""
    ).df()
    chance = pairs.pa * pairs.pb + (1 - pairs.pa) * (1 - pairs.pb)
    pairs["kappa"] = ((pairs.agree - chance) / (1 - chance)).where(chance < 1)
    return pairs.drop(columns=["pa", "pb"])
