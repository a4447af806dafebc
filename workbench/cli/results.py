"""`salad report`, `findings` and `sweep`: results as tables and files."""

import difflib
import sys

import tyro

from workbench.cli.app import File, Lab, command


@command
def report(*, lab: Lab = None, runs: tyro.conf.UseAppendAction[list[str]] = []) -> int:  # noqa: B006
    """Show the lab's results as a table and write report.md, report.html and, for a paper, lab/report/.

    lab/report/ contains each table as LaTeX (booktabs) and CSV, with this lab's rows beside the published results, and
    each figure as SVG, PNG and CSV.

    Args:
        runs: report only these runs, comma-separated or repeated (default: each contender's newest checkpoint).
    """
    import store
    from workbench import reports

    made = reports.report(store.lab_path(lab), [part for run in runs for part in run.split(",")] if runs else None)
    made.print()
    print(f"{made.markdown_path}, {made.html_path}, and {len(made.files) - 2} files in {made.lab / 'report'}")
    return 0


@command
def findings(
    *,
    lab: Lab = None,
    quick: bool = False,
    half: bool = False,
    seeds: str = "0,1,2",
    cells: str | None = None,
    workers: int = 2,
    plan: bool = False,
    no_run: bool = False,
    write: File = None,
    name: str | None = None,
) -> int:
    """Test the paper's findings in miniature over several seeds: each claim holds, does not hold, or is undecided.

    The study varies alpha, the breadth of speech, strategies, gamma, K, rounds, hours, spans, divergences, LoRA against
    full fine-tuning, and filtering. Its labs are lab/studies/<name>/seed-<n>/; cells share whatever they have in common.
    It takes hours on two cores. You may interrupt it at any time: rerun the command to resume. It writes findings.md and
    CSV files beside the labs.

    Args:
        quick: fewer cells, less speech and fewer steps, for about fifteen minutes on two idle cores.
        half: every cell, with about half the speech and a fifth to a half of the steps: about an hour on two idle cores.
        seeds: comma-separated seeds.
        cells: run only these cells, comma-separated; an unknown name lists all cells (default: all).
        workers: number of steps that run in parallel, one thread each.
        plan: only list the remaining cells and estimate how long they take.
        no_run: run nothing; write the findings from what has been measured.
        write: also write findings.md to this file.
        name: folder of the study (default: findings, findings-half or findings-quick).
    """
    return _study(lab, _size(quick, half), seeds, cells, workers, plan, no_run, write, name, None)


@command
def sweep(
    *,
    lab: Lab = None,
    quick: bool = False,
    half: bool = False,
    seeds: str = "0,1,2",
    axes: str = "strategy,gamma,k,rounds",
    workers: int = 2,
    plan: bool = False,
    no_run: bool = False,
    name: str | None = None,
) -> int:
    """Sweep K, gamma, rounds and all strategies on the miniature: M and speech accuracy after Stage II, by coverage.

    The sweep is a part of `salad findings` and shares its labs: neither repeats what the other has run.

    Args:
        quick: less speech and fewer steps, for about ten minutes on two idle cores.
        half: about half the speech, and a fifth to a half of the steps.
        seeds: comma-separated seeds.
        axes: comma-separated axes: strategy, gamma, k, rounds, hours, alpha, span, divergence, finetune, faults.
        workers: number of steps that run in parallel, one thread each.
        plan: only list the remaining cells and estimate how long they take.
        no_run: run nothing; show what has been measured.
        name: folder of the study (default: findings, findings-half or findings-quick).
    """
    return _study(lab, _size(quick, half), seeds, None, workers, plan, no_run, None, name, axes)


def _size(quick: bool, half: bool) -> str:
    from salad.errors import SaladError

    if quick and half:
        raise SaladError("--quick and --half are two sizes of the same study; give one")
    return "quick" if quick else "half" if half else "full"


def _study(lab, size, seeds, cells, workers, plan, no_run, write, name, axes) -> int:
    from pathlib import Path

    import store
    from salad.errors import SaladError
    from salad.study import grids, schedule
    from workbench.reports import findings

    root = store.lab_path(lab)
    wanted = _parts(axes, findings.AXES, "axis") if axes else tuple(findings.AXES)
    try:
        numbers = tuple(dict.fromkeys(int(seed) for seed in seeds.split(",")))
    except ValueError:
        raise SaladError(f"--seeds {seeds}: give whole numbers, separated by commas") from None
    grid = getattr(grids, size)(*([name] if name else []))
    grid = grid.model_copy(update={"seeds": numbers})
    known = [cell.name for cell in grid.cells]
    only = _parts(cells, known, "cell") if cells else None
    if axes:
        only = [cell.name for cell in grid.cells if set(cell.axes) & set(wanted)]
    if plan:
        findings.show_plan(grid, schedule.estimate(grid, root, workers, only), workers)
        return 0
    failed = {}
    if not no_run:
        from rich.console import Console

        from workbench.cli.study_run import watching

        with watching(Console()) as watch:
            failed = schedule.run(grid, root, watch, workers, only)
    shown = findings.findings({s: p for s, p in grids.labs(root, grid.name).items() if s in numbers}, wanted)
    findings.show(shown, claims=not axes)
    command_line = "salad sweep" if axes else "salad findings"
    command_line += f" --{size}" * (size != "full") + (f" --seeds {seeds}" if seeds != "0,1,2" else "")
    folder = root / "studies" / grid.name
    for path in findings.write(shown, folder, command_line, None if write is None else Path(write), claims=not axes):
        print(path)
    if failed:
        causes: dict[str, list[str]] = {}
        for row, reason in failed.items():
            causes.setdefault(reason, []).append(row)
        one_line = "; ".join(
            f"{rows[0]}{f' and {len(rows) - 1} more' * (len(rows) > 1)} ({reason})" for reason, rows in causes.items()
        )
        print(f"{len(failed)} failed: {one_line}. Rerun the command to retry", file=sys.stderr)
    return 1 if failed else 0


def _parts(given: str, known, what: str) -> tuple[str, ...]:
    """Comma-separated names as a tuple. Raises SaladError for a name that is not in `known`; `what` names the kind."""
    from salad.errors import SaladError

    names = tuple(part.strip() for part in given.split(",") if part.strip())
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise SaladError(f"no {what} {name!r}; {f'did you mean {near[0]}?' if near else 'there are ' + ', '.join(known)}")
    return names
