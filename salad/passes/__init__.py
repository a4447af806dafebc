"""Passes: embed, cluster, probe, synthesise, check, score, encode. Each is a plain function of (lab, …, shard, shards)
that writes store units, Shar and encoder frames only, started once or N times by an engine (`python -m salad.passes`).

A pass's work is divided into parts, which depend on its inputs alone: shard i of N makes every N-th. A part is done
when its units exist, so any number of workers, killed at any time and started again, leave the same units; one that is
damaged is made again.
"""

import errno
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import store
from salad.errors import SaladError
from salad.runs import RunFolder, renewing, running

Progress = Callable[[int, int], None]
MAX_NAMED = 5  # failures that are named


class Part(NamedTuple):
    """A piece of a pass's work. `made_from` and `tables` are the units that it publishes; `size`: of what progress
    counts; `make(tick)` does it, calling `tick(n)` as it goes. `whole()`: whether what it writes beside units (a Shar,
    frames) is as it should be."""

    made_from: dict
    tables: tuple[str, ...]
    size: int
    make: Callable[[Callable[[int], None]], None]
    whole: Callable[[], bool] = lambda: True


def published(lab: Path | str) -> set[str]:
    """Ids of the units that exist and are complete, alone or merged into others."""
    units_by_table, _ = store.units.scan(store.lab_path(lab))
    ids = set()
    for units in units_by_table.values():
        for unit in units:
            ids |= set(unit.members) - set(unit.without) if unit.members else {unit.unit_id}
    return ids


def pending(lab: Path | str, parts: Sequence[Part]) -> list[Part]:
    """The parts whose units, Shar or frames are missing or damaged."""
    there = published(lab)
    units = [[store.unit_id(table, part.made_from) in there for table in part.tables] for part in parts]
    return [part for part, exists in zip(parts, units, strict=True) if not (all(exists) and part.whole())]


def run_parts(lab: Path | str, parts: Sequence[Part], shard: int = 0, shards: int = 1, progress: Progress | None = None) -> None:
    """Make the unfinished parts of shard number `shard`. `progress(done, total)` counts in the unit of the parts' sizes.

    A part whose input is damaged is skipped, and the others are made; at the end a SaladError names the faults. A full
    disk ends the pass at once."""
    if not 0 <= shard < shards:
        raise SaladError(f"shard {shard} of {shards}: shards are numbered from 0")
    own_parts = list(parts)[shard::shards]
    left = {id(part) for part in pending(lab, own_parts)}
    total, done, faults = sum(part.size for part in own_parts), 0, []
    for part in own_parts:
        at = done

        def tick(n: int) -> None:
            nonlocal at
            at += n
            if progress is not None:
                progress(at, total)

        if id(part) in left:
            try:
                part.make(tick)
            except SaladError as error:
                if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                faults.append(str(error))
        done += part.size
        if progress is not None:
            progress(done, total)
    if len(faults) == 1 or len(faults) == len(left) and len(set(faults)) == 1:  # or what all of them lack
        raise SaladError(faults[0] + ("; the other parts are done" if len(own_parts) > len(faults) else ""))
    if faults:
        more = f"; and {len(faults) - MAX_NAMED} more" if len(faults) > MAX_NAMED else ""
        raise SaladError(
            f"{len(faults)} of {len(own_parts)} parts failed, the others are done: " + "; ".join(faults[:MAX_NAMED]) + more
        )


def report_progress(run: RunFolder, progress: Progress | None = None) -> Progress:
    """A progress function that also writes the run's status and ends the work when the run is asked to stop: it then raises
    what `RunFolder.should_stop` returns."""

    def report(done: int, total: int) -> None:
        run.status(step=done, max_steps=total)
        if progress is not None:
            progress(done, total)
        if (end := run.should_stop()) is not None:
            raise end

    return report


def run_once(
    lab: Path | str,
    name: str,
    config: dict,
    work: Callable[[RunFolder, Progress], None],
    kind: str = "pass",
    parent: str | None = None,
    progress: Progress | None = None,
) -> RunFolder:
    """Do `work(run, progress)` as a run with its own folder, unless that run is done. Returns the folder.

    `work` receives `report_progress` of the run: if the run is asked to stop, the work ends at its next progress call."""
    run = RunFolder.get_or_create(lab, kind, name, config, parent)
    if run.read_status().get("state") != "done":
        with renewing(lab), running(run):
            work(run, report_progress(run, progress))
    return run
