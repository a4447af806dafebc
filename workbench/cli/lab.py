"""`salad sql`, `index`, `log`, `verify`, `compact`, `export` and `import`: the lab itself."""

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
    """Ask the lab a question: one SELECT over its tables, printed as a table.

    For example: salad sql "select domain, avg(m) from misalignment group by domain". The tables are described in
    docs/store.md; DESCRIBE and SUMMARIZE work too. Ready-made questions are asked by name, for example
    "from worst_samples('r...', 600)", divergence_by_cluster, change_between_checkpoints, divergence_of_checkpoints,
    selection_after_decisions, run_differences, browse_samples, accuracy_and_gap.

    Args:
        statement: one SELECT, or - to read it from the standard input.
        csv: print CSV.
        json: print one JSON object a line.
        parquet: write a Parquet file instead of printing.
        timeout: seconds before the question is given up.
        width: characters that a column of the table may take at most; 0 sets no limit.
        as_of: a time with its zone, such as 2026-11-27T10:00Z: the lab as it was then.
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
    """Renew lab/store.duckdb, a plain DuckDB file with every table, for tools that open such a file."""
    import store

    print(store.renew(store.lab_path(lab)))
    return 0


@command
def log(*, lab: Lab = None, n: int = 50, as_of: str | None = None, json: bool = False) -> int:
    """Who published, removed, preferred and imported what, the latest last.

    Args:
        n: how many entries, from the end; 0 for all.
        as_of: a time with its zone: the log as it was then.
        json: print one JSON object a line, with what each unit was made from.
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
        print("nothing is logged yet; `salad verify` logs what is there")
    return 0


@command
def verify(*, lab: Lab = None, repair: bool = False, prefer: str | None = None) -> int:
    """Check every file of the store, and the recordings that it names, against their checksums; exit 1 if one is damaged.

    Args:
        repair: move what is damaged out of the way, so that the work that made it can be done again, and write off what is
            missing. Recordings stay: the pass or preparation that made them, run again, makes the damaged ones anew.
        prefer: decide a conflict for this unit (its id, or id-sha8 for one of its versions): its rows are shown.
    """
    import store

    if prefer is not None:
        print(f"{prefer} is preferred in {', '.join(store.prefer(store.lab_path(lab), prefer))}")

    damages = store.verify(store.lab_path(lab), repair=repair)
    for damage in damages:
        print(" · ".join(str(part) for part in (damage.values() if isinstance(damage, dict) else damage)))
    audio = sum(damage.table == "syntheses" and damage.path.startswith("speech/") for damage in damages)
    open_ = sum(damage.reason.startswith("conflict") or damage.path.startswith("event ") for damage in damages)
    if open_:
        print(f"{open_} to be decided: `salad verify --prefer UNIT`, or undo the rule")
    others = sum(damage.table in ("checkpoints", "frames", *store.files.ROOMS) for damage in damages)
    if others:
        print(f"{others} files of checkpoints, frames, corpora, tasks, models or cuts damaged: copy or make them again")
    if files := len(damages) - audio - open_ - others:
        print(f"{files} " + ("moved out of the way" if repair else "damaged; `salad verify --repair` moves them out of the way"))
    if audio:
        print(f"{audio} of the recordings' files damaged: run the pass, or `salad prepare speech`, that made them again")
    if not damages:
        print("nothing is damaged")
    return 1 if audio or open_ or others or (damages and not repair) else 0


@command
def compact(*, lab: Lab = None) -> int:
    """Join a lab's many small units into few large ones; what SQL answers stays the same."""
    import store

    print(in_words(store.compact(store.lab_path(lab))))
    return 0


@command
def export(what: tyro.conf.Positional[str], to: tyro.conf.Positional[str], *, lab: Lab = None) -> int:
    """Copy a part of the lab, with all that it rests on, into a folder that another lab can import.

    Args:
        what: a selection (l...), a run (r...), or the name of a table.
        to: the folder to write.
    """
    import store

    print(in_words(store.export(store.lab_path(lab), what, to)))
    return 0


@command(name="import")
def import_(bundle: tyro.conf.Positional[str], *, lab: Lab = None) -> int:
    """Bring an exported folder, or a whole other lab, into this one; what is already here is not doubled.

    Args:
        bundle: the folder.
    """
    import store

    counts = store.import_(store.lab_path(lab), bundle)
    for conflict in counts.pop("conflicts", []):
        print(conflict)
    print(in_words(counts))
    return 0
