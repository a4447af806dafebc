"""What to do first in a lab that has nothing yet for a notebook to show."""

from pathlib import Path
from typing import NamedTuple

import duckdb

from workbench.markup import markdown

EMPTY = (
    "The lab {lab} is empty. Make one with `make demo` (seven minutes), or say which one to open: "
    "`SALAD_LAB=path/to/lab marimo edit notebooks/{notebook}.py`."
)


class Need(NamedTuple):
    """What a notebook shows (`table`), and what to do without it: where a run is going that will make it (`going`, a
    condition on runs), and where the lab has what it is made from (`source`, a table). In any other lab: EMPTY."""

    table: str
    going: str
    while_going: str
    source: str
    from_source: str


GOING = "status IN ('queued', 'starting', 'running')"
NEEDS = {
    "selection": Need(
        "selections",
        f"{GOING} AND NOT EXISTS (FROM samples)",
        "The lab {lab} has no texts yet, and a run is still going: `notebooks/training.py` shows how far. A selection is "
        "drawn after Stage I; open this again then.",
        "samples",
        "The lab {lab} has {count:,} texts but no selection yet. If a demo is running, it comes after Stage I: run this "
        "again in a moment. Else draw one with `salad select --lab {lab}`.",
    ),
    "divergences": Need(
        "raw.scored",
        GOING,
        "The lab {lab} has no divergences yet, and a run is still going: they are measured when it ends. Open this again "
        "then, or watch it in `notebooks/training.py`.",
        "runs",
        "The lab {lab} has no divergences yet. Score its newest Stage I with `salad pass score --lab {lab}`.",
    ),
    "results": Need(
        "evaluations",
        GOING,
        "Nothing is evaluated in {lab} yet, and a run is still going: `notebooks/training.py` shows how far. Open this "
        "again when it has ended.",
        "runs",
        "Nothing is evaluated in {lab} yet: `salad evaluate --lab {lab}` does that for its newest run.",
    ),
    "training": Need(
        "runs",
        "false",
        "",
        "(SELECT 1)",
        "The lab {lab} has no run yet. `make demo` makes the whole miniature (seven minutes); a recipe below starts a run "
        "once the lab has its models and speech. Another lab opens with `SALAD_LAB=path/to/lab`.",
    ),
}


def advice(con: duckdb.DuckDBPyConnection, lab: Path | str, notebook: str) -> str | None:
    """What to do in a lab that has nothing for `notebook` (a key of NEEDS) to show, in a sentence or two; None where it
    has something."""
    need = NEEDS[notebook]

    def count(source: str) -> int:
        return con.execute(f"SELECT count(*) FROM {source}").fetchone()[0]

    if count(need.table):
        return None
    if count(f"runs WHERE {need.going}"):
        return markdown(need.while_going, lab=lab)
    present = count(need.source)
    return markdown(need.from_source if present else EMPTY, lab=lab, notebook=notebook, count=present)
