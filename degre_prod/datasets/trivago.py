"""trivago RecSys Challenge 2019: one request a click-out, its displayed list as the candidates.

Only lists that ended in a click are logged, slot and upstream rank coincide, and the click is credited to the item
wherever it stood (`position_free`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from degre_prod.datasets import trivago_features
from degre_prod.datasets.history import flat_ranges, ranges_before
from degre_prod.datasets.output import Converted, convert_into, feature_table
from degre_prod.datasets.trivago_source import EVENT_TYPES, Events, read_events
from degre_prod.errors import DataError
from degre_prod.records import TIMESTAMP, impression_schema
from degre_prod.schema import DataSchema

VERSION: Final = "trivago-1"  # part of the hash: raise it when the same source gives other bytes
LIST_LENGTH: Final = 10
RECENT: Final = 50  # newest item interactions that come with a request
VALIDATION_SHARE: Final = 0.15
CONTEXT: Final = ("device", "platform", "sort_order", "has_filters", "hour")
DAY_US: Final = 86_400_000_000


def convert(src: Path, dst: Path, *, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Convert events.parquet (or the owner's train.csv) into the data set folder `dst`; returns conversion.json.

    `say` is told each step. Raises DataError when the source cannot be used.
    """

    def make() -> Converted:
        say("reading events")
        events, rejected = read_events(src)
        schema = _schema(events, src)
        say("requests and recent events")
        impressions, same_second = _impressions(events, schema)
        say("user features")
        users = feature_table(schema, "user", trivago_features.user_columns(events))
        say("item features")
        items = feature_table(schema, "item", trivago_features.item_columns(events))
        say("writing")
        counts = _counts(events, schema, impressions, rejected.num_rows, same_second)
        return Converted(schema, impressions, users, items, rejected, counts)

    return convert_into(dst, [src], VERSION, make)


def _schema(events: Events, src: Path) -> DataSchema:
    """The last UTC day is the test, the last 15 % of the click-outs before it are validation."""
    time_C = events.time_N[events.is_click_N]
    test_start = int(time_C.max()) // DAY_US * DAY_US
    before = np.sort(time_C[time_C < test_start])
    if len(before) == 0:
        raise DataError(
            "all click-outs are of one UTC day; two days are needed, the last one is the test", file=str(src)
        )
    longest = int(pc.max(pc.list_value_length(events.item_lists)).as_py())
    slots = 25 * math.ceil(longest / 25)
    clickout = {"name": "clickout", "slot_weights": [1 / (t + 1) for t in range(LIST_LENGTH)], "at_most_one": True}
    return DataSchema.model_validate(
        {
            "name": "trivago",
            "id_type": "string",
            "list_length": LIST_LENGTH,
            "shown_length": slots,
            "max_candidates": slots,
            "objectives": [clickout],
            "user": trivago_features.USER,
            "item": trivago_features.ITEM,
            "context": [{"name": name, "kind": "categorical"} for name in CONTEXT],
            "candidate_features": [{"name": "price", "kind": "numeric", "transform": "log1p"}],
            "recent_event_types": list(EVENT_TYPES.values()),
            "position_free": True,
            "validation_start": _moment(int(before[int(len(before) * (1 - VALIDATION_SHARE))])),
            "test_start": _moment(test_start),
        }
    )


def _impressions(events: Events, schema: DataSchema) -> tuple[pa.Table, int]:
    """The impression log, in order of time, and how many recent events share the second of their request."""
    clicks = events.table.filter(pa.array(events.is_click_N))
    time_C = events.time_N[events.is_click_N]
    recent, same_second = _recent_events(events, time_C)
    lengths = pc.list_value_length(events.item_lists).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    clicked = np.zeros(offsets[-1], np.float32)
    clicked[offsets[:-1] + events.clicked_rank_C] = 1.0
    feedback = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(clicked))
    hour = np.char.zfill((time_C // 3_600_000_000 % 24).astype(str), 2)
    sort_order, has_filters = _filters(clicks["current_filters"])
    request_id = pc.binary_join_element_wise(
        clicks["session_id"], clicks["timestamp"].cast(pa.string()), clicks["step"].cast(pa.string()), "-"
    )
    columns = {
        "request_id": request_id,
        "event_timestamp": pa.array(time_C, TIMESTAMP),
        "user_id": clicks["user_id"],
        "context": _struct(
            device=clicks["device"], platform=clicks["platform"], sort_order=sort_order, has_filters=has_filters,
            hour=pa.array(hour.tolist()),
        ),
        "candidate_ids": events.item_lists,
        "candidate_features": _struct(price=events.price_lists.cast(pa.list_(pa.float32()))),
        "recent_events": recent,
        "shown_ids": events.item_lists,
        "feedback": _struct(clickout=feedback),
    }  # fmt: skip
    wanted = impression_schema(schema)
    table = pa.table(columns, schema=pa.schema([wanted.field(name) for name in columns]))
    return table.take(pa.array(np.argsort(time_C, kind="stable"))), same_second


def _recent_events(events: Events, time_C: np.ndarray) -> tuple[pa.Array, int]:
    """The user's item interactions strictly before each click-out, newest last, at most RECENT."""
    touches = events.table.filter(pa.array(events.is_item_N))
    time_T = events.time_N[events.is_item_N]
    start, stop = ranges_before(
        events.user_N[events.is_item_N], time_T, events.user_N[events.is_click_N], time_C, newest=RECENT
    )
    index, offsets = flat_ranges(start, stop)
    names = pa.array([EVENT_TYPES[action] for action in touches["action_type"].to_pylist()])
    event = _struct(item_id=touches["reference"], type=names, timestamp=pa.array(time_T, TIMESTAMP))
    second_C = np.repeat(time_C // 1_000_000, np.diff(offsets))
    same_second = int((time_T[index] // 1_000_000 == second_C).sum())
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), event.take(pa.array(index))), same_second


def _filters(filters: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """The sort order among the active filters (`none` without one), and whether any filter is active."""
    encoded = filters.combine_chunks().dictionary_encode()
    orders, active = [], []
    for text in encoded.dictionary.to_pylist():
        names = [name.lower() for name in text.split("|") if name]
        sorts = [name for name in names if name.startswith(("sort by", "focus on")) or name == "best value"]
        orders.append(sorts[0].replace(" ", "_") if sorts else "none")
        active.append("yes" if len(names) > len(sorts) else "no")
    codes = encoded.indices
    order = pc.fill_null(pa.array(orders, pa.string()).take(codes), "none")
    return order, pc.fill_null(pa.array(active, pa.string()).take(codes), "no")


def _struct(**columns: Any) -> pa.StructArray:
    arrays = [c.combine_chunks() if isinstance(c, pa.ChunkedArray) else c for c in columns.values()]
    return pa.StructArray.from_arrays(arrays, names=list(columns))


def _counts(
    events: Events, schema: DataSchema, impressions: pa.Table, rejected: int, same_second: int
) -> dict[str, Any]:
    named = pc.is_in(events.table["action_type"], value_set=pa.array(list(EVENT_TYPES))).to_numpy()
    times = impressions["event_timestamp"]
    test = pc.greater_equal(times, pa.scalar(schema.test_start, TIMESTAMP))
    return {
        "events": len(events.user_N) + rejected,
        "users": len(np.unique(events.user_N)),
        "items": pc.count_distinct(pc.list_flatten(events.item_lists)).as_py(),
        "test_requests": int(pc.sum(test).as_py()),
        "recent_events": int(pc.sum(pc.list_value_length(impressions["recent_events"])).as_py()),
        "recent_events_of_the_same_second": same_second,
        "interactions_without_an_item": int((named & ~events.is_item_N).sum()),
    }


def _moment(time_us: int) -> datetime:
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).replace(microsecond=time_us % 1_000_000)
