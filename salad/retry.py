"""When a busy server wants to be asked again."""

import email.utils
import time


def retry_after(header: str | None) -> float | None:
    """Seconds from now that a `Retry-After` says, a number or a date; None where it says neither."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        at = email.utils.parsedate_to_datetime(header)
    except (TypeError, ValueError):
        return None
    return max(0.0, at.timestamp() - time.time())
