"""Feature tables of KuaiRand-Pure. Item columns are attributes only: the source's counters are totals over the whole log
and tell the future."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from degre_prod.datasets.history import ends_of_runs, last_distinct, mean_or_null, running_sum, starts_of_runs
from degre_prod.errors import DataError

FILES: Final = ("user_features.parquet", "item_features.parquet")
FEEDBACK: Final = {"click": "is_click", "long_view": "long_view", "like": "is_like"}
USER_STATIC: Final = (
    "user_active_degree", "is_live_streamer", "is_video_author", "follow_user_num_range", "fans_user_num_range",
    "friend_user_num_range", "register_days_range",
    *(f"onehot_feat{i}" for i in (0, 1, 2, 4, 5, 6, 9, 10, 11, 12, 13, 14, 15, 16, 17)),
)  # fmt: skip
ITEM_STATIC: Final = ("author_id", "video_type", "upload_type", "tag", "music_type")
HOUR_US: Final = 3_600_000_000

USER: Final[dict[str, Any]] = {
    "features": [
        {"name": "exposure_count", "kind": "numeric", "transform": "log1p"},
        *({"name": f"{name}_rate", "kind": "numeric"} for name in FEEDBACK),
        {"name": "last_items", "kind": "id_sequence", "max_length": 10},
        *({"name": name, "kind": "categorical"} for name in USER_STATIC),
    ]
}
ITEM: Final[dict[str, Any]] = {
    "features": [
        {"name": "duration_s", "kind": "numeric", "transform": "log1p"},
        *({"name": name, "kind": "categorical"} for name in ITEM_STATIC),
    ]
}


@dataclass(frozen=True, slots=True)
class Exposures:
    """N accepted exposures sorted by user, then time.

    `time_N`: µs since 1970 UTC of the exposure · `known_N`: of the end of watching, when its feedback is known ·
    `feedback`: objective → 0 or 1 (N,).
    """

    user_N: np.ndarray
    video_N: np.ndarray
    time_N: np.ndarray
    known_N: np.ndarray
    tab_N: np.ndarray
    feedback: Mapping[str, np.ndarray]


def user_columns(exposures: Exposures, profiles: pa.Table) -> dict[str, Any]:
    """Every profile at the start of the log, then a row after each exposure of the user, 1 µs after its end.

    Assumes that the profile, which the source gives once, held during the whole log.
    """
    _require(profiles, ("user_id", *USER_STATIC), FILES[0])
    order = np.lexsort([exposures.known_N, exposures.user_N])
    user_N, known_N = exposures.user_N[order], exposures.known_N[order]
    new_user, keep = starts_of_runs(user_N), ends_of_runs(user_N, known_N)
    count = running_sum(np.ones(len(user_N)), new_user)
    items = last_distinct(user_N, exposures.video_N[order].tolist(), exposures.feedback["click"][order] > 0, length=10)
    rates = {
        f"{name}_rate": np.concatenate(
            [np.full(len(profiles), np.nan), mean_or_null(running_sum(values[order], new_user), count)[keep]]
        )
        for name, values in exposures.feedback.items()
    }
    profile_users = profiles["user_id"].to_numpy()
    start = int(exposures.time_N.min()) // HOUR_US * HOUR_US
    users = np.concatenate([profile_users, user_N[keep]])
    place = pc.index_in(pa.array(users), value_set=pa.array(profile_users))  # null: a user without a profile
    return {
        "user_id": users,
        "event_timestamp": np.concatenate([np.full(len(profiles), start), known_N[keep] + 1]),
        "exposure_count": np.concatenate([np.zeros(len(profiles)), count[keep]]),
        **rates,
        "last_items": [[] for _ in profile_users] + [i for i, kept in zip(items, keep.tolist(), strict=True) if kept],
        **{name: _text(profiles[name]).take(place) for name in USER_STATIC},
    }


def item_columns(videos: pa.Table) -> dict[str, Any]:
    """Attributes of each video, known from the end of its upload day (UTC+8) on."""
    _require(videos, ("video_id", "upload_dt", "video_duration", *ITEM_STATIC), FILES[1])
    midnight = pc.strptime(videos["upload_dt"], format="%Y-%m-%d", unit="us").cast(pa.int64()).to_numpy()
    return {
        "item_id": videos["video_id"],
        "event_timestamp": midnight + (24 - 8) * HOUR_US,
        "duration_s": pc.divide(videos["video_duration"].cast(pa.float64()), 1000.0),
        **{name: _text(videos[name]) for name in ITEM_STATIC},
    }


def _text(column: pa.ChunkedArray) -> pa.Array:
    """Category codes as text: 3.0 and 3 are both "3"."""
    array = column.combine_chunks()
    if pa.types.is_floating(array.type):
        array = array.cast(pa.int64())
    return array.cast(pa.string())


def _require(table: pa.Table, names: tuple[str, ...], file: str) -> None:
    for name in names:
        if name not in table.column_names:
            raise DataError("required column is missing", file=file, column=name, rule="missing_column")
