"""Errors that a person can mend: one line that says what is wrong, where, and what to do."""

from typing import NamedTuple


class UserError(RuntimeError):
    """Shown by the command line as one line, without a traceback."""


class StoreError(UserError):
    """Something about the lab's files or a query."""


class Damage(NamedTuple):
    """Something a reader left out: its table, its path relative to the lab, and why."""

    table: str
    path: str
    reason: str


class DamagedWarning(UserWarning):
    """A unit, a line or a row was left out; the view `damaged` lists them all."""
