"""KuaiRand-Pure: single exposures, grouped into pseudo-lists.

The source logs no slates. A pseudo-list is a run of a user's consecutive exposures on one tab; its request is the first
exposure, its order the order in time. Good for many columns, point-in-time joins and load, not for claims about lists.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from degre_prod.conform import conform, read_parquet
from degre_prod.datasets import kuairand_features
from degre_prod.datasets.history import flat_ranges, ranges_before, starts_of_runs
from degre_prod.datasets.kuairand_features import FEEDBACK, Exposures
from degre_prod.datasets.output import Converted, convert_into, feature_table, rejected_rows
from degre_prod.errors import DataError
from degre_prod.records import TIMESTAMP, impression_schema
from degre_prod.schema import DataSchema

VERSION: Final = "kuairand-1"  # part of the hash: raise it when the same source gives other bytes
LIST_LENGTH: Final = 10
GAP_MS: Final = 3_600_000  # a longer pause ends a pseudo-list
RECENT: Final = 50
DAY_MS: Final = 86_400_000
CHINA_MS: Final = 8 * 3_600_000  # the log's days are of UTC+8
LOGS: Final = ("val.parquet", "test.parquet")
RULES: Final = {
    "null_key": "user_id, video_id, time_ms, tab or play_time_ms is missing",
    "duplicate_exposure": "an earlier row has this user, video and time",
    "bad_feedback": "is_click, long_view or is_like is not 0 or 1",
}
_KEYS: Final = ("user_id", "video_id", "time_ms", "tab", "play_time_ms")


def convert(src: Path, dst: Path, *, say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Convert the folder of KuaiRand-Pure's parquet files into the data set folder `dst`; returns conversion.json.

    `say` is told each step. Raises DataError when a file is missing or cannot be used.
    """

    def make() -> Converted:
        say("reading exposures")
        exposures, rejected, last_validation_ms = _read(src)
        schema = _schema(last_validation_ms)
        say("pseudo-lists")
        list_N = _lists(exposures)
        impressions = _impressions(exposures, list_N, schema)
        say("user features")
        users = kuairand_features.user_columns(exposures, read_parquet(src / "user_features.parquet"))
        say("item features")
        items = kuairand_features.item_columns(read_parquet(src / "item_features.parquet"))
        say("writing")
        counts = {
            "events": len(exposures.user_N) + rejected.num_rows,
            "lists_are": "pseudo-lists: runs of consecutive exposures, not slates that were shown together",
            "exposures_in_no_list": int((list_N < 0).sum()),
            "users": len(np.unique(exposures.user_N)),
            "items": len(np.unique(exposures.video_N)),
        }
        return Converted(
            schema,
            impressions,
            feature_table(schema, "user", users),
            feature_table(schema, "item", items),
            rejected,
            counts,
        )

    return convert_into(dst, [src / name for name in (*LOGS, *kuairand_features.FILES)], VERSION, make)


def _read(src: Path) -> tuple[Exposures, pa.Table, int]:
    """Exposures sorted by user and time, the rejected rows, and the last time_ms of val.parquet."""
    columns = [(name, pa.int64(), True) for name in (*_KEYS, *FEEDBACK.values())]
    logs = [conform(read_parquet(src / name), columns, file=str(src / name)) for name in LOGS]
    source = pa.concat_tables(
        [log.append_column("file", pa.repeat(name, len(log))) for log, name in zip(logs, LOGS, strict=True)]
    )
    if source.num_rows == 0:
        raise DataError("no exposures", file=str(src / LOGS[0]))
    values = {name: pc.fill_null(source[name], -1).to_numpy() for name, _, _ in columns}
    user_N, time_N, video_N = values["user_id"], values["time_ms"], values["video_id"]
    order = np.lexsort([np.arange(len(user_N)), video_N, time_N, user_N])
    again = np.empty(len(order), bool)
    again[order] = ~starts_of_runs(user_N[order], time_N[order], video_N[order])
    rule_N = np.full(len(user_N), "", object)
    for rule, bad in (
        ("null_key", np.any([values[name] < 0 for name in _KEYS], axis=0)),
        ("bad_feedback", np.any([(values[name] != 0) & (values[name] != 1) for name in FEEDBACK.values()], axis=0)),
        ("duplicate_exposure", again),
    ):
        rule_N[bad & (rule_N == "")] = rule
    order = np.lexsort([np.arange(len(user_N)), time_N, user_N])
    order = order[rule_N[order] == ""]
    exposures = Exposures(
        user_N=user_N[order],
        video_N=video_N[order],
        time_N=time_N[order] * 1000,
        known_N=(time_N + values["play_time_ms"])[order] * 1000,
        tab_N=values["tab"][order],
        feedback={name: values[column][order] for name, column in FEEDBACK.items()},
    )
    last = int(time_N[: len(logs[0])].max(initial=0))
    return exposures, rejected_rows(source, rule_N, RULES), last


def _schema(last_validation_ms: int) -> DataSchema:
    """Tests start at the local midnight after val.parquet's last row; the day before that is validation."""
    test_ms = ((last_validation_ms + CHINA_MS) // DAY_MS + 1) * DAY_MS - CHINA_MS
    return DataSchema.model_validate(
        {
            "name": "kuairand-pseudo-lists",
            "id_type": "int64",
            "list_length": LIST_LENGTH,
            "max_candidates": LIST_LENGTH,
            "objectives": [{"name": name} for name in FEEDBACK],
            "user": kuairand_features.USER,
            "item": kuairand_features.ITEM,
            "context": [{"name": name, "kind": "categorical"} for name in ("tab", "hour")],
            "recent_event_types": list(FEEDBACK),
            "validation_start": datetime.fromtimestamp((test_ms - DAY_MS) // 1000, UTC),
            "test_start": datetime.fromtimestamp(test_ms // 1000, UTC),
        }
    )


def _lists(exposures: Exposures) -> np.ndarray:
    """The pseudo-list of each exposure, numbered from 0 in order of the rows, int64 (N,); -1 for one left alone."""
    list_N = np.empty(len(exposures.user_N), np.int64)
    number, current, previous = -1, set[int](), (-1, -1, 0)
    rows = zip(exposures.user_N.tolist(), exposures.tab_N.tolist(), exposures.time_N.tolist(), strict=True)
    for n, ((user, tab, time), video) in enumerate(zip(rows, exposures.video_N.tolist(), strict=True)):
        follows = previous[:2] == (user, tab) and time - previous[2] <= GAP_MS * 1000
        if not follows or len(current) == LIST_LENGTH or video in current:
            number, current = number + 1, set()
        current.add(video)
        list_N[n] = number
        previous = (user, tab, time)
    sizes = np.bincount(list_N)
    kept = np.where(sizes >= 2, np.cumsum(sizes >= 2) - 1, -1)
    return kept[list_N]


def _impressions(exposures: Exposures, list_N: np.ndarray, schema: DataSchema) -> pa.Table:
    """The impression log, in order of time."""
    member = list_N >= 0
    lengths = np.bincount(list_N[member])
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    first = np.flatnonzero(member)[offsets.to_numpy()[:-1]]
    user_B, time_B = exposures.user_N[first], exposures.time_N[first]
    videos = pa.ListArray.from_arrays(offsets, pa.array(exposures.video_N[member]))
    feedback = [
        pa.ListArray.from_arrays(offsets, pa.array(values[member].astype(np.float32)))
        for values in exposures.feedback.values()
    ]
    hour_B = (time_B // 1000 + CHINA_MS) // 3_600_000 % 24
    ids = zip(user_B.tolist(), (time_B // 1000).tolist(), exposures.video_N[first].tolist(), strict=True)
    columns = {
        "request_id": pa.array([f"{user}-{time}-{video}" for user, time, video in ids]),
        "event_timestamp": pa.array(time_B, TIMESTAMP),
        "user_id": pa.array(user_B),
        "context": pa.StructArray.from_arrays(
            [
                pa.array(exposures.tab_N[first].astype(str).tolist()),
                pa.array(np.char.zfill(hour_B.astype(str), 2).tolist()),
            ],
            ["tab", "hour"],
        ),
        "candidate_ids": videos,
        "recent_events": _recent_events(exposures, user_B, time_B),
        "shown_ids": videos,
        "feedback": pa.StructArray.from_arrays(feedback, list(exposures.feedback)),
        "source": pa.repeat("pseudo_list", len(first)),
    }
    wanted = impression_schema(schema)
    table = pa.table(columns, schema=pa.schema([wanted.field(name) for name in columns]))
    return table.take(pa.array(np.argsort(time_B, kind="stable")))


def _recent_events(exposures: Exposures, user_B: np.ndarray, time_B: np.ndarray) -> pa.Array:
    """The user's positive feedback whose watching ended strictly before each request, newest last, at most RECENT."""
    parts = [np.flatnonzero(values) for values in exposures.feedback.values()]
    row_E, type_E = np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    order = np.lexsort([type_E, row_E, exposures.known_N[row_E], exposures.user_N[row_E]])
    row_E, type_E = row_E[order], type_E[order]
    start, stop = ranges_before(exposures.user_N[row_E], exposures.known_N[row_E], user_B, time_B, newest=RECENT)
    index, offsets = flat_ranges(start, stop)
    event = pa.StructArray.from_arrays(
        [
            pa.array(exposures.video_N[row_E]),
            pa.array(list(exposures.feedback)).take(pa.array(type_E)),
            pa.array(exposures.known_N[row_E], TIMESTAMP),
        ],
        ["item_id", "type", "timestamp"],
    )
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), event.take(pa.array(index)))
