"""How much time an answer has left, and where it went."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


class OutOfTimeError(Exception):
    """No time is left for the next stage, or nobody waits for the answer any more."""


@dataclass(slots=True)
class Deadline:
    """When the answer is due, counted from `started` (time.perf_counter seconds). `timings`: where its stages are noted."""

    limit_ms: float
    started: float = field(default_factory=time.perf_counter)
    cancelled: bool = False
    timings: dict[str, float] = field(default_factory=dict)

    def left_s(self) -> float:
        """Seconds left, negative when it is over."""
        return self.started + self.limit_ms / 1000 - time.perf_counter()

    def elapsed_ms(self) -> float:
        """Milliseconds since the start."""
        return (time.perf_counter() - self.started) * 1000

    def cancel(self) -> None:
        """Nobody waits any more: the work stops at its next stage."""
        self.cancelled = True

    def check(self) -> None:
        """Raises OutOfTimeError when it is over or cancelled."""
        if self.cancelled or self.left_s() <= 0:
            raise OutOfTimeError


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Note the milliseconds of the block under `stage`."""
    started = time.perf_counter()
    try:
        yield
    finally:
        timings[stage] = (time.perf_counter() - started) * 1000
