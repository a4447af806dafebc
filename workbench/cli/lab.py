"""`salad sql`, `index`, `log`, `verify`, `compact`, `export` and `import`: commands on the lab's store."""

import sys

import tyro

from workbench.cli.app import File, Lab, command, in_words


@command
def sql(
    statement: tyro.conf.Positional[str],
    *,
    lab: Lab = None,
    csv: bool = False,
    json: bool = False,
    parquet: File = None,
    timeout: float = 30.0,
    width: int = 0,
    as_of: str | None = None,
) -> int:
    """Query the lab with SQL: one SELECT over its tables, printed as a table.

    For example: salad sql "select domain, avg(m) from misalignment group by domain". docs/store.md describes the tables;
    DESCRIBE and SUMMARIZE work too. Predefined queries can be called by name, for example
    "from worst_samples('r...', 600)", divergence_by_cluster, change_between_checkpoints, divergence_of_checkpoints,
    selection_after_decisions, run_differences, browse_samples, accuracy_and_gap.

    Args:
        statement: one SELECT, or - to read it from standard input.
        csv: print CSV.
        json: print one JSON object per line.
        parquet: write a Parquet file instead of printing.
        timeout: seconds after which the query is cancelled.
        width: maximum width of a column in characters; 0 sets no limit.
        as_of: query the lab as it was at this time (with a time zone, such as 2026-11-27T10:00Z).
    """
    import store
    from workbench import tables

    text = sys.stdin.read() if statement == "-" else statement
    rows = store.query(store.lab_path(lab), text, timeout_s=timeout, as_of=as_of)
    if parquet:
        tables.write_parquet(rows, parquet)
        print(f"{parquet}: {rows.num_rows:,} rows")
    elif csv:
        tables.write_csv(rows, sys.stdout)
    elif json:
        tables.write_json(rows, sys.stdout)
    else:
        tables.show(rows, width or None)
    return 0


@command
def index(*, lab: Lab = None) -> int:
    """Update lab/store.duckdb, a plain DuckDB file with every table, for tools that read DuckDB files."""
    import store

    print(store.renew(store.lab_path(lab)))
    return 0


@command
def log(*, lab: Lab = None, n: int = 50, as_of: str | None = None, json: bool = False) -> int:
    """Show who published, removed, preferred and imported what, the latest entry last.

    Args:
        n: number of entries, from the end; 0 for all.
        as_of: show the log as it was at this time (with a time zone).
        json: print one JSON object per line, including what each unit was made from.
    """
    from json import dumps

    import store

    entries = store.log(store.lab_path(lab), as_of)[-n:]
    for entry in entries:
        if json:
            print(dumps({key: value for key, value in entry.items() if key != "sum"}, ensure_ascii=False))
        else:
            print(" · ".join(str(part) for part in store.history.in_words(entry)))
    if not entries and not json:
        print("the log is empty; `salad verify` adds an entry for every existing unit")
    return 0


@command
def verify(*, lab: Lab = None, repair: bool = False, prefer: str | None = None, accept: str | None = None) -> int:
    """Verify the checksums of the store's files and of its recordings; exit with 1 if any is damaged.

    Args:
        repair: move damaged files out of the way, so that the work that made them can be repeated, and write off missing
            ones. Recordings stay in place: rerun the pass or preparation that made them to replace the damaged ones.
        prefer: resolve a conflict in favour of this unit, whose rows are then shown (its id, or id-sha8 for one version).
        accept: keep a corpus, task, model or list of cuts (its path relative to the lab) as it is now, because you changed or
            removed it on purpose.
    """
    import store

    if accept is not None:
        store.files.accept(lab, accept)
        print(f"{accept} is recorded as it is now")
    if prefer is not None:
        print(f"{prefer} is preferred in {', '.join(store.prefer(store.lab_path(lab), prefer))}")

    damages = store.verify(store.lab_path(lab), repair=repair)
    for damage in damages:
        print(" · ".join(str(part) for part in (damage.values() if isinstance(damage, dict) else damage)))
    audio = sum(damage.table == "syntheses" and damage.path.startswith("speech/") for damage in damages)
    open_ = sum(damage.reason.startswith("conflict") or damage.path.startswith("event ") for damage in damages)
    if open_:
        print(f"{open_} to be resolved: `salad verify --prefer UNIT`, or undo the rule")
    others = sum(damage.table in ("checkpoints", "frames", *store.files.ROOMS) for damage in damages)
    if others:
        print(f"{others} damaged files of checkpoints, frames, corpora, tasks, models or cuts: copy or make them again")
    if files := len(damages) - audio - open_ - others:
        print(f"{files} " + ("moved out of the way" if repair else "damaged; `salad verify --repair` moves them out of the way"))
    if audio:
        print(f"{audio} damaged files of recordings: rerun the pass, or `salad prepare speech`, that made them")
    if not damages:
        print("nothing is damaged")
    return 1 if audio or open_ or others or (damages and not repair) else 0


@command
def compact(*, lab: Lab = None) -> int:
    """Merge the lab's many small units into a few large ones; the results of queries stay the same."""
    import store

    print(in_words(store.compact(store.lab_path(lab))))
    return 0


@command
def export(what: tyro.conf.Positional[str], to: tyro.conf.Positional[str], *, lab: Lab = None) -> int:
    """Copy a part of the lab, with everything it depends on, into a folder that another lab can import.

    Args:
        what: id of a selection (l...) or a run (r...), or the name of a table.
        to: the folder to write.
    """
    import store

    print(in_words(store.export(store.lab_path(lab), what, to)))
    return 0


@command(name="import")
def import_(bundle: tyro.conf.Positional[str], *, lab: Lab = None) -> int:
    """Import an exported folder, or a whole other lab; nothing that is already here is duplicated.

    Args:
        bundle: the exported folder or the other lab.
    """
    import store

    counts = store.import_(store.lab_path(lab), bundle)
    for conflict in counts.pop("conflicts", []):
        print(conflict)
    print(in_words(counts))
    return 0
