"""Reading trivago's session log: sorted events, and the click-outs that cannot become requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from degre_prod.conform import conform, read_parquet
from degre_prod.datasets.history import starts_of_runs
from degre_prod.datasets.output import rejected_rows
from degre_prod.errors import DataError

_TEXT: Final = (
    "user_id", "session_id", "action_type", "reference", "platform", "city", "device", "current_filters",
    "impressions", "prices",
)  # fmt: skip
COLUMNS: Final = (
    *((name, pa.string(), True) for name in _TEXT),
    *((n, pa.int64(), True) for n in ("timestamp", "step")),
)
CLICKOUT: Final = "clickout item"
EVENT_TYPES: Final[Mapping[str, str]] = {
    CLICKOUT: "clickout",
    "interaction item image": "image",
    "interaction item info": "info",
    "interaction item rating": "rating",
    "interaction item deals": "deals",
    "search for item": "search",
}
RULES: Final[Mapping[str, str]] = {
    "null_key": "user_id, session_id, timestamp, step or action_type is missing",
    "duplicate_event": "an earlier row has this user, session, timestamp and step",
    "no_impressions": "a click-out without a displayed list",
    "prices_length": "impressions and prices have different lengths",
    "bad_price": "a price is not a positive number",
    "duplicate_candidate": "an item is twice in the displayed list",
    "reference_not_shown": "the clicked item is not in the displayed list",
}
# The log has whole seconds; `step` orders a session within them. Ten µs a step, so that a feature row can lie
# strictly between an event and the next.
STEP_US: Final = 10


@dataclass(frozen=True, slots=True)
class Events:
    """N accepted events sorted by user, then time.

    `user_N`: code of the user · `time_N`: µs since 1970 UTC · `is_item_N`: names an item · `is_click_N`: a click-out ·
    `table`: the source columns in this order. C click-outs, in the same order: `item_lists` and `price_lists` have one
    list each, as displayed; `clicked_rank_C` is 0-based.
    """

    table: pa.Table
    user_N: np.ndarray
    time_N: np.ndarray
    is_item_N: np.ndarray
    is_click_N: np.ndarray
    item_lists: pa.Array
    price_lists: pa.Array
    clicked_rank_C: np.ndarray


def read_events(path: Path) -> tuple[Events, pa.Table]:
    """The events of a parquet or csv file with the owner's columns, and the rejected rows (reason, rule, row, original).

    Raises DataError for a file that cannot be read, lacks a column, or holds no click-out.
    """
    source = conform(_read(path), COLUMNS, file=str(path)).combine_chunks()
    rule_N = np.full(source.num_rows, "", object)
    _mark(rule_N, "null_key", _any_null(source, ("user_id", "session_id", "timestamp", "step", "action_type")))
    users = source["user_id"].combine_chunks().dictionary_encode().indices
    user_N = pc.fill_null(users, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    timestamp_N, step_N = (pc.fill_null(source[n], 0).to_numpy() for n in ("timestamp", "step"))
    session_N = pc.fill_null(source["session_id"].combine_chunks().dictionary_encode().indices, -1).to_numpy()
    order = np.lexsort([np.arange(source.num_rows), step_N, session_N, timestamp_N, user_N])
    again = np.empty(source.num_rows, bool)
    again[order] = ~starts_of_runs(user_N[order], timestamp_N[order], session_N[order], step_N[order])
    _mark(rule_N, "duplicate_event", again)
    click_N = pc.fill_null(pc.equal(source["action_type"], CLICKOUT), False).to_numpy()
    _mark_lists(source, np.flatnonzero(click_N), rule_N)
    order = np.lexsort([session_N, step_N, timestamp_N, user_N])
    order = order[rule_N[order] == ""]
    table = source.take(pa.array(order))
    clicks = table.filter(pa.array(click_N[order]))
    if clicks.num_rows == 0:
        raise DataError(
            f"no usable `{CLICKOUT}` rows; the session log needs some", file=str(path), column="action_type"
        )
    items, prices = _lists(clicks)
    is_type = pc.is_in(table["action_type"], value_set=pa.array(list(EVENT_TYPES)))
    is_id = pc.fill_null(pc.match_substring_regex(table["reference"], "^[0-9]+$"), False)
    events = Events(
        table=table,
        user_N=user_N[order],
        time_N=timestamp_N[order] * 1_000_000 + STEP_US * step_N[order],
        is_item_N=pc.and_(is_type, is_id).to_numpy(),
        is_click_N=click_N[order],
        item_lists=items,
        price_lists=prices,
        clicked_rank_C=_clicked_rank(items, clicks["reference"].combine_chunks()),
    )
    return events, rejected_rows(source, rule_N, RULES)


def _read(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        return read_parquet(path)
    from pyarrow import csv

    types = {name: kind for name, kind, _ in COLUMNS}
    options = csv.ConvertOptions(column_types=types, strings_can_be_null=True)
    try:
        return csv.read_csv(path, convert_options=options)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot be read as csv: {error}", file=str(path), rule="unreadable_file") from None


def _mark(rule_N: np.ndarray, rule: str, bad_N: np.ndarray) -> None:
    rule_N[bad_N & (rule_N == "")] = rule


def _any_null(table: pa.Table, names: tuple[str, ...]) -> np.ndarray:
    return np.any([table[name].is_null().to_numpy() for name in names], axis=0)


def _mark_lists(source: pa.Table, rows_C: np.ndarray, rule_N: np.ndarray) -> None:
    """Rules of the displayed list, for the click-out rows."""
    clicks = source.take(pa.array(rows_C))
    items = pc.split_pattern(pc.fill_null(clicks["impressions"].combine_chunks(), ""), "|")
    prices = pc.split_pattern(pc.fill_null(clicks["prices"].combine_chunks(), ""), "|")
    empty = pc.fill_null(pc.equal(clicks["impressions"], ""), True).to_numpy()
    unequal = pc.not_equal(pc.list_value_length(items), pc.list_value_length(prices)).to_numpy(zero_copy_only=False)
    parents = pc.list_parent_indices(prices).to_numpy()
    text = pc.list_flatten(prices)
    number = pc.match_substring_regex(text, r"^[0-9]+(\.[0-9]+)?$").to_numpy(zero_copy_only=False)
    value = np.zeros(len(number))
    value[number] = text.filter(pa.array(number)).cast(pa.float64()).to_numpy()
    bad_price = np.bincount(parents[value <= 0], minlength=len(rows_C)) > 0
    parents = pc.list_parent_indices(items).to_numpy()
    codes = pc.list_flatten(items).dictionary_encode().indices.to_numpy().astype(np.int64)
    keys = np.sort(parents * (codes.max(initial=0) + 1) + codes)
    twice = np.zeros(len(rows_C), bool)
    twice[keys[1:][keys[1:] == keys[:-1]] // (codes.max(initial=0) + 1)] = True
    absent = _clicked_rank(items, clicks["reference"].combine_chunks()) < 0
    for rule, bad_C in (
        ("no_impressions", empty),
        ("prices_length", unequal),
        ("bad_price", bad_price),
        ("duplicate_candidate", twice),
        ("reference_not_shown", absent),
    ):
        bad_N = np.zeros(len(rule_N), bool)
        bad_N[rows_C[bad_C]] = True
        _mark(rule_N, rule, bad_N)


def _lists(clicks: pa.Table) -> tuple[pa.Array, pa.Array]:
    items = pc.split_pattern(clicks["impressions"].combine_chunks(), "|")
    prices = pc.split_pattern(clicks["prices"].combine_chunks(), "|")
    return items, prices.cast(pa.list_(pa.float64()))


def _clicked_rank(items: pa.Array, reference: pa.Array) -> np.ndarray:
    """Index of the clicked item in its list, int64 (C,); -1 when it is not there."""
    parents = pc.list_parent_indices(items).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(items).to_numpy())])
    hit = pc.fill_null(pc.equal(pc.list_flatten(items), reference.take(pa.array(parents))), False)
    places = np.flatnonzero(hit.to_numpy(zero_copy_only=False))
    rank = np.full(len(items), -1, np.int64)
    rank[parents[places][::-1]] = (places - offsets[parents[places]])[::-1]
    return rank
