"""Appending an event to a lab; a rule is first tried on the texts that it decides about."""

import warnings
from pathlib import Path
from typing import Any

from . import connection, events
from .errors import DamagedWarning
from .lab import lab_path
from .rules import check_rule, try_rule


def append(lab: Path | str | None, table: str, **fields: Any) -> dict[str, Any]:
    """Append an event of `decisions`, `votes` or `run_notes`; it is on the disk when this returns.

    Id, time (UTC) and author are filled in where they are not given. `clock` is later than that of every event in the
    lab, whatever the machine's time is: the last event stands. A rule is tried first: one that fails on every text is
    refused, one that fails on some is set with a DamagedWarning. Returns the event as written. Raises StoreError where a
    field is unknown, missing or of the wrong kind, and where the disk refuses."""
    if table == "decisions" and fields.get("target") == "rule" and fields.get("verdict") != "undo" and fields.get("rule"):
        check_rule(fields["rule"])
        lab = lab_path(lab)
        if lab.is_dir():
            with connection.connect(lab) as con:
                trial = try_rule(con, fields["rule"], fields.get("selection_id"))
            if trial.failures:
                warning = f"the rule {fields['rule']!r:.200} fails on {trial.failures} of {trial.rows} texts ({trial.error})"
                warnings.warn(f"{warning}; it does not hold for them", DamagedWarning, stacklevel=2)
    return events.append(lab, table, **fields)
