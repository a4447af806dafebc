"""The paper's findings put to the test on a study of the miniature: each claim with its interval and a verdict, and the
tables of a sweep, as Markdown and CSV. `salad findings` and `salad sweep` write them."""

import platform
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

import store
from salad import analysis
from salad.analysis import ALL
from salad.errors import SaladError
from salad.study import grids
from salad.study.notes import failures
from workbench.reports.claims import (
    CHECKPOINTS,
    CLAIMS,
    ENOUGH,
    ClaimResult,
    claims_of_hours,
    claims_of_prediction,
    claims_of_scaling,
    judge,
    last_of,
)
from workbench.reports.tables import markdown_table

AXES = {
    "strategy": "Strategies at equal hours", "gamma": "γ, the exponent on d_cluster", "k": "K, the number of clusters",
    "rounds": "Drawing in rounds", "hours": "Hours of selected speech", "alpha": "α and the breadth of natural speech",
    "span": "Interleaving: span lengths in units", "divergence": "Divergence that is distilled",
    "finetune": "LoRA and full fine-tuning", "faults": "Planted faults removed (CER above 0.25) or not",
}  # fmt: skip
ARMS = ("stage1", "active", "uniform")
SHARED = set(ARMS)


@dataclass
class Findings:
    """What a study shows. `rows`: analysis.collect of its labs, `claims`: judged, `tables`: (axis, frame), `run_notes`: what
    was run at which sizes, `lacking`: cells that were not run, with how many seeds they have; `failed`: cells with the
    error of the last attempt; `arms`: text, speech, cascade and gap of the teacher and of what the study is about."""

    rows: pd.DataFrame
    claims: list[ClaimResult]
    tables: dict[str, pd.DataFrame]
    run_notes: list[str]
    lacking: list[str]
    failed: list[str]
    seeds: list[int]
    arms: pd.DataFrame


def findings(labs: dict[int, Path], axes: tuple[str, ...] = tuple(AXES)) -> Findings:
    """Judge every claim from the stores of a study's labs; SaladError where nothing is measured yet."""
    rows = analysis.collect(labs)
    if rows.empty:
        raise SaladError("nothing of this study is measured yet; `salad findings` runs it")
    study = store.atomic.load_json(next(iter(labs.values())) / "study.json")
    cells = [grids.Cell(**cell) for cell in study.get("cells", [])]
    tables = {axis: table for axis in axes if len(table := axis_table(rows, cells, axis))}
    claims = [*claims_of_prediction(rows), *claims_of_scaling(rows, labs), *(judge(rows, claim) for claim in CLAIMS),
              *claims_of_hours(rows)]  # fmt: skip
    done = rows[rows["last"] & rows.group.eq(ALL) & rows.speech.notna()].groupby("contender").seed.nunique()
    known = {cell.name for cell in grids.cells()}
    everything = grids.cells() if known >= {cell.name for cell in cells} else cells  # what the full study has, too
    lacking = []
    for count in range(len(labs)):
        names = [cell.name for cell in everything if done.get(cell.name, 0) == count]
        if names:
            lacking.append(f"{f'on {count} of {len(labs)} seeds only' if count else 'on no seed'}: {', '.join(names)}")
    seeds = sorted(rows.seed.unique())
    failed = [f"seed {s}: {name} ({reason})" for s in labs for name, reason in failures(labs[s]).items()]
    run_notes = _run_notes({s: labs[s] for s in seeds}, study)
    return Findings(rows, claims, tables, run_notes, lacking, failed, seeds, arms_table(rows, labs))


def axis_table(rows: pd.DataFrame, cells: list, axis: str) -> pd.DataFrame:
    """The cells of an axis by group of domains: seeds, hours, and M, F, speech and text with half a 95 % interval."""
    names = [cell.name for cell in cells if axis in cell.axes]
    names = [n for n in names if len(last_of(rows, n))]
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


def _run_notes(labs: dict[int, Path], study: dict) -> list[str]:
    config = study["config"]
    world, stage1, two = config["world"], config["stage1"]["optim"], config["stage2"]["optim"]
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
        f"Stage I: {stage1['steps']} steps of {stage1['batch']}; Stage II: {two['steps']} steps of {two['batch']}, "
        f"{config['budget_h']:g} h of selected speech, γ = {config['gamma']:g} and K = {config['n_clusters']} where not "
        "said otherwise.",
        "Intervals are 95 %, Student's t over seeds, of the difference at the same seed where two cells are compared. One "
        "seed gives none, and decides nothing; two give very wide ones. γ = 2 and the base's other settings were chosen on "
        "seeds 10 and 11 (experiments/LOG.md), never on those reported.",
        f"{platform.machine()}, {_processor()}; {seconds / 60:,.0f} minutes of runs in all, beside other work on the machine.",
    ]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        return f"{len(names)} cores of {names[0]}" if names else platform.processor()
    except OSError:
        return platform.processor()


def markdown(findings: Findings, command: str, claims: bool = True) -> str:
    """docs/findings.md; without `claims`, the tables of a sweep."""
    verdicts = pd.Series([row.verdict for row in findings.claims]).value_counts()
    counted = ", ".join(f"{name} {n}" for name, n in verdicts.items())
    title = "The paper's findings, put to the test in miniature" if claims else "A sweep of the miniature"
    parts = [
        f"# {title}\n",
        f"Written by `{command}`; don't edit it by hand. What follows is about the miniature only: a 0.9 M-parameter "
        "teacher, espeak-ng's voices, 112 facts. It can say what holds or fails *here*, not what holds at 3B.\n",
        "## What was run\n",
        *(f"- {line}" for line in findings.run_notes),
        f"- Not run: {'; '.join(findings.lacking) or 'nothing is missing'}.",
        *([f"- Tried and failed: {'; '.join(findings.failed)}."] if findings.failed else ()),
        "- Active against uniform at the demo's own sizes, on three seeds: the table in README.md.\n",
    ]
    if claims:
        parts += [
            "## Claims\n",
            f"Of {len(findings.claims)}: {counted}. A claim holds where the 95 % interval of its difference lies on its side "
            "of zero, does not hold where it lies on the other, and is undecided in between; a prediction holds where its "
            f"leave-one-out R² lies above {ENOUGH}, interval and all, over {CHECKPOINTS} checkpoints or more.\n",
            markdown_table(
                ["claim", "whose", "what the miniature shows", "in miniature", "likely reason"],
                [[r.text, r.source, r.seen, f"**{r.qualified_verdict}**", r.reason] for r in findings.claims],
            ),
            "",
        ]
    if claims and len(findings.arms):
        parts += [
            "## Text, speech and cascade\n",
            "The gap is the teacher's accuracy on text minus the contender's on speech, item by item.\n",
            markdown_table(*arms_cells(findings.arms)),
            "",
        ]
    for axis, table in findings.tables.items():
        heads, cells = axis_cells(table)
        parts += [f"## {AXES[axis]}\n", markdown_table(heads, cells), ""]
    return "\n".join(parts)


def show(findings: Findings, claims: bool = True) -> None:
    """The tables and the claims, in the terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    console = console if console.is_terminal else Console(markup=False, highlight=False, width=170)
    shown_first = [("Text, speech and cascade", *arms_cells(findings.arms))] if claims and len(findings.arms) else []
    for title, heads, cells in [*shown_first, *((AXES[axis], *axis_cells(table)) for axis, table in findings.tables.items())]:
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
    for row in findings.claims if claims else ():
        console.print(f"{row.qualified_verdict:<16} {row.text}: {row.seen}", soft_wrap=True)


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


def write(findings: Findings, folder: Path, command: str, more: Path | None = None, claims: bool = True) -> list[Path]:
    """findings.md (sweep.md without `claims`) and each table as CSV into `folder`; the former to `more`, too. Returns
    what was written."""
    text = markdown(findings, command, claims).encode()
    files = {folder / ("findings.md" if claims else "sweep.md"): text} | ({more: text} if more else {})
    claim_rows = pd.DataFrame([{k: v for k, v in vars(r).items() if k != "values"} for r in findings.claims])
    files[folder / "claims.csv"] = claim_rows.to_csv(index=False).encode()
    files[folder / "checkpoints.csv"] = findings.rows.to_csv(index=False).encode()
    if claims:
        files[folder / "arms.csv"] = findings.arms.to_csv(index=False).encode()
    for axis, table in findings.tables.items():
        files[folder / f"{axis}.csv"] = table.to_csv(index=False).encode()
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        store.atomic.write_bytes(path, content)
    return list(files)
