"""Item values kept in the replica, so that a request reads from Redis only the items nobody asked for lately.

Bounded by count (the entry that came first goes first) and by age: a value pushed to the store is served at most
`ttl_seconds` later, one that a materialisation brought at once, because it raises the feature epoch. Staleness by event
timestamp is judged at request time, by the reader.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from degre_prod.requests import Id
from serving.feature_rows import Rows


@dataclass(frozen=True, slots=True)
class Found:
    """A copy of what the table has: rows for all positions asked, of which those in `missing` are yet to be filled."""

    rows: Rows
    missing: list[int]
    epoch: bytes | None


class ItemTable:
    """Safe to share among threads."""

    def __init__(
        self,
        width: int,
        object_count: int,
        *,
        capacity: int,
        ttl_seconds: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._capacity, self._ttl, self._now = capacity, ttl_seconds, now
        self._lock = threading.Lock()
        self._slots: dict[Id, int] = {}
        self._owners: list[Id | None] = [None] * capacity
        self._next = 0
        self._epoch: bytes | None = None
        self._read_at = np.zeros(capacity)
        objects: list[list[Any]] = [[None] * capacity for _ in range(object_count)]
        # Pages of an array are only taken from the machine once they are written to.
        self._rows = Rows(np.zeros(capacity, np.int64), np.zeros((capacity, width), np.float32), objects)
        self.hits = self.misses = 0

    def find(self, ids: Sequence[Id]) -> Found:
        """What is known of these items."""
        with self._lock:
            slots = self._slots
            at = np.array([slots.get(one, -1) for one in ids], np.intp)
            absent = (at < 0) | (self._read_at[at] < self._now() - self._ttl)
            rows = Rows(
                self._rows.event_us[at],
                self._rows.floats[at],
                [[column[slot] for slot in at.tolist()] for column in self._rows.objects],
            )
            missing = np.flatnonzero(absent).tolist()
            self.misses += len(missing)
            self.hits += len(ids) - len(missing)
            return Found(rows, missing, self._epoch)

    def keep(self, ids: Sequence[Id], rows: Rows, epoch: bytes | None, read_at: float) -> None:
        """Remember rows read under `epoch` at `read_at` (monotonic seconds); another epoch than before forgets the rest."""
        with self._lock:
            if epoch != self._epoch:
                self._slots.clear()
                self._epoch, self._next = epoch, 0
            at = [self._slot(one) for one in ids]
            self._rows.put(at, rows)
            self._read_at[at] = read_at

    def now(self) -> float:
        """The table's clock, monotonic seconds."""
        return self._now()

    def __len__(self) -> int:
        return len(self._slots)

    def _slot(self, one: Id) -> int:
        slot = self._slots.get(one)
        if slot is None:
            slot, self._next = self._next, (self._next + 1) % self._capacity
            owner = self._owners[slot]
            if owner is not None and self._slots.get(owner) == slot:
                del self._slots[owner]
            self._owners[slot] = one
            self._slots[one] = slot
        return slot
