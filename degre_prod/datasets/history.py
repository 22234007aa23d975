"""What was known before: helpers over events sorted by owner and time, all of them blind to the present."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from degre_prod.errors import DataError


def owner_time_key(owner_N: np.ndarray, time_N: np.ndarray, origin: int, span: int) -> np.ndarray:
    """One int64 a row that sorts by owner code, then by time; `origin` ≤ every time < `origin` + `span`."""
    if len(owner_N) and (int(owner_N.max()) + 1) * span >= 2**63:
        raise DataError(f"{int(owner_N.max()) + 1} owners over {span} µs do not fit one sort key; split the source")
    return owner_N.astype(np.int64) * span + (time_N - origin)


def ranges_before(
    owner_E: np.ndarray, time_E: np.ndarray, owner_R: np.ndarray, time_R: np.ndarray, *, newest: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each request the slice [start, stop) of its owner's events strictly before it, the `newest` ones.

    Events must be sorted by owner, then time. Returns int64 (R,) starts and stops.
    """
    if len(time_E) == 0 or len(time_R) == 0:
        return np.zeros(len(time_R), np.int64), np.zeros(len(time_R), np.int64)
    origin = int(min(time_E.min(), time_R.min()))
    span = int(max(time_E.max(), time_R.max())) - origin + 1
    events = owner_time_key(owner_E, time_E, origin, span)
    first = np.searchsorted(events, owner_time_key(owner_R, np.full(len(owner_R), origin), origin, span))
    stop = np.searchsorted(events, owner_time_key(owner_R, time_R, origin, span), side="left")
    return np.maximum(first, stop - newest), stop


def flat_ranges(start_R: np.ndarray, stop_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of all slices one after the other, and their offsets (R + 1,)."""
    offsets = np.concatenate([[0], np.cumsum(stop_R - start_R)])
    return np.arange(offsets[-1]) - np.repeat(offsets[:-1] - start_R, stop_R - start_R), offsets


def running_sum(values_N: np.ndarray, new_owner_N: np.ndarray) -> np.ndarray:
    """Cumulative sum (this row included) that starts again where `new_owner_N` is true (its first row is)."""
    total = np.cumsum(values_N.astype(np.float64))
    starts = np.flatnonzero(new_owner_N)
    before = total[starts] - values_N[starts]
    return total - np.repeat(before, np.diff(np.append(starts, len(total))))


def last_distinct(owner_N: np.ndarray, item_N: Sequence[Any], counts_N: np.ndarray, *, length: int) -> list[list[Any]]:
    """After each row, the owner's distinct latest items, newest first; rows with `counts_N` false add nothing."""
    out: list[list[Any]] = []
    current: list[Any] = []
    owner = None
    for row_owner, item, counts in zip(owner_N.tolist(), item_N, counts_N.tolist(), strict=True):
        if row_owner != owner:
            owner, current = row_owner, []
        if counts:
            current = [item, *(other for other in current if other != item)][:length]
        out.append(current)
    return out


def ends_of_runs(*keys_N: np.ndarray) -> np.ndarray:
    """True at the last of adjacent rows that agree in every key."""
    last = np.ones(len(keys_N[0]), bool)
    if len(last) > 1:
        last[:-1] = np.any([key[1:] != key[:-1] for key in keys_N], axis=0)
    return last


def starts_of_runs(*keys_N: np.ndarray) -> np.ndarray:
    """True at the first of adjacent rows that agree in every key."""
    first = np.ones(len(keys_N[0]), bool)
    if len(first) > 1:
        first[1:] = np.any([key[1:] != key[:-1] for key in keys_N], axis=0)
    return first


def mean_or_null(total_N: np.ndarray, count_N: np.ndarray) -> np.ndarray:
    """total / count; NaN (written as null) where nothing was counted."""
    return np.where(count_N > 0, total_N / np.maximum(count_N, 1), np.nan)
