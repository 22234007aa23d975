"""Feature values of many entities side by side: what is read from Redis, kept in the item table, and given as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from degre_prod.requests import FeatureColumns
from degre_prod.schema import FeatureTable
from serving import feature_wire as wire


@dataclass(frozen=True, slots=True)
class Rows:
    """R entities: event_us_R int64 (0: never written) · floats_RW float32 (numeric and vector features) · one list of R
    objects a categorical or id sequence feature. Features lie in the order of `RowLayout`."""

    event_us: np.ndarray
    floats: np.ndarray
    objects: list[list[Any]]

    def put(self, positions: Sequence[int], other: Rows) -> None:
        """Write the rows of `other` at these positions."""
        self.event_us[positions] = other.event_us
        self.floats[positions] = other.floats
        for mine, theirs in zip(self.objects, other.objects, strict=True):
            for position, value in zip(positions, theirs, strict=True):
                mine[position] = value


class RowLayout:
    """Where the features of a table lie in `Rows`, and how they come out of Redis."""

    def __init__(self, table: FeatureTable) -> None:
        self.table = table
        self.names = [f.name for f in table.features]
        self._slices: dict[str, int | slice] = {}
        self._objects: dict[str, int] = {}
        at = 0
        for f in table.features:
            if f.kind == "numeric":
                self._slices[f.name] = at
                at += 1
            elif f.kind == "vector":
                self._slices[f.name] = slice(at, at + (f.size or 0))
                at += f.size or 0
            else:
                self._objects[f.name] = len(self._objects)
        self.width, self.object_count = at, len(self._objects)

    def decode(self, replies: Sequence[Sequence[bytes | None]]) -> Rows:
        """Rows from Redis replies: per entity one value a feature, in declared order, and the timestamp last.

        Raises FeatureError for bytes that Feast did not write, or a vector of a size other than declared.
        """
        R = len(replies)
        if R == 0:
            return Rows(
                np.zeros(0, np.int64), np.zeros((0, self.width), np.float32), [[] for _ in range(self.object_count)]
            )
        columns: list[Sequence[bytes | None]] = list(zip(*replies, strict=True))
        floats = np.empty((R, self.width), np.float32)
        objects: list[list[Any]] = [[] for _ in range(self.object_count)]
        for f, column in zip(self.table.features, columns, strict=False):
            if f.kind == "numeric":
                floats[:, self._slices[f.name]] = wire.floats(column)
            elif f.kind == "vector":
                floats[:, self._slices[f.name]] = wire.vectors(f.name, f.size or 0, column)
            else:
                objects[self._objects[f.name]] = (wire.strings if f.kind == "categorical" else wire.id_lists)(column)
        return Rows(wire.timestamps_us(columns[-1]), floats, objects)

    def columns(self, rows: Rows, now_us: int) -> tuple[FeatureColumns, int, int]:
        """Columns as of `now_us`, how many entities are unknown and how many stale; `rows` is used up."""
        R, ttl = len(rows.event_us), self.table.ttl_seconds
        unknown = rows.event_us == 0
        gone = unknown
        if ttl is not None:
            gone = unknown | (now_us - rows.event_us > ttl * 1_000_000)
        gone_count, unknown_count = int(gone.sum()), int(unknown.sum())
        if gone_count:
            rows.floats[gone] = np.nan
            for column in rows.objects:
                for position in np.flatnonzero(gone).tolist():
                    column[position] = None
        values: dict[str, Any] = {
            name: rows.floats[:, self._slices[name]] if name in self._slices else rows.objects[self._objects[name]]
            for name in self.names
        }
        return FeatureColumns(values, R), unknown_count, gone_count - unknown_count
