"""How late the event loop is: what a request waits before its handler even starts, and no deadline has counted."""

from __future__ import annotations

import asyncio
import time
from collections import deque

TICK_S = 0.02
TICKS = 15  # looked back: 0.3 s when all is well


class LoopLag:
    """A tick that should come every 20 ms; by how much the last ones were late."""

    def __init__(self) -> None:
        self._late_s: deque[float] = deque([0.0] * TICKS, maxlen=TICKS)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to tick in the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._tick())

    def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()

    def sustained_s(self) -> float:
        """The least lag of the last ticks: a single hiccup does not show, a loop that cannot keep up does."""
        return min(self._late_s)

    async def _tick(self) -> None:
        while True:
            due = time.perf_counter() + TICK_S
            await asyncio.sleep(TICK_S)
            self._late_s.append(time.perf_counter() - due)
