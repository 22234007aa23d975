"""The rules an impression must keep, checked over whole columns: flattened values and the row each belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from degre_prod.records import impression_columns
from degre_prod.schema import DataSchema

# What each rule says of a row that breaks it. A row is counted under the first rule it breaks, in this order.
RULES: Final[Mapping[str, str]] = {
    "null_id": "an id is null; every request, user, candidate, shown item and event names one",
    "null_value": "the value is null; this column needs one in every row",
    "empty_candidates": "no candidates; a request has at least one",
    "empty_shown": "nothing was shown; log a request once its list was shown",
    "too_many_candidates": "more candidates than max_candidates in schema.yaml",
    "shown_too_long": "more shown items than shown_length (else list_length) in schema.yaml",
    "duplicate_request": "an earlier row has this request_id; the earlier one is kept",
    "duplicate_candidate": "an item is twice among the candidates",
    "shown_twice": "an item is twice in the shown list",
    "shown_not_candidate": "a shown item is not among the candidates",
    "unequal_lengths": "as many values as candidates (scores, features) or as shown items (feedback, seen, propensity)",
    "not_finite": "NaN or infinite; a missing value is null",
    "feedback_not_binary": "feedback is 0 or 1 in each shown slot; a slot nobody could log has seen = false",
    "feedback_twice": "more than one positive, but schema.yaml says at_most_one",
    "propensity_range": "a propensity lies in (0, 1]",
    "future_timestamp": "the timestamp lies in the future",
    "recent_not_before": "a recent event must be strictly earlier than the request; otherwise it tells the future",
    "unknown_event_type": "an event type that schema.yaml's recent_event_types lacks",
}


@dataclass(frozen=True, slots=True)
class Broken:
    """The rows that break one rule through one column: bool (rows,)."""

    rule: str
    column: str
    rows: np.ndarray


@dataclass(frozen=True, slots=True)
class _Lists:
    """A list column: `lengths` int64 (rows,), 0 for null; `values` flattened, `parents` the row of each value."""

    lengths: np.ndarray
    values: pa.Array
    parents: np.ndarray

    def rows_with(self, bad_values: np.ndarray) -> np.ndarray:
        rows = np.zeros(len(self.lengths), bool)
        rows[self.parents[bad_values]] = True
        return rows


def broken_rules(table: pa.Table, schema: DataSchema, *, now_us: int) -> Iterator[Broken]:
    """Every rule that some row of a conforming table breaks, in the order of RULES; a row may appear several times.

    `now_us`: the present, µs since 1970 UTC.
    """
    found = [b for b in _all(table.combine_chunks(), schema, now_us) if b.rows.any()]
    order = {rule: position for position, rule in enumerate(RULES)}
    yield from sorted(found, key=lambda b: order[b.rule])


def _all(table: pa.Table, schema: DataSchema, now_us: int) -> Iterator[Broken]:
    candidates, shown = _lists(_column(table, "candidate_ids")), _lists(_column(table, "shown_ids"))
    yield from _nulls(table, schema, {"candidate_ids": candidates, "shown_ids": shown})
    yield Broken("empty_candidates", "candidate_ids", candidates.lengths == 0)
    yield Broken("empty_shown", "shown_ids", shown.lengths == 0)
    yield Broken("too_many_candidates", "candidate_ids", candidates.lengths > schema.max_candidates)
    yield Broken("shown_too_long", "shown_ids", shown.lengths > schema.logged_length)
    yield Broken("duplicate_request", "request_id", _repeated(_column(table, "request_id")))
    yield from _membership(candidates, shown)
    yield from _aligned(table, schema, candidates.lengths, shown.lengths)
    yield from _feedback(table, schema)
    for feature in schema.context:
        if feature.kind == "numeric":
            values = pc.struct_field(_column(table, "context"), feature.name)
            yield Broken("not_finite", f"context.{feature.name}", _not_finite(values))
    yield from _propensity(table, shown.lengths)
    for name in ("event_timestamp", "created_timestamp"):
        yield Broken("future_timestamp", name, _microseconds(_column(table, name)) > now_us)
    if schema.recent_event_types:
        yield from _recent(table, schema)


def _nulls(table: pa.Table, schema: DataSchema, ids: Mapping[str, _Lists]) -> Iterator[Broken]:
    for column in impression_columns(schema):
        if column.required and not pa.types.is_list(column.type):
            rule = "null_id" if column.name.endswith("_id") else "null_value"
            yield Broken(rule, column.name, _bool(_column(table, column.name).is_null()))
    for name, lists in ids.items():
        yield Broken("null_id", name, lists.rows_with(_bool(lists.values.is_null())))


def _membership(candidates: _Lists, shown: _Lists) -> Iterator[Broken]:
    encoded = pa.concat_arrays([candidates.values, shown.values]).dictionary_encode()
    span = len(encoded.dictionary) + 1  # one more code for null
    codes = pc.fill_null(encoded.indices.cast(pa.int64()), span - 1).to_numpy(zero_copy_only=False)
    candidate_keys = candidates.parents * span + codes[: len(candidates.values)]
    shown_keys = shown.parents * span + codes[len(candidates.values) :]
    yield Broken("duplicate_candidate", "candidate_ids", _twice(candidate_keys, span, len(candidates.lengths)))
    yield Broken("shown_twice", "shown_ids", _twice(shown_keys, span, len(shown.lengths)))
    yield Broken("shown_not_candidate", "shown_ids", shown.rows_with(~np.isin(shown_keys, candidate_keys)))


def _aligned(table: pa.Table, schema: DataSchema, candidates: np.ndarray, shown: np.ndarray) -> Iterator[Broken]:
    """Lists that go with the candidates or with the shown slots: as long as those, and finite."""
    numeric = {f.name for f in schema.candidate_features if f.kind == "numeric"}
    for column, names, lengths in (
        ("upstream_scores", list(schema.scores), candidates),
        ("candidate_features", [f.name for f in schema.candidate_features], candidates),
        ("feedback", [o.name for o in schema.objectives], shown),
    ):
        for name in names:
            lists = _lists(pc.struct_field(_column(table, column), name))
            yield Broken("unequal_lengths", f"{column}.{name}", lists.lengths != lengths)
            if column != "candidate_features" or name in numeric:
                yield Broken("not_finite", f"{column}.{name}", lists.rows_with(_not_finite(lists.values)))
    seen = _column(table, "seen")
    lists = _lists(seen)
    yield Broken("unequal_lengths", "seen", _bool(seen.is_valid()) & (lists.lengths != shown))
    yield Broken("null_value", "seen", lists.rows_with(_bool(lists.values.is_null())))


def _propensity(table: pa.Table, shown: np.ndarray) -> Iterator[Broken]:
    """Of each slot, and of the whole list."""
    slots = _column(table, "propensity")
    lists = _lists(slots)
    yield Broken("unequal_lengths", "propensity", _bool(slots.is_valid()) & (lists.lengths != shown))
    yield Broken("not_finite", "propensity", lists.rows_with(_not_finite(lists.values)))
    yield Broken("propensity_range", "propensity", lists.rows_with(_outside_unit(lists.values)))
    whole = _column(table, "list_propensity")
    yield Broken("not_finite", "list_propensity", _not_finite(whole))
    yield Broken("propensity_range", "list_propensity", _outside_unit(whole))


def _feedback(table: pa.Table, schema: DataSchema) -> Iterator[Broken]:
    for objective in schema.objectives:
        name = f"feedback.{objective.name}"
        lists = _lists(pc.struct_field(_column(table, "feedback"), objective.name))
        values = lists.values.to_numpy(zero_copy_only=False)  # null → NaN
        yield Broken("feedback_not_binary", name, lists.rows_with((values != 0) & (values != 1)))
        if objective.at_most_one:
            positives = np.bincount(lists.parents[values == 1], minlength=len(lists.lengths))
            yield Broken("feedback_twice", name, positives > 1)


def _recent(table: pa.Table, schema: DataSchema) -> Iterator[Broken]:
    lists = _lists(_column(table, "recent_events"))
    items, types, moments = (pc.struct_field(lists.values, name) for name in ("item_id", "type", "timestamp"))
    yield Broken("null_id", "recent_events.item_id", lists.rows_with(_bool(items.is_null())))
    known = pc.is_in(types, value_set=pa.array(schema.recent_event_types, pa.string()))
    yield Broken("unknown_event_type", "recent_events.type", lists.rows_with(~_bool(known)))
    requests = _microseconds(_column(table, "event_timestamp"))[lists.parents]
    late = _bool(moments.is_null()) | (_microseconds(moments) >= requests)
    yield Broken("recent_not_before", "recent_events.timestamp", lists.rows_with(late))


def _column(table: pa.Table, name: str) -> pa.Array:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([*column.chunks, pa.array([], column.type)])


def _lists(array: pa.Array) -> _Lists:
    return _Lists(
        lengths=pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64),
        values=pc.list_flatten(array),
        parents=pc.list_parent_indices(array).to_numpy(zero_copy_only=False).astype(np.int64),
    )


def _twice(keys: np.ndarray, span: int, rows: int) -> np.ndarray:
    """Rows (key // span) that hold some key more than once."""
    ordered = np.sort(keys)
    out = np.zeros(rows, bool)
    out[ordered[1:][ordered[1:] == ordered[:-1]] // span] = True
    return out


def _repeated(array: pa.Array) -> np.ndarray:
    """Every occurrence of a value but the first; nulls never."""
    codes = pc.fill_null(array.dictionary_encode().indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    _, first = np.unique(codes, return_index=True)
    out = codes >= 0
    out[first] = False
    return out


def _bool(array: pa.Array) -> np.ndarray:
    return np.asarray(pc.fill_null(array, False).to_numpy(zero_copy_only=False), bool)


def _not_finite(values: pa.Array) -> np.ndarray:
    return ~np.asarray(pc.fill_null(pc.is_finite(values), True).to_numpy(zero_copy_only=False), bool)


def _outside_unit(values: pa.Array) -> np.ndarray:
    numbers: np.ndarray[Any, Any] = pc.fill_null(values, 1.0).to_numpy(zero_copy_only=False)
    return (numbers <= 0) | (numbers > 1)


def _microseconds(array: pa.Array) -> np.ndarray:
    """int64 µs; null → 0 (another rule reports it)."""
    return np.asarray(pc.fill_null(array.cast(pa.int64()), 0).to_numpy(zero_copy_only=False), np.int64)
