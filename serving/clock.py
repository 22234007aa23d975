"""Time as the engine sees it: injected, so that a logged request replays exactly."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

Clock = Callable[[], int]
"""Returns microseconds since 1970 UTC."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def wall_clock() -> int:
    """The machine's time."""
    return time.time_ns() // 1000


def fixed_clock(now_us: int) -> Clock:
    """A clock that stands still, for tests and replays."""
    return lambda: now_us


def to_us(moment: datetime) -> int:
    """Microseconds since 1970 UTC of a datetime with a zone, exactly (no floating point)."""
    return (moment - _EPOCH) // _MICROSECOND


def from_us(us: int) -> datetime:
    """The UTC datetime of microseconds since 1970."""
    return _EPOCH + us * _MICROSECOND
