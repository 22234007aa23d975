"""Feature tables from trivago's events, each row stamped with the moment its values became known."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from degre_prod.datasets.history import ends_of_runs, last_distinct, mean_or_null, running_sum, starts_of_runs
from degre_prod.datasets.trivago_source import Events

HOUR_US: Final = 3_600_000_000
# Constants, not the log's own rate, which would tell of the future: one click a list of 25, worth 20 impressions.
PRIOR_CTR, PRIOR_WEIGHT = 0.04, 20.0


def _counts(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "kind": "numeric", "transform": "log1p"} for name in names]


USER: Final[dict[str, Any]] = {
    "features": [
        *_counts("event_count", "clickout_count", "mean_clicked_rank", "mean_clicked_price"),
        {"name": "last_items", "kind": "id_sequence", "max_length": 10},
    ]
}
ITEM: Final[dict[str, Any]] = {
    "features": [
        *_counts("impression_count", "clickout_count", "interaction_count", "mean_shown_rank", "mean_price"),
        {"name": "ctr", "kind": "numeric"},
    ]
}


def user_columns(events: Events) -> dict[str, Any]:
    """A row after each event of a user, known one µs after it: before the user's next event, never at this one.

    Ranks count from 1.
    """
    new_user = starts_of_runs(events.user_N)
    rank, price = np.zeros(len(events.user_N)), np.zeros(len(events.user_N))
    rank[events.is_click_N] = events.clicked_rank_C + 1
    offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(events.item_lists).to_numpy())])
    price[events.is_click_N] = pc.list_flatten(events.price_lists).to_numpy()[offsets[:-1] + events.clicked_rank_C]
    clicks = running_sum(events.is_click_N, new_user)
    keep = ends_of_runs(events.user_N, events.time_N)
    items = last_distinct(events.user_N, events.table["reference"].to_pylist(), events.is_item_N, length=10)
    return {
        "user_id": events.table["user_id"].filter(pa.array(keep)),
        "event_timestamp": events.time_N[keep] + 1,
        "event_count": running_sum(np.ones(len(keep)), new_user)[keep],
        "clickout_count": clicks[keep],
        "mean_clicked_rank": mean_or_null(running_sum(rank, new_user), clicks)[keep],
        "mean_clicked_price": mean_or_null(running_sum(price, new_user), clicks)[keep],
        "last_items": [recent for recent, kept in zip(items, keep.tolist(), strict=True) if kept],
    }


def item_columns(events: Events) -> dict[str, Any]:
    """Counts so far at the end of each hour in which the item was displayed, clicked or touched."""
    lengths = pc.list_value_length(events.item_lists).to_numpy()
    shown, references = pc.list_flatten(events.item_lists), events.table["reference"].combine_chunks()
    touched = references.filter(pa.array(events.is_item_N))
    encoded = pa.concat_arrays([shown, touched]).dictionary_encode()
    item_M = encoded.indices.to_numpy().astype(np.int64)
    hour_N = events.time_N // HOUR_US
    hour_M = np.concatenate([np.repeat(hour_N[events.is_click_N], lengths), hour_N[events.is_item_N]])
    first, hours = hour_M.min(), int(hour_M.max() - hour_M.min() + 1)
    keys, row_M = np.unique(item_M * hours + (hour_M - first), return_inverse=True)
    item_R, hour_R = keys // hours, keys % hours + first
    new_item = starts_of_runs(item_R)

    def so_far(shown_values: Any, touched_values: Any) -> np.ndarray:
        weights = np.concatenate(
            [np.broadcast_to(shown_values, len(shown)), np.broadcast_to(touched_values, len(touched))]
        )
        return running_sum(np.bincount(row_M, weights=weights, minlength=len(keys)), new_item)

    rank = np.arange(len(shown)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + 1
    clicked = events.is_click_N[events.is_item_N].astype(float)
    impressions, clickouts = so_far(1.0, 0.0), so_far(0.0, clicked)
    return {
        "item_id": encoded.dictionary.take(pa.array(item_R)),
        "event_timestamp": (hour_R + 1) * HOUR_US,
        "impression_count": impressions,
        "clickout_count": clickouts,
        "interaction_count": so_far(0.0, 1.0 - clicked),
        "ctr": (clickouts + PRIOR_CTR * PRIOR_WEIGHT) / (impressions + PRIOR_WEIGHT),
        "mean_shown_rank": mean_or_null(so_far(rank, 0.0), impressions),
        "mean_price": mean_or_null(so_far(pc.list_flatten(events.price_lists).to_numpy(), 0.0), impressions),
    }
