"""Rows of a training set within a span of time, as the gates look at them: with features, feedback and logged propensities."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from degre_prod.encoding.splits import Split
    from degre_prod.rows import TrainingRow
    from degre_prod.schema import DataSchema


@dataclass(frozen=True)
class Period:
    """The rows of a training-set folder (part-*.parquet) whose event time lies in [from_us, to_us), µs since 1970 UTC;
    an absent bound is open."""

    training_set: Path
    schema: DataSchema
    from_us: int | None = None
    to_us: int | None = None

    def holds(self, moment_us: int) -> bool:
        """Whether a moment lies within."""
        return (self.from_us is None or moment_us >= self.from_us) and (self.to_us is None or moment_us < self.to_us)

    def rows(self, at_most: int | None = None) -> list[TrainingRow]:
        """The rows, in the order of the log; with `at_most` so many of them, evenly spread."""
        from degre_prod.rows import read_rows

        stride = max(1, -(-self.count() // at_most)) if at_most else 1
        within = (r for r in read_rows(self.training_set, self.schema) if self.holds(r.request.event_timestamp_us))
        return list(islice(within, 0, None, stride))

    def count(self) -> int:
        """How many rows there are."""
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        moments = (pq.read_table(p, columns=["event_timestamp"])["event_timestamp"] for p in self._parts())
        return sum(self.holds(moment) for column in moments for moment in pc.cast(column, "int64").to_pylist())

    def _parts(self) -> list[Path]:
        return sorted(self.training_set.glob("part-*.parquet"))


@dataclass(frozen=True)
class Chances:
    """What the log says of the chances of a shown list: of each slot's item given those before it (T,), and of the whole list;
    None where it says nothing. `bundle`: manifest sha256 of the bundle that made the list, where the log names one."""

    slots: np.ndarray | None
    whole: float | None
    bundle: str | None


def split_period(training_set: Path, schema: DataSchema, split: Split) -> Period:
    """The span of a split, as the encoding splits by time."""
    from degre_prod.encoding.splits import boundaries_us

    validation, test = boundaries_us(training_set, schema)
    spans: dict[str, tuple[int | None, int | None]] = {
        "train": (None, validation),
        "validation": (validation, test),
        "test": (test, None),
    }
    return Period(training_set, schema, *spans[split])


def logged_chances(training_set: Path) -> dict[str, Chances]:
    """By request id, those requests alone whose list the log gives any propensity for."""
    import numpy as np
    import pyarrow.parquet as pq

    out: dict[str, Chances] = {}
    for part in sorted(training_set.glob("part-*.parquet")):
        there = [n for n in ("propensity", "list_propensity", "bundle") if n in pq.read_schema(part).names]
        if not {"propensity", "list_propensity"} & set(there):
            continue
        columns = pq.read_table(part, columns=["request_id", *there]).to_pydict()
        nothing = [None] * len(columns["request_id"])
        slots, whole, bundle = (columns.get(n, nothing) for n in ("propensity", "list_propensity", "bundle"))
        for request, *chances in zip(columns["request_id"], slots, whole, bundle, strict=True):
            if chances[0] is not None or chances[1] is not None:
                known = None if chances[0] is None else np.array(chances[0], np.float64)
                out[request] = Chances(known, chances[1], chances[2])
    return out
