"""The error that a user can fix; see store.errors."""

from store.errors import UserError


class SaladError(UserError):
    """Something about a configuration, a model, data or a run."""
