"""Requests to services that may fail: which failures are worth another try, and how long to wait.

Nothing here knows a network: a request is any function that raises `CallError` where it fails.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

__all__ = ["CallError", "delay_after", "seconds_to_wait"]

_FIRST_DELAY = 1.0
"""Seconds before the second try; each further one waits twice as long, with a random part against stampedes."""
_LONGEST_DELAY = 60.0
_LONGEST_ASKED = 600.0
"""A service that asks for a longer pause than this (seconds) is left alone: the user comes back later."""


class CallError(Exception):
    """Why one request failed, and what follows from it; a user sees the `ModelError` that is made of it.

    Attributes:
        again: Whether the same request may do better in a while.
        charged: Whether the service may have charged for it all the same.
        wait: Seconds that the service asked to be left alone, if it did.
    """

    def __init__(self, reason: str, *, again: bool = False, charged: bool = False, wait: float | None = None) -> None:
        super().__init__(reason)
        self.again = again
        self.charged = charged
        self.wait = wait


def delay_after(
    error: CallError, num_tries: int, *, max_tries: int, chance: Callable[[], float] = random.random
) -> float:
    """Return the seconds to wait before the next try.

    Args:
        error: Why the last try failed.
        num_tries: How many there were.
        max_tries: How many there may be.
        chance: Gives a number in 0..1.

    Raises:
        CallError: If there is no next try; it says why.
    """
    asked = error.wait or 0.0
    if not error.again:
        raise error
    if num_tries >= max_tries:
        raise CallError(f"{error}. Given up after {num_tries} tries") from error
    if asked > _LONGEST_ASKED:
        raise CallError(f"{error}. It asks for a pause of {asked:.0f} seconds") from error
    full = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(num_tries - 1, 16))
    return max(asked, full * (1 + chance()) / 2)


def seconds_to_wait(header: str | None, now: datetime | None = None) -> float | None:
    """Read a `Retry-After` header: seconds, or a date that is compared with `now`; `None` where it says nothing."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=timezone.utc)
    return max(0.0, (until - (now or datetime.now(timezone.utc))).total_seconds())
