"""Errors that a person can mend: one line that says what is wrong, where, and what to do."""


class UserError(RuntimeError):
    """Shown by the command line as one line, without a traceback."""


class StoreError(UserError):
    """Something about the lab's files or a query."""
