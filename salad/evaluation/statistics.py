"""What evaluations say, from the store alone: accuracy with its standard error, gaps, heard shares, paired comparisons.

An item heard in several voices counts once, as the mean over its voices: answers to one item are not independent.
Answers of different settings never stand in one figure: the task's examples, the synthesiser, the recogniser."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import store
from salad.errors import SaladError

Side = tuple[str, str | None, int | None]  # contender, its run or where it has none its fingerprint, step

# Rows of before there were fingerprints and synthesisers take what they can only mean. Answers to what an item asked before
# it was edited, and of a run's checkpoint before it was trained anew, are left out.
_ANSWERED = """
    create or replace temp view answered as
    with marked as (
        select contender, any_value(fingerprint) as only_one from evaluations
        where run_id is null and fingerprint is not null group by contender having count(distinct fingerprint) = 1
    ),
    engines as (
        select coalesce(voice, tts) as voice, any_value(tts) as only_one from syntheses group by all
        having count(distinct tts) = 1
    ),
    asked as (
        select task, item_id, arg_max(content, coalesce("at", 'epoch'::timestamptz)) as content from evaluations
        where content is not null group by all
    ),
    trained as (
        select run_id, step, contender, arg_max(fingerprint, coalesce("at", 'epoch'::timestamptz)) as fingerprint from evaluations
        where run_id is not null and fingerprint is not null group by all
    )
    select e.* exclude (tts),
        coalesce(e.run_id, e.fingerprint, case when if(e.contender = 'teacher', {one_llm}, e.compute_s is not null)
            then m.only_one end) as who,
        case when e.modality = 'text' then null else coalesce(e.tts, s.only_one) end as tts
    from evaluations e left join marked m using (contender) left join engines s using (voice)
        left join asked a using (task, item_id) left join trained t using (run_id, step, contender)
    where (e.content is null or e.content = a.content)
        and (e.fingerprint is null or e.fingerprint = coalesce(t.fingerprint, e.fingerprint))
"""


class Setting(NamedTuple):
    """What answers must agree in to stand in one figure. task: with its examples (`piqa@5`); tts: of the speech; asr: of
    a cascade."""

    task: str
    modality: str
    tts: str | None = None
    asr: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Two sides on the same items. difference: mean of (first − second), with its 95 % interval by paired bootstrap over
    items; p: of exact McNemar (two-sided), null where an item is the mean of several voices."""

    n: int
    difference: float
    low: float
    high: float
    p: float | None


@dataclass(frozen=True)
class Heard:
    """How much of what text gives over a deaf contender speech gives: (speech − deaf) / (text − deaf), on the same items.

    low, high: its 95 % interval by paired bootstrap over items; None, as the share, where text is not surely better than
    deaf, so that these items cannot show hearing. shows_hearing: whether speech is surely better than deaf."""

    n: int
    share: float | None
    low: float | None
    high: float | None
    shows_hearing: bool

    @property
    def verdict(self) -> str:
        """In words, what may be said of it."""
        if self.share is None:
            return "these items cannot show hearing: the text is no better than another item's recording"
        if not self.shows_hearing:
            return "nothing shows that it hears: the interval holds 0"
        return "hears"


def answered(con) -> None:
    """Make the view `answered` of a connection: `evaluations` with `who`, the run of a contender or where it has none its
    fingerprint, and `tts` of rows that are older than that column."""
    con.execute(_ANSWERED.format(one_llm="true" if one_llm(con) else "false"))


def one_llm(con) -> bool:
    """Whether all runs of a lab have the same text LLM."""
    count = con.execute(
        """select count(distinct (json_extract_string(config, '$.llm.name'), json_extract_string(config, '$.llm.teacher')))
           from runs where kind in ('stage1', 'stage2')"""
    ).fetchone()[0]  # fmt: skip
    return count <= 1


def identity(con, contender: str, who: str | None, step: int | None) -> Side:
    """The side that is meant: `who` None is the only one of this name that is no run; several are a SaladError. Needs the
    view `answered`."""
    if who is not None:
        return contender, who, step
    found = con.execute(
        "select distinct who from answered where contender = ? and run_id is null order by all", [contender]
    ).fetchall()
    if len(found) > 1:
        known = ", ".join(f"{contender}@{name}" if name else f"{contender} (brought in)" for (name,) in found)
        raise SaladError(f"the lab has several contenders called {contender}: {known}")
    return contender, found[0][0] if found else None, step


_OF = "contender = ? and who is not distinct from ? and step is not distinct from ?"


def settings(con, side: Side, tasks: list[str] | None = None) -> list[Setting]:
    """In what a side has answered, in order."""
    rows = con.execute(f"select distinct task, modality, tts, asr from answered where {_OF} order by all", list(side)).fetchall()
    return [Setting(*row) for row in rows if tasks is None or row[0] in tasks]


def answers(con, side: Side, setting: Setting) -> dict[str, float]:
    """{item id: correct_norm, a mean over the voices in which it was heard}."""
    return dict(
        con.execute(
            f"""select item_id, avg(correct_norm::int) from answered where {_OF} and task = ? and modality = ?
               and tts is not distinct from ? and asr is not distinct from ? and correct_norm is not null group by 1""",
            [*side, *setting],
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
    drawn = _resampled(a - b, draws, seed)
    p = None
    if set(np.unique(np.concatenate([a, b]))) <= {0.0, 1.0}:
        only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
        p = float(binomtest(only_a, only_a + only_b, 0.5).pvalue) if only_a + only_b else 1.0
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Comparison(len(items), float((a - b).mean()), float(low), float(high), p)


def _resampled(values_N: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Means [draws] of resamples of the items; the same seed draws the same items for any values."""
    n = len(values_N)
    return values_N[np.random.default_rng(seed).integers(0, n, (draws, n))].mean(1)


def heard_share(speech: dict[str, float], text: dict[str, float], deaf: dict[str, float],
                weights: dict[str, float] | None = None, draws: int = 2000, seed: int = 0) -> Heard | None:  # fmt: skip
    """The heard share over the items that all three have; None where they share none. weights: of each item, by default
    the same."""
    items = sorted(speech.keys() & text.keys() & deaf.keys())
    if not items:
        return None
    s, t, d = (np.array([side[item] for item in items], float) for side in (speech, text, deaf))
    weight = np.ones(len(items)) if weights is None else np.array([weights[item] for item in items], float)
    s, t, d = weight * s, weight * t, weight * d
    above, room = _resampled(s - d, draws, seed), _resampled(t - d, draws, seed)
    shows = bool(np.quantile(above, 0.025) > 0)
    if np.quantile(room, 0.025) <= 0:
        return Heard(len(items), None, None, None, shows)
    # where text − deaf is surely positive its rare draws at or below 0 have no share: they stand at the interval's ends
    ratio = np.where(room > 0, above / np.where(room > 0, room, 1.0), np.where(above > 0, np.inf, -np.inf))
    low, high = np.quantile(ratio, [0.025, 0.975], method="inverted_cdf")
    return Heard(len(items), float((s - d).mean() / (t - d).mean()), float(low), float(high), shows)


def hearing(con, side: Side, setting: Setting) -> Heard | None:
    """The heard share of a side's speech in one setting; None where it was not asked deaf, or not as text."""
    if setting.modality != "speech":
        return None
    speech, text, deaf = (
        answers(con, side, s) for s in (setting, Setting(setting.task, "text"), setting._replace(modality="deaf"))
    )
    return heard_share(speech, text, deaf) if speech and text and deaf else None


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


def summary(lab: Path | str, contender: str, who: str | None, step: int | None,
            tasks: list[str] | None = None) -> list[dict]:  # fmt: skip
    """A row a task, modality, synthesiser and recogniser: n, voices, accuracy and standard error (length-normalised), gap
    to the text of the teacher that the contender was made from, heard share, share of answers that could not be read and
    how an endpoint says that these ended, accuracy without benchmark overlap, seconds heard and computed.

    who: a run, else a fingerprint, else None: the only one of this name. A contender that the lab has not heard of is a
    SaladError."""
    con = store.connect(lab)
    answered(con)
    side = identity(con, contender, who, step)
    summaries: list[dict] = []
    touched: dict[str, Any] = {}  # the items of each task that overlap with the lab's corpora; None where nothing tells
    for setting in settings(con, side, tasks):
        mine = answers(con, side, setting)
        if not mine:
            continue
        voices, unread, speech_s, compute_s = con.execute(
            f"""select count(distinct voice), avg((not parsed)::int), sum(speech_s), sum(compute_s) from answered
               where {_OF} and task = ? and modality = ? and tts is not distinct from ? and asr is not distinct from ?""",
            [*side, *setting],
        ).fetchall()[0]  # fmt: skip
        task = setting.task
        accuracy, error = mean_and_error(mine.values())
        teachers = teacher_of(con, side)
        gap = compare(answers(con, teachers, Setting(task, "text")), mine) if teachers else None
        touched.setdefault(task, overlapping(lab, task) if _flagged(con) else None)
        clean = None if touched[task] is None else {i: v for i, v in mine.items() if i not in touched[task]}
        heard = hearing(con, side, setting)
        why = con.execute(
            f"""select finish_reason, count(*) from answered where {_OF} and task = ? and modality = ? and not parsed
               and tts is not distinct from ? and asr is not distinct from ? and finish_reason is not null
               group by 1 order by 2 desc, 1""", [*side, *setting]
        ).fetchall()  # fmt: skip
        summaries.append({
            "task": task, "modality": setting.modality, "tts": setting.tts, "asr": setting.asr, "items": len(mine),
            "voices": voices, "accuracy": accuracy, "standard_error": error, "gap": gap and gap.difference,
            "gap_low": gap and gap.low, "gap_high": gap and gap.high, "heard_share": heard and heard.share,
            "heard_low": heard and heard.low, "heard_high": heard and heard.high, "hearing": heard and heard.verdict,
            "unread": unread,
            "unread_ended": ", ".join(f"{reason} {count}" for reason, count in why) or None,
            "items_without_overlap": None if clean is None else len(clean),
            "accuracy_without_overlap": mean_and_error(clean.values())[0] if clean else None,
            "speech_s": speech_s, "compute_s": compute_s,
        })  # fmt: skip
    if not summaries:
        raise SaladError(f"{contender} has no evaluation here; make one with `salad evaluate`")
    return summaries


def share_in_words(row: dict) -> str:
    """The heard share of a row of `summary` as a sentence: the share with its interval, and what may be said of it."""
    if row["heard_share"] is None:
        return row["hearing"]
    low, high = (f"{100 * value:.0f}" for value in (row["heard_low"], row["heard_high"]))
    return f"{100 * row['heard_share']:.0f} % ({low} to {high}): {row['hearing']}"


def _flagged(con) -> bool:
    columns = {row[0] for row in con.execute("describe samples").fetchall()}
    return "benchmarks" in columns and bool(
        con.execute("select count(*) from samples where list_contains(flags, 'benchmark overlap')").fetchone()[0]
    )


def teacher_of(con, side: Side) -> Side | None:
    """The teacher whose text a side's gap is from: the LLM that it was made from, by its fingerprint. Of a side that does
    not say (older rows, systems from outside) the lab's only teacher, or the newest that was trained here; None where
    that is not one. Needs the view `answered`."""
    own = con.execute(
        f"select any_value(teacher) from answered where {_OF} and teacher is not null", list(side)
    ).fetchone()[0]  # fmt: skip
    found = con.execute(
        """select t.who, t.step, any_value(t.run_id) is not null as trained, any_value(t.fingerprint) as fingerprint
           from answered t left join runs r using (run_id) where t.contender = 'teacher' and t.modality = 'text'
           group by all order by max(r.ended_at) desc nulls last, t.who, t.step"""
    ).fetchall()  # fmt: skip
    if own is not None and (of := [row for row in found if row[3] == own]):
        return "teacher", *of[0][:2]
    unmarked = [row for row in found if row[3] is None] if own is not None else found
    if len(unmarked) > 1 and not all(trained for _, _, trained, _ in unmarked):
        return None
    return ("teacher", *unmarked[0][:2]) if unmarked else None


def sides(lab: Path | str, name: str) -> Side:
    """(contender, run or fingerprint, step) that `name`, `name@run` or `name@run:step` stands for: of several the newest
    run and its last step. Of a contender that is no run, `name@fingerprint`."""
    contender, _, place = name.partition("@")
    run_id, _, step = place.partition(":")
    if step and not step.isdigit():
        raise SaladError(f"{name}: write it as contender, contender@run or contender@run:step")
    con = store.connect(lab)
    answered(con)
    row = con.execute(
        """select e.contender, e.who, e.step, e.run_id from answered e left join runs r using (run_id)
           where e.contender = ? and (? = '' or e.who = ?) and (? = '' or e.step = try_cast(? as bigint))
           order by r.ended_at desc nulls last, e.run_id, e.step desc, e.who limit 1""",
        [contender, run_id, run_id, step, step],
    ).fetchone()  # fmt: skip
    if row is None:
        known = [n for (n,) in con.execute("select distinct contender from evaluations order by 1").fetchall()]
        raise SaladError(f"no evaluation of {name!r} here; there are {', '.join(known) or 'none'}")
    return row[:3] if row[3] is not None or run_id else identity(con, contender, None, row[2])


def comparisons(lab: Path | str, one: Side, other: Side, tasks: list[str] | None = None) -> list[dict]:
    """A row a setting that both sides have, and over all tasks: the paired comparison of their answers."""
    con = store.connect(lab)
    answered(con)
    one, other = identity(con, *one), identity(con, *other)
    rows: list[Any] = []  # None where nothing is paired
    whole: dict[Any, Any] = {}
    theirs = set(settings(con, other, tasks))
    for setting in settings(con, one, tasks):
        if setting not in theirs:
            continue
        a, b = (answers(con, side, setting) for side in (one, other))
        rows.append(_row(setting, setting.modality, compare(a, b)))
        over = Setting("all", *setting[1:])
        for side, found in enumerate((a, b)):
            whole.setdefault(over, ({}, {}))[side].update({f"{setting.task}/{i}": v for i, v in found.items()})
    if len({row["task"] for row in rows if row}) > 1:
        of = {row["task"].partition("@")[0] for row in rows if row}
        mixed = len(of) < len({row["task"] for row in rows if row})  # one task with several numbers of examples
        rows += [] if mixed else [_row(over, over.modality, compare(*both)) for over, both in sorted(whole.items(), key=str)]
    return [row for row in rows if row]


def modalities(lab: Path | str, side: Side, tasks: list[str] | None = None) -> list[dict]:
    """A row a setting that is not text: the same contender's other modality − its text, paired over items; and of its
    speech − deaf, where it was asked deaf."""
    con = store.connect(lab)
    answered(con)
    side = identity(con, *side)
    rows = []
    for setting in settings(con, side, tasks):
        if setting.modality == "text":
            continue
        mine, text = (answers(con, side, s) for s in (setting, Setting(setting.task, "text")))
        rows.append(_row(setting, f"{setting.modality} − text", compare(mine, text)))
        if setting.modality == "speech":
            deaf = answers(con, side, setting._replace(modality="deaf"))
            rows.append(_row(setting, "speech − deaf", compare(mine, deaf)))
    return [row for row in rows if row]


def _row(setting: Setting, modality: str, found: Comparison | None) -> dict | None:
    if found is None:
        return None
    return {"task": setting.task, "modality": modality, "tts": setting.tts, "asr": setting.asr, **vars(found)}
