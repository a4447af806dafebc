"""The paper's findings put to the test on a study of the miniature: each claim with its interval and a verdict, and the
tables of a sweep, as Markdown and CSV. `salad findings` and `salad sweep` write them."""

import json
import platform
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

import store
from salad import analysis
from salad.analysis import ALL, GROUPS
from salad.errors import SaladError
from salad.study import grids
from salad.study.notes import failures
from workbench.report import markdown_table

BROAD = GROUPS["uncovered"]
SEEDS = 3  # a verdict on fewer says so
CHECKPOINTS = 12  # fewer decide nothing about a prediction
ENOUGH = 0.5  # the share of variance above which a divergence is said to predict an accuracy
AXES = {
    "strategy": "Strategies at equal hours", "gamma": "γ, the exponent on d_cluster", "k": "K, the number of clusters",
    "rounds": "Drawing in rounds", "hours": "Hours of selected speech", "alpha": "α and the breadth of natural speech",
    "span": "Interleaving: span lengths in units", "divergence": "Divergence that is distilled",
    "finetune": "LoRA and full fine-tuning", "faults": "Planted faults removed (CER above 0.25) or not",
}  # fmt: skip
ARMS = ("stage1", "active", "uniform")
SHARED = set(ARMS)


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
class Row:
    """A claim, judged: what was seen, on how many seeds, and holds / does not hold / undecided / not run."""

    text: str
    source: str
    seen: str
    verdict: str
    reason: str = ""
    values: dict = field(default_factory=dict)
    seeds: int = 0

    @property
    def told(self) -> str:
        """The verdict, and that it rests on fewer seeds than a study has."""
        few = self.verdict != "not run" and self.seeds < SEEDS
        return f"{self.verdict} ({self.seeds} seed{'s' * (self.seeds > 1)} only)" if few else self.verdict


def not_run(text: str, source: str, *cells: str) -> Row:
    return Row(text, source, f"needs {' and '.join(cells)} on one seed at least", "not run")


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


@dataclass
class Findings:
    """What a study shows. `rows`: analysis.collect of its labs, `claims`: judged, `tables`: (axis, frame), `told`: what
    was run at which sizes, `lacking`: cells that were not run, with how many seeds they have; `failed`: cells with the
    error of the last attempt; `arms`: text, speech, cascade and gap of the teacher and of what the study is about."""

    rows: pd.DataFrame
    claims: list[Row]
    tables: dict[str, pd.DataFrame]
    told: list[str]
    lacking: list[str]
    failed: list[str]
    seeds: list[int]
    arms: pd.DataFrame


def findings(labs: dict[int, Path], axes: tuple[str, ...] = tuple(AXES)) -> Findings:
    """Judge every claim from the stores of a study's labs; SaladError where nothing is measured yet."""
    rows = analysis.collect(labs)
    if rows.empty:
        raise SaladError("nothing of this study is measured yet; `salad findings` runs it")
    study = json.loads((next(iter(labs.values())) / "study.json").read_text())
    cells = [grids.Cell(**cell) for cell in study.get("cells", [])]
    tables = {axis: table for axis in axes if len(table := axis_table(rows, cells, axis))}
    claims = [*_predicts(rows), *_scaling(rows, labs), *(judge(rows, claim) for claim in CLAIMS), *_hours(rows)]
    done = rows[rows["last"] & rows.group.eq(ALL) & rows.speech.notna()].groupby("contender").seed.nunique()
    known = {cell.name for cell in grids.cells()}
    everything = grids.cells() if known >= {cell.name for cell in cells} else cells  # what the full study has, too
    lacking = []
    for count in range(len(labs)):
        names = [cell.name for cell in everything if done.get(cell.name, 0) == count]
        if names:
            lacking.append(f"{f'on {count} of {len(labs)} seeds only' if count else 'on no seed'}: {', '.join(names)}")
    seeds = sorted(rows.seed.unique())
    failed = [f"seed {s}: {name} ({said})" for s in labs for name, said in failures(labs[s]).items()]
    told = _told({s: labs[s] for s in seeds}, study)
    return Findings(rows, claims, tables, told, lacking, failed, seeds, arms_table(rows, labs))


def judge(rows: pd.DataFrame, claim: Claim) -> Row:
    """A claim's paired difference over seeds, its interval and verdict."""
    both = set(_last(rows, claim.cell).seed) & set(_last(rows, claim.base).seed)
    rows = rows[rows.seed.isin(both)]  # the means that are shown are of the seeds that are compared
    made = analysis.compare(rows, [claim.cell], claim.base, (claim.measure,))
    made = made[made.group == claim.group] if len(made) else made
    if not len(made) or not both or not np.isfinite(made[f"{claim.measure}_over"].iloc[0]):
        return not_run(claim.text, claim.source, claim.cell, claim.base)
    row = made.iloc[0]
    value, half = row[f"{claim.measure}_over"], row[f"{claim.measure}_over_half"]
    base = analysis.interval(_last(rows, claim.base, claim.group)[claim.measure])[0]
    seen = (
        f"{_value(row[claim.measure], claim.measure)} ({claim.cell}) against {_value(base, claim.measure)} "
        f"({claim.base}): {_change(value, half, claim.measure)}, {len(both)} seed{'s' * (len(both) > 1)}"
    )
    verdict = analysis.verdict(claim.sign * value, half)
    reason = "" if verdict == "holds" or not np.isfinite(half) else claim.reason
    return Row(claim.text, claim.source, seen, verdict, reason, {"difference": value, "half": half}, len(both))


def _last(rows, contender, group=ALL) -> pd.DataFrame:
    return rows[rows["last"] & rows.contender.eq(contender) & rows.group.eq(group)]


def _predicts(rows: pd.DataFrame) -> list[Row]:
    out = []
    part = rows[rows.group.eq(ALL) & rows.speech.notna() & rows.m.gt(0) & rows.f.gt(0)]
    for text, measure, other, paper, partial in (
        ("M predicts speech accuracy", "M", "F", 0.75, 0.56), ("F predicts text accuracy", "F", "M", 0.74, 0.32),
    ):  # fmt: skip
        of = "speech" if measure == "M" else "text"
        claim = f"{text} (leave-one-out R² {paper}, partial R² about {partial} in the paper)"
        try:
            one = analysis.predictors(part, ALL)
            apart = analysis.predictors(part, ALL, by_seed=part.seed.nunique() > 1)[f"{of} on {measure}"].r2_loo
        except SaladError as error:
            out.append(Row(claim, PAPER, str(error), "not run"))
            continue
        alone, both = one[f"{of} on {measure}"], one[f"{of} on {measure}, {other}"]
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
        out.append(Row(claim, PAPER, seen, verdict, reason, seeds=seeds))
    return out


def _loo_interval(part: pd.DataFrame, of: str, measure: str, draws: int = 300) -> tuple[float, float]:
    """A 95 % bootstrap interval over checkpoints of the leave-one-out R²; copies of one are left out together."""
    rng, found = np.random.default_rng(0), []
    x, y = np.log(part[measure.lower()].to_numpy()), part[of].to_numpy()
    for _ in range(draws):
        pick = rng.integers(len(y), size=len(y))
        try:
            found.append(analysis.regression(y[pick], x[pick, None], (measure,), pick).r2_loo)
        except SaladError:  # a draw of one checkpoint only
            continue
    return tuple(np.percentile(found, [2.5, 97.5])) if found else (np.nan, np.nan)


def _scaling(rows: pd.DataFrame, labs: dict[int, Path]) -> list[Row]:
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
        out.append(Row(text, PAPER, seen, verdict, reason, seeds=len(fitted["narrow_alpha0"])))
    else:
        out.append(Row(text, PAPER, "needs narrow_alpha0 on two seeds at least, scored at four checkpoints", "not run"))
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
            f"E {e:.2f} at α = ½ and {b:.2f} at α = 1, difference {mean:+.2f} ± {half:.2f}, {n} seeds, up to "
            f"{most:,.0f} tokens"
        )
        reason = "E lies beyond the tokens that were seen: four checkpoints of short runs do not fix it."
        reason = "" if verdict == "holds" else reason
        out.append(Row(text, PAPER, seen, verdict, reason, seeds=n))
    else:
        needed = "needs broad_alpha50 and broad_alpha100 on two seeds at least, scored at four checkpoints"
        out.append(Row(text, PAPER, needed, "not run"))
    return out


def _hours(rows: pd.DataFrame) -> list[Row]:
    """The hours that uniform needs for what active reaches at the study's budget."""
    out = []
    for group in (BROAD, ALL):
        text = f"Hours of uniform selection that match active's M ({group})"
        last = rows[rows["last"] & rows.group.eq(group)]
        told = []
        for _, part in last.groupby("seed"):
            active = part[part.contender == "active"]
            uniform = part[part.contender.isin(["uniform", "uniform_hours0.5", "uniform_hours2"])]
            if len(active) and len(uniform) > 1:
                own, target = float(active.hours.iloc[0]), float(active.m.iloc[0])
                told.append((*analysis.hours_to_match(uniform.hours, uniform.m, target), own))
        if not told:
            out.append(not_run(text, HERE, "active", "uniform", "uniform_hours2 or uniform_hours0.5"))
            continue
        seen = "; ".join(f"{'' if sign == '=' else sign + ' '}{hours:.2f} h against {own:.2f} h" for sign, hours, own in told)
        more = [sign == ">" or (sign == "=" and hours > own) for sign, hours, own in told]
        verdict = "active needs fewer" if all(more) else "uniform needs fewer" if not any(more) else "undecided"
        out.append(Row(text, HERE, f"{seen} (a seed each)", verdict, seeds=len(told)))
    return out


def axis_table(rows: pd.DataFrame, cells: list, axis: str) -> pd.DataFrame:
    """The cells of an axis by group of domains: seeds, hours, and M, F, speech and text with half a 95 % interval."""
    names = [cell.name for cell in cells if axis in cell.axes]
    names = [n for n in names if len(_last(rows, n))]
    if len(names) < 2 or (axis != "strategy" and not set(names) - SHARED):  # only cells that stand in every table
        return pd.DataFrame()
    base = "stage1" if axis == "alpha" else "active" if axis in ("span", "divergence") else "uniform"
    return analysis.compare(rows, names, base).assign(base=base)


def arms_table(rows: pd.DataFrame, labs: dict[int, Path]) -> pd.DataFrame:
    """Text, speech and cascade, and the gap to the teacher's text, by group: means over seeds with half an interval."""
    last = rows[rows["last"] & rows.contender.isin(ARMS)]
    both = pd.concat([analysis.teachers({s: lab for s, lab in labs.items() if s in set(last.seed)}), last])
    out = []
    for group in last.group.drop_duplicates():
        for name in ("teacher", *ARMS):
            part = both[both.contender.eq(name) & both.group.eq(group)]
            if len(part):
                row = {"group": group, "contender": name, "seeds": part.seed.nunique()}
                for measure in ("text", "speech", "cascade", "gap"):
                    row[measure], row[f"{measure}_half"] = analysis.interval(part[measure])
                out.append(row)
    return pd.DataFrame(out)


def arms_cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Heads and text cells of `arms_table`."""
    measures = ("text", "speech", "cascade", "gap")
    return ["group", "contender", "seeds", "text (%)", "speech (%)", "cascade (%)", "gap (points)"], [
        [row["group"], row["contender"], str(row["seeds"]), *(_cell(row[m], row[f"{m}_half"], m) for m in measures)]
        for row in table.to_dict("records")
    ]


def _value(x: float, measure: str) -> str:
    return f"{x:.3f}" if measure in ("m", "f") else f"{100 * x:.1f} %"


def _change(x: float, half: float, measure: str) -> str:
    width = f" ± {half:.3f}" if measure in ("m", "f") else f" ± {100 * half:.1f}"
    width = width if np.isfinite(half) else " (one seed, no interval)"
    return f"{x:+.3f}{width}" if measure in ("m", "f") else f"{100 * x:+.1f}{width} points"


def _cell(x: float, half: float, measure: str) -> str:
    if not np.isfinite(x):
        return "–"
    scale, digits = (1, 3) if measure in ("m", "f") else (100, 1)
    return f"{scale * x:.{digits}f}" + (f" ± {scale * half:.{digits}f}" if np.isfinite(half) else "")


def axis_cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Heads and text cells of an axis's table."""
    base = table.base.iloc[0]
    heads = ["group", "cell", "seeds", "hours", "M", f"M − {base}'s", "F", "speech (%)", f"speech − {base}'s", "text (%)"]
    out = []
    order = {name: i for i, name in enumerate(table.contender.drop_duplicates())}
    for group, part in table.groupby("group", sort=False):
        for row in sorted(part.to_dict("records"), key=lambda r: order[r["contender"]]):
            own = row["contender"] == base
            out.append([
                group, row["contender"], str(row["seeds"]), "–" if not np.isfinite(row["hours"]) else f"{row['hours']:.2f}",
                _cell(row["m"], row["m_half"], "m"), "" if own else _cell(row["m_over"], row["m_over_half"], "m"),
                _cell(row["f"], row["f_half"], "f"), _cell(row["speech"], row["speech_half"], "speech"),
                "" if own else _cell(row["speech_over"], row["speech_over_half"], "speech"),
                _cell(row["text"], row["text_half"], "text"),
            ])  # fmt: skip
    return heads, out


def _told(labs: dict[int, Path], study: dict) -> list[str]:
    config = study["config"]
    world, one, two = config["world"], config["stage1"]["optim"], config["stage2"]["optim"]
    seconds = 0.0
    for lab in labs.values():
        seconds += store.connect(lab).execute(
            "SELECT coalesce(sum(date_diff('millisecond', started_at, ended_at)), 0) / 1000 FROM runs WHERE status = 'done'"
        ).fetchone()[0]  # fmt: skip
    return [
        f"Seeds {', '.join(map(str, labs))}; each makes its own world, teacher, recogniser, voices' speech, Stage I and draws. "
        "The encoder, which hears nothing of the world, is one for all seeds.",
        f"World: {world['broad']:,} texts to select from, {sum(world['natural'].values())} texts of natural speech, "
        f"{world['heldout_per_domain']} held-out texts and {world['items_per_domain']} items a domain.",
        f"Stage I: {one['steps']} steps of {one['batch']}; Stage II: {two['steps']} steps of {two['batch']}, "
        f"{config['budget_h']:g} h of selected speech, γ = {config['gamma']:g} and K = {config['n_clusters']} where not "
        "said otherwise.",
        "Intervals are 95 %, Student's t over seeds, of the difference at the same seed where two cells are compared. One "
        "seed gives none, and decides nothing; two give very wide ones. γ = 2 and the base's other settings were chosen on "
        "seeds 10 and 11 (experiments/LOG.md), never on those reported.",
        f"{platform.machine()}, {_processor()}; {seconds / 60:,.0f} minutes of runs in all, beside other work on the machine.",
    ]  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        return f"{len(names)} cores of {names[0]}" if names else platform.processor()
    except OSError:
        return platform.processor()


def markdown(found: Findings, command: str, claims: bool = True) -> str:
    """docs/findings.md; without `claims`, the tables of a sweep."""
    verdicts = pd.Series([row.verdict for row in found.claims]).value_counts()
    counted = ", ".join(f"{name} {n}" for name, n in verdicts.items())
    title = "The paper's findings, put to the test in miniature" if claims else "A sweep of the miniature"
    parts = [
        f"# {title}\n",
        f"Written by `{command}`; don't edit it by hand. What follows is about the miniature only: a 0.9 M-parameter "
        "teacher, espeak-ng's voices, 112 facts. It can say what holds or fails *here*, not what holds at 3B.\n",
        "## What was run\n", *(f"- {line}" for line in found.told),
        f"- Not run: {'; '.join(found.lacking) or 'nothing is missing'}.",
        *([f"- Tried and failed: {'; '.join(found.failed)}."] if found.failed else ()),
        "- Active against uniform at the demo's own sizes, on three seeds: the table in README.md.\n",
    ]  # fmt: skip
    if claims:
        parts += [
            "## Claims\n",
            f"Of {len(found.claims)}: {counted}. A claim holds where the 95 % interval of its difference lies on its side "
            "of zero, does not hold where it lies on the other, and is undecided in between; a prediction holds where its "
            f"leave-one-out R² lies above {ENOUGH}, interval and all, over {CHECKPOINTS} checkpoints or more.\n",
            markdown_table(["claim", "whose", "what the miniature shows", "in miniature", "likely reason"],
                           [[r.text, r.source, r.seen, f"**{r.told}**", r.reason] for r in found.claims]), "",
        ]  # fmt: skip
    if claims and len(found.arms):
        parts += ["## Text, speech and cascade\n",
                  "The gap is the teacher's accuracy on text minus the contender's on speech, item by item.\n",
                  markdown_table(*arms_cells(found.arms)), ""]  # fmt: skip
    for axis, table in found.tables.items():
        heads, cells = axis_cells(table)
        parts += [f"## {AXES[axis]}\n", markdown_table(heads, cells), ""]
    return "\n".join(parts)


def show(found: Findings, claims: bool = True) -> None:
    """The tables and the claims, in the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    console = console if console.is_terminal else Console(markup=False, highlight=False, width=170)
    shown_first = [("Text, speech and cascade", *arms_cells(found.arms))] if claims and len(found.arms) else []
    for title, heads, cells in [*shown_first, *((AXES[axis], *axis_cells(table)) for axis, table in found.tables.items())]:
        shown = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
        for i, head in enumerate(heads):
            shown.add_column(head, justify="left" if i < 2 else "right", no_wrap=True)
        for i, row in enumerate(cells):
            first = i == 0 or cells[i - 1][0] != row[0]
            if first and i:
                shown.add_section()
            shown.add_row(row[0] if first else "", *row[1:])
        console.print(shown)
        console.print()
    for row in found.claims if claims else ():
        console.print(f"{row.told:<16} {row.text}: {row.seen}", soft_wrap=True)


def show_plan(grid: grids.Grid, left: list[tuple[str, int, float]], workers: int) -> None:
    """What a study would still run, in its order, with the clock's time so far."""
    from rich.console import Console
    from rich.table import Table

    console, clock = Console(markup=False, highlight=False), 0.0
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("cell", "steps left", "minutes", "from the start"):
        shown.add_column(head, justify="left" if head == "cell" else "right", no_wrap=True)
    for what, steps, seconds in left:
        clock += seconds
        shown.add_row(what, str(steps), f"{seconds / 60:.1f}", f"{clock / 60:.0f}")
    console.print(shown)
    console.print(
        f"{grid.name}: {len(left)} of {len(grid.cells) + 1} rows left on seeds {', '.join(map(str, grid.seeds))}; about "
        f"{clock / 60:.0f} minutes with {workers} workers on as many idle cores (measured on AMD EPYC, 2 cores).",
        soft_wrap=True,
    )


def write(found: Findings, folder: Path, command: str, more: Path | None = None, claims: bool = True) -> list[Path]:
    """findings.md (sweep.md without `claims`) and each table as CSV into `folder`; the former to `more`, too. Returns
    what was written."""
    text = markdown(found, command, claims).encode()
    files = {folder / ("findings.md" if claims else "sweep.md"): text} | ({more: text} if more else {})
    told = pd.DataFrame([{k: v for k, v in vars(r).items() if k != "values"} for r in found.claims])
    files[folder / "claims.csv"] = told.to_csv(index=False).encode()
    files[folder / "checkpoints.csv"] = found.rows.to_csv(index=False).encode()
    if claims:
        files[folder / "arms.csv"] = found.arms.to_csv(index=False).encode()
    for axis, table in found.tables.items():
        files[folder / f"{axis}.csv"] = table.to_csv(index=False).encode()
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        store.atomic.write_bytes(path, content)
    return list(files)
