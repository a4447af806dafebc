"""What evaluations say, from the store alone: accuracy with its standard error, gaps, paired comparisons.

An item heard in several voices counts once, as the mean over its voices: answers to one item are not independent."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import store
from salad.errors import SaladError

Side = tuple  # (contender, run_id, step, task, modality)


@dataclass(frozen=True)
class Comparison:
    """Two sides on the same items. difference: mean of (first − second), with its 95 % interval by paired bootstrap over
    items; p: of exact McNemar (two-sided), null where an item is the mean of several voices."""

    n: int
    difference: float
    low: float
    high: float
    p: float | None


def answers(con, contender: str, run_id: str | None, step: int | None, task: str, modality: str) -> dict[str, float]:
    """{item id: correct_norm, a mean over the voices in which it was heard}."""
    return dict(
        con.execute(
            """select item_id, avg(correct_norm::int) from evaluations where contender = ? and task = ? and modality = ?
               and run_id is not distinct from ? and step is not distinct from ? and correct_norm is not null
               group by 1""",
            [contender, task, modality, run_id, step],
        ).fetchall()
    )


def mean_and_error(values) -> tuple[float, float | None]:
    """Mean and its standard error, as lm-evaluation-harness has it (n − 1); None for a single item."""
    values = np.fromiter(values, float)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
    return float(values.mean()), None if error is None else float(error)


def compare(one: dict[str, float], other: dict[str, float], draws: int = 2000, seed: int = 0) -> Comparison | None:
    """A paired comparison over the items that both have; None where they share none."""
    from scipy.stats import binomtest

    items = sorted(one.keys() & other.keys())
    if not items:
        return None
    a, b = (np.array([side[item] for item in items], float) for side in (one, other))
    rng = np.random.default_rng(seed)
    drawn = (a - b)[rng.integers(0, len(items), (draws, len(items)))].mean(1)
    p = None
    if set(np.unique(np.concatenate([a, b]))) <= {0.0, 1.0}:
        only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
        p = float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Comparison(len(items), float((a - b).mean()), float(low), float(high), p)


def overlapping(lab: Path | str, task: str) -> set[str] | None:
    """The items of a task that share a run of words with a text of the lab's corpora that is flagged `benchmark
    overlap`; None where no text is flagged (nothing was looked for, or nothing found)."""
    from salad.evaluation import tasks
    from salad.prepare.overlap import ngrams

    name = task.partition("@")[0]
    rows = store.connect(lab).execute(
        "select text from samples where list_contains(flags, 'benchmark overlap') and list_contains(benchmarks, ?)", [name]
    ).fetchall()  # fmt: skip
    if not rows:
        return None
    return _touched([text for (text,) in rows], tasks.load(lab, name), ngrams)


def _touched(texts: list[str], items, ngrams) -> set[str]:
    from salad.prepare.overlap import NGRAM

    seen = {int(h) for text in texts for h in ngrams(text, NGRAM)}
    touched = set()
    for item in items:
        if any(int(h) in seen for choice in item.choices or ("",) for h in ngrams(f"{item.context} {choice}", NGRAM)):
            touched.add(item.item_id)
    return touched


def summary(lab: Path | str, contender: str, run_id: str | None, step: int | None,
            tasks: list[str] | None = None) -> list[dict]:  # fmt: skip
    """A row a task and modality: n, voices, accuracy and standard error (length-normalised), gap to the teacher's text,
    share of answers that could not be read, accuracy without benchmark overlap, seconds heard and computed. A contender
    that the lab has not heard of is a SaladError."""
    con = store.connect(lab)
    rows = con.execute(
        """select task, modality, count(distinct voice) as voices, avg((not parsed)::int) as unread, sum(speech_s),
                  sum(compute_s)
           from evaluations where contender = ? and run_id is not distinct from ? and step is not distinct from ?
           group by all order by all""", [contender, run_id, step]
    ).fetchall()  # fmt: skip
    rows = [row for row in rows if tasks is None or row[0] in tasks]
    if not rows:
        raise SaladError(f"{contender} has no evaluation here; make one with `salad evaluate`")
    told, touched = [], {}
    for task, modality, voices, unread, speech_s, compute_s in rows:
        mine = answers(con, contender, run_id, step, task, modality)
        if not mine:
            continue
        accuracy, error = mean_and_error(mine.values())
        teachers = _teacher(con, task)
        gap = compare(teachers, mine) if teachers else None
        touched.setdefault(task, overlapping(lab, task) if _flagged(con) else None)
        clean = None if touched[task] is None else {i: v for i, v in mine.items() if i not in touched[task]}
        told.append({
            "task": task, "modality": modality, "items": len(mine), "voices": voices, "accuracy": accuracy,
            "standard_error": error, "gap": gap and gap.difference, "gap_low": gap and gap.low,
            "gap_high": gap and gap.high, "unread": unread, "items_without_overlap": None if clean is None else len(clean),
            "accuracy_without_overlap": mean_and_error(clean.values())[0] if clean else None,
            "speech_s": speech_s, "compute_s": compute_s,
        })  # fmt: skip
    return told


def _flagged(con) -> bool:
    columns = {row[0] for row in con.execute("describe samples").fetchall()}
    return "benchmarks" in columns and bool(
        con.execute("select count(*) from samples where list_contains(flags, 'benchmark overlap')").fetchone()[0]
    )


def _teacher(con, task: str) -> dict[str, float]:
    """The lab's newest teacher on the text of a task."""
    row = con.execute(
        """select e.run_id, e.step from evaluations e left join runs r using (run_id)
           where e.contender = 'teacher' and e.task = ? and e.modality = 'text'
           order by r.ended_at desc nulls last, 1 limit 1""", [task]
    ).fetchone()  # fmt: skip
    return answers(con, "teacher", *row, task, "text") if row else {}


def sides(lab: Path | str, name: str) -> tuple[str, str | None, int | None]:
    """(contender, run_id, step) that `name`, `name@run` or `name@run:step` stands for: of several the newest run and its
    last step."""
    contender, _, place = name.partition("@")
    run_id, _, step = place.partition(":")
    if step and not step.isdigit():
        raise SaladError(f"{name}: write it as contender, contender@run or contender@run:step")
    con = store.connect(lab)
    row = con.execute(
        """select e.contender, e.run_id, e.step from evaluations e left join runs r using (run_id)
           where e.contender = ? and (? = '' or e.run_id = ?) and (? = '' or e.step = try_cast(? as bigint))
           order by r.ended_at desc nulls last, e.run_id, e.step desc limit 1""", [contender, run_id, run_id, step, step]
    ).fetchone()  # fmt: skip
    if row is None:
        known = [n for (n,) in con.execute("select distinct contender from evaluations order by 1").fetchall()]
        raise SaladError(f"no evaluation of {name!r} here; there are {', '.join(known) or 'none'}")
    return row


def comparisons(lab: Path | str, one: tuple, other: tuple, tasks: list[str] | None = None) -> list[dict]:
    """A row a task and modality that both sides have, and over all tasks: the paired comparison of their answers."""
    con = store.connect(lab)
    keys = [
        {tuple(row) for row in con.execute(
            "select distinct task, modality from evaluations where contender = ? and run_id is not distinct from ? "
            "and step is not distinct from ?", list(side)).fetchall()}
        for side in (one, other)
    ]  # fmt: skip
    rows, whole = [], {}
    for task, modality in sorted(keys[0] & keys[1]):
        if tasks is not None and task not in tasks:
            continue
        a, b = (answers(con, *side, task, modality) for side in (one, other))
        rows.append(_row(task, modality, compare(a, b)))
        for side, found in enumerate((a, b)):
            whole.setdefault(modality, ({}, {}))[side].update({f"{task}/{i}": v for i, v in found.items()})
    if len({row["task"] for row in rows}) > 1:
        rows += [_row("all", modality, compare(*both)) for modality, both in sorted(whole.items())]
    return [row for row in rows if row]


def modalities(lab: Path | str, side: tuple, tasks: list[str] | None = None) -> list[dict]:
    """A row a task and modality but text: the same contender's other modality − its text, paired over items."""
    con = store.connect(lab)
    found = con.execute(
        """select distinct task, modality from evaluations where contender = ? and run_id is not distinct from ?
           and step is not distinct from ? and modality <> 'text' order by all""", list(side)
    ).fetchall()  # fmt: skip
    rows = []
    for task, modality in found:
        if tasks is None or task in tasks:
            both = (answers(con, *side, task, name) for name in (modality, "text"))
            rows.append(_row(task, f"{modality} − text", compare(*both)))
    return [row for row in rows if row]


def _row(task: str, modality: str, found: Comparison | None) -> dict | None:
    return None if found is None else {"task": task, "modality": modality, **vars(found)}
