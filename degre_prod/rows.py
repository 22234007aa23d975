"""Training rows from the nested training set: one request with its features, what was shown, and what came back.

Columns are turned into numpy arrays a part at a time; a row holds slices of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from degre_prod.errors import DataError
from degre_prod.requests import FeatureColumns, Id, RecentEvent, Request
from degre_prod.schema import DataSchema, Feature

Values = np.ndarray | list[Any]
Slicer = Callable[[int], Any]  # row number to that row's value


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """A logged request with C candidates, T of which were shown, and O objectives.

    `user` has one row, `items` C rows aligned with `request.candidate_ids`. `shown_T`: int64 indices into the candidates
    in shown order. `feedback_OT`: float32, objectives in the schema's order. `seen_T`: False where a slot's feedback
    could not be logged (not: where the user never looked), or None.
    """

    request: Request
    user: FeatureColumns
    items: FeatureColumns
    shown_T: np.ndarray
    feedback_OT: np.ndarray
    seen_T: np.ndarray | None


def read_rows(folder: Path, schema: DataSchema) -> Iterator[TrainingRow]:
    """Rows of a training set in order of part and row; raises DataError naming file, row and column at fault."""
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        raise DataError("no part-*.parquet here; `build_training_set` writes them", file=str(folder))
    for part in parts:
        yield from part_rows(part, schema)


def part_rows(part: Path, schema: DataSchema) -> Iterator[TrainingRow]:
    """Rows of one part, as `read_rows`."""
    table = pq.read_table(part).combine_chunks()
    try:
        columns = _Part(table, schema)
    except KeyError as error:
        raise DataError("the training set lacks a column of schema.yaml", file=str(part), column=str(error)) from None
    except _WrongVectorError as error:
        raise DataError(str(error), file=str(part), column=error.column, rule="vector size") from None
    for row in range(table.num_rows):
        try:
            yield columns.row(row)
        except KeyError as error:
            raise DataError(
                f"{error} was shown but is no candidate",
                file=str(part),
                row=row,
                column="shown_ids",
                rule="shown ⊆ candidates",
            ) from None
        except ValueError as error:
            raise DataError(str(error), file=str(part), row=row, column="feedback", rule="equal lengths") from None


class _WrongVectorError(Exception):
    def __init__(self, feature: Feature) -> None:
        self.column = feature.name
        super().__init__(f"a vector whose length is not {feature.size}")


class _Part:
    """One part as slicers, one a column."""

    def __init__(self, table: pa.Table, schema: DataSchema) -> None:
        self._objectives = [objective.name for objective in schema.objectives]
        self._request_id = table["request_id"].to_pylist()
        self._user_id = table["user_id"].to_pylist()
        self._moment = table["event_timestamp"].cast(pa.int64()).to_pylist()
        self._candidates = _lists(_array(table, "candidate_ids"))
        self._shown = _lists(_array(table, "shown_ids"))
        self._feedback = _struct_of_lists(table, "feedback", self._objectives, _floats)
        self._seen = _seen(table)
        self._context = _struct(table, "context", schema.context)
        self._scores = _struct_of_lists(table, "upstream_scores", schema.scores, _floats)
        self._own = _struct_of_columns(table, "candidate_features", schema.candidate_features)
        self._recent = _recent(table) if schema.recent_event_types else None
        self._user = _struct(table, "user", schema.user.features)
        self._items = _struct_of_columns(table, "items", schema.item.features)

    def row(self, r: int) -> TrainingRow:
        candidates: list[Id] = self._candidates(r)
        place = {candidate: index for index, candidate in enumerate(candidates)}
        shown = self._shown(r)
        feedback = [self._feedback[name](r) for name in self._objectives]
        if any(len(values) != len(shown) for values in feedback):
            raise ValueError(f"feedback of {[len(values) for values in feedback]} slots for {len(shown)} shown items")
        request = Request(
            request_id=self._request_id[r],
            user_id=self._user_id[r],
            event_timestamp_us=self._moment[r],
            candidate_ids=candidates,
            context={name: values[r] for name, values in self._context.items()},
            scores={name: values(r) for name, values in self._scores.items()},
            candidate_features={name: values(r) for name, values in self._own.items()},
            recent_events=self._recent(r) if self._recent else (),
        )
        return TrainingRow(
            request=request,
            user=FeatureColumns({name: values[r : r + 1] for name, values in self._user.items()}, 1),
            items=FeatureColumns({name: values(r) for name, values in self._items.items()}, len(candidates)),
            shown_T=np.array([place[item] for item in shown], np.int64),
            feedback_OT=np.array(feedback, np.float32).reshape(len(feedback), len(shown)),
            seen_T=self._seen(r) if self._seen else None,
        )


def _array(table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        raise KeyError(name)
    column = table[name]
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])


def _field(table: pa.Table, struct: str, name: str) -> pa.Array:
    column = _array(table, struct)
    if column.type.get_field_index(name) < 0:
        raise KeyError(f"{struct}.{name}")
    return pc.struct_field(column, name)  # a null struct gives null fields


def _struct(table: pa.Table, struct: str, features: Sequence[Feature]) -> dict[str, Values]:
    """Per-request values, one a row of the part."""
    return {feature.name: _values(_field(table, struct, feature.name), feature) for feature in features}


def _struct_of_columns(table: pa.Table, struct: str, features: Sequence[Feature]) -> dict[str, Slicer]:
    """Per-candidate values, sliced by request."""
    out: dict[str, Slicer] = {}
    for feature in features:
        lists = _field(table, struct, feature.name)
        out[feature.name] = _slicer(lists, _values(lists.flatten(), feature))
    return out


def _struct_of_lists(
    table: pa.Table, struct: str, names: Sequence[str], convert: Callable[[pa.Array], Values]
) -> dict[str, Slicer]:
    lists = {name: _field(table, struct, name) for name in names}
    return {name: _slicer(column, convert(column.flatten())) for name, column in lists.items()}


def _lists(column: pa.Array) -> Slicer:
    return _slicer(column, column.flatten().to_pylist())


def _slicer(lists: pa.Array, flat: Values) -> Slicer:
    """Slices of the flattened values; a null list is empty."""
    ends = np.cumsum(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False))
    bounds: list[int] = [0, *ends.tolist()]
    return lambda r: flat[bounds[r] : bounds[r + 1]]


def _values(column: pa.Array, feature: Feature) -> Values:
    if feature.kind == "numeric":
        return _floats(column)
    if feature.kind == "vector":
        return _vectors(column, feature)
    return _strings(column) if feature.kind == "categorical" else _sequences(column)


def _floats(column: pa.Array) -> np.ndarray:
    """float32, null = NaN."""
    return pc.fill_null(column.cast(pa.float32()), float("nan")).to_numpy(zero_copy_only=False)


def _strings(column: pa.Array) -> list[Any]:
    """Python strings, equal ones shared; null = None."""
    encoded = column.dictionary_encode()
    names = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)
    codes: np.ndarray = pc.fill_null(encoded.indices, len(names) - 1).to_numpy(zero_copy_only=False)
    out: list[Any] = names[codes].tolist()
    return out


def _vectors(column: pa.Array, feature: Feature) -> np.ndarray:
    """float32 (rows, size); a null vector is a row of NaN."""
    size = feature.size or 0
    lengths = pc.list_value_length(column)
    if not pc.all(pc.equal(lengths, size), min_count=0).as_py():
        raise _WrongVectorError(feature)
    flat = _floats(column.flatten()).reshape(-1, size)
    if column.null_count == 0:
        return flat
    out = np.full((len(column), size), np.nan, np.float32)
    out[column.is_valid().to_numpy(zero_copy_only=False)] = flat
    return out


def _sequences(column: pa.Array) -> list[Any]:
    """Lists of ids; null = None."""
    part = _lists(column)
    valid = column.is_valid().to_pylist()
    return [part(r) if ok else None for r, ok in enumerate(valid)]


def _seen(table: pa.Table) -> Slicer | None:
    if "seen" not in table.column_names:
        return None
    column = _array(table, "seen")
    part = _slicer(column, pc.fill_null(column.flatten(), False).to_numpy(zero_copy_only=False))
    valid = column.is_valid().to_pylist()
    return lambda r: part(r) if valid[r] else None


def _recent(table: pa.Table) -> Slicer | None:
    if "recent_events" not in table.column_names:
        return None
    column = _array(table, "recent_events")
    events = column.flatten()
    flat = [
        RecentEvent(*event)
        for event in zip(
            pc.struct_field(events, "item_id").to_pylist(),
            _strings(pc.struct_field(events, "type")),
            pc.struct_field(events, "timestamp").cast(pa.int64()).to_pylist(),
            strict=True,
        )
    ]
    return _slicer(column, flat)
