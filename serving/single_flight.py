"""One computation per key at a time: who asks while it runs waits for its result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

STALE_S = 1.0  # a computation this old may never end: nobody waits for it any more

Result = TypeVar("Result")


@dataclass(eq=False, slots=True)
class _Flight(Generic[Result]):
    done: threading.Event = field(default_factory=threading.Event)
    result: Result | None = None
    started: float = field(default_factory=time.monotonic)

    def stale(self) -> bool:
        return time.monotonic() - self.started > STALE_S


class SingleFlight(Generic[Result]):
    """Safe to share among threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[str, _Flight[Result]] = {}

    def join(self, key: str, timeout_s: float) -> Result | None:
        """The result of the computation under way for `key`; None when there is none, it fails, or takes too long.

        One that hangs must not hold up every later request for the same key: it is joined for STALE_S only.
        """
        with self._lock:
            flight = self._flights.get(key)
        if flight is None or flight.stale() or not flight.done.wait(max(timeout_s, 0)):
            return None
        return flight.result

    def lead(self, key: str, compute: Callable[[], Result]) -> Result:
        """Compute, and let those who join meanwhile have the result. Whoever else computes the same key does so alone."""
        flight: _Flight[Result] = _Flight()
        with self._lock:
            present = self._flights.get(key)
            if present is None or present.stale():
                self._flights[key] = flight
        try:
            flight.result = compute()
            return flight.result
        finally:
            with self._lock:
                if self._flights.get(key) is flight:
                    del self._flights[key]
            flight.done.set()
