"""Request-time cross features: what relates a candidate to its list, to the user's history, to what the user just did.

Computed here for training and serving alike; time is the request's own. Every function returns float32 (C, width).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from degre_prod.requests import Id, RecentEvent

PRIOR_RANK_WIDTH = 3
IN_LIST_WIDTH = 2
SEQUENCE_WIDTH = 2
RECENT_WIDTH = 5  # shared by all event types
RECENT_WIDTH_PER_TYPE = 2
NEAR_LAST_WIDTH = 2
VALUE_TO_LAST_WIDTH = 2  # of each value that `in_list_features` looks at
DAY_S = 86_400.0


@lru_cache(maxsize=1024)
def prior_rank_features(C: int, max_candidates: int) -> np.ndarray:
    """The upstream rank as a share, a reciprocal and a logarithm. Shared: not to be written to."""
    rank = np.arange(C).astype(np.float32)
    columns = [rank / np.float32(max_candidates), 1 / (1 + rank), np.log1p(rank) / np.float32(4)]
    out = np.stack(columns, axis=1).astype(np.float32)
    out.flags.writeable = False
    return out


def in_list_features(values_C: np.ndarray) -> np.ndarray:
    """Rank (ascending, as a share; ties share the lowest) and z-score of a value within its own list; missing → 0.5 and 0."""
    missing = np.isnan(values_C)
    if not missing.any():
        return _in_list(values_C)
    out = np.zeros((len(values_C), IN_LIST_WIDTH), np.float32)
    out[missing, 0] = 0.5
    out[~missing] = _in_list(values_C[~missing])
    return out


def _in_list(known: np.ndarray) -> np.ndarray:
    out = np.zeros((len(known), IN_LIST_WIDTH), np.float32)
    if len(known):
        out[:, 0] = np.sort(known).searchsorted(known) / max(len(known) - 1, 1)
        spread = known.std()
        if spread > 1e-6:
            out[:, 1] = np.minimum(np.maximum((known - known.mean()) / spread, -5), 5)
    return out


def sequence_features(candidate_ids: Sequence[Id], sequence: Sequence[Any] | None) -> np.ndarray:
    """Whether a candidate is in an id sequence (newest first), and 1 / (1 + its index there)."""
    out = np.zeros((len(candidate_ids), SEQUENCE_WIDTH), np.float32)
    if sequence is None or len(sequence) == 0:
        return out
    first: dict[Any, int] = {}
    for index, item in enumerate(sequence):
        first.setdefault(item, index)
    for c, item in enumerate(candidate_ids):
        if item in first:
            out[c] = 1.0, 1.0 / (1 + first[item])
    return out


def recent_event_features(
    candidate_ids: Sequence[Id], recent_events: Sequence[RecentEvent], types: Sequence[str], now_us: int
) -> np.ndarray:
    """How often and how recently the user just touched each candidate; (C, RECENT_WIDTH + 2 · types).

    Shared: touched at all · 1 / (1 + distinct items touched since) · log seconds since · signed log distance in prior
    rank to the candidate touched last · whether any candidate was touched. Per type: log count · touched last by this type.
    """
    C = len(candidate_ids)
    out = np.zeros((C, RECENT_WIDTH + RECENT_WIDTH_PER_TYPE * len(types)), np.float32)
    if not recent_events:
        return out
    index = {item: c for c, item in reversed(list(enumerate(candidate_ids)))}
    column = {name: RECENT_WIDTH + RECENT_WIDTH_PER_TYPE * i for i, name in enumerate(types)}
    since: dict[Id, int] = {}  # item → distinct items touched after it
    last_by_type: set[str] = set()
    last_candidate: int | None = None
    # Newest first; of the same moment the later in the list, as logs put the newest last.
    for event in sorted(recent_events, key=lambda e: e.timestamp_us)[::-1]:
        newest_touch = event.item_id not in since
        if newest_touch:
            since[event.item_id] = len(since)
        c = index.get(event.item_id)
        position = column.get(event.type)
        if c is not None:
            if newest_touch:
                age_s = max(now_us - event.timestamp_us, 0) / 1e6
                out[c, 0] = 1.0
                out[c, 1] = 1.0 / (1 + since[event.item_id])
                out[c, 2] = 1.0 - math.log1p(age_s) / math.log1p(DAY_S)
                if last_candidate is None:
                    last_candidate = c
            if position is not None:
                out[c, position] += 1.0
                if event.type not in last_by_type:
                    out[c, position + 1] = 1.0
        if position is not None:
            last_by_type.add(event.type)
    counts = out[:, RECENT_WIDTH::RECENT_WIDTH_PER_TYPE]
    out[:, RECENT_WIDTH::RECENT_WIDTH_PER_TYPE] = np.log1p(counts)
    if last_candidate is not None:
        distance = np.arange(C, dtype=np.float32) - np.float32(last_candidate)
        out[:, 3] = np.sign(distance) * np.log1p(np.abs(distance)) / np.float32(4)
        out[:, 4] = 1.0
    return out


def last_touched(candidate_ids: Sequence[Id], recent_events: Sequence[RecentEvent]) -> int | None:
    """The candidate the user touched last, by index; None when none was touched."""
    index = {item: c for c, item in reversed(list(enumerate(candidate_ids)))}
    for event in sorted(recent_events, key=lambda e: e.timestamp_us)[::-1]:
        if event.item_id in index:
            return index[event.item_id]
    return None


def near_last_features(C: int, last: int | None) -> np.ndarray:
    """1 / distance in prior rank to the candidate touched last, for those below it and for those above it.

    Beside the logarithm in `recent_event_features`: the next one down stands out, as it does for whoever reads a list.
    """
    out = np.zeros((C, NEAR_LAST_WIDTH), np.float32)
    if last is not None:
        out[last + 1 :, 0] = 1 / np.arange(1, C - last, dtype=np.float32)
        out[:last, 1] = 1 / np.arange(last, 0, -1, dtype=np.float32)
    return out


def value_to_last_features(in_list_C2: np.ndarray, last: int | None) -> np.ndarray:
    """How far a candidate's z-score within the list (from `in_list_features`) is from that of the one touched last: signed,
    and without sign."""
    out = np.zeros((len(in_list_C2), VALUE_TO_LAST_WIDTH), np.float32)
    if last is not None:
        out[:, 0] = in_list_C2[:, 1] - in_list_C2[last, 1]
        out[:, 1] = np.abs(out[:, 0])
    return out
