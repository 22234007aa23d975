"""`--every`: nights on a fixed beat, on one machine."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

from degre_prod.errors import ConfigurationError

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_duration(text: str) -> timedelta:
    """`90s`, `30m`, `24h`, `1d`, `1h30m`; raises ConfigurationError for anything else, and for nothing at all."""
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    parts = {unit: int(part) for unit, part in zip("dhms", found.groups(), strict=True) if part} if found else {}
    duration = timedelta(**{_UNITS[unit]: count for unit, count in parts.items()})
    if not duration:
        raise ConfigurationError(f"{text!r} is no duration; e.g. 30m, 24h, 1h30m")
    return duration


def beats(
    every: timedelta, *, clock: Callable[[], float] = time.time, wait: Callable[[float], None] = time.sleep
) -> Iterator[int]:
    """Yield 0 at once and n at `every` · n from the start, by `clock`; a beat that passes while one is at work is left out.

    How long the work takes moves no later beat. Waiting may end early or late: what counts is the clock.
    """
    start, period, beat = clock(), every.total_seconds(), 0
    while True:
        yield beat
        beat = max(beat + 1, int((clock() - start) // period) + 1)
        while (left := start + beat * period - clock()) > 0:
            wait(min(left, 3600.0))  # a machine that slept wakes up to the clock, not to a count of seconds
