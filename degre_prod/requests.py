"""A reranking request and the feature columns that go with it: what the encoder reads, offline and online alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Id = int | str


@dataclass(frozen=True, slots=True)
class RecentEvent:
    """Something the user just did with an item, strictly before the request. `timestamp_us`: µs since 1970 UTC."""

    item_id: Id
    type: str
    timestamp_us: int


@dataclass(frozen=True, slots=True)
class Request:
    """One request with C candidates in upstream order (prior rank = index).

    `event_timestamp_us` is the request's own time (µs since 1970 UTC), from an injected clock, never from the wall.
    `scores` and `candidate_features` map a name to C values; None or NaN is missing.
    """

    request_id: str
    user_id: Id
    event_timestamp_us: int
    candidate_ids: Sequence[Id]
    context: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    candidate_features: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    recent_events: Sequence[RecentEvent] = ()


@dataclass(frozen=True, slots=True)
class FeatureColumns:
    """Feature values of R entities, one entry a declared feature.

    numeric: float32 (R,), NaN = missing · vector: float32 (R, S), NaN row = missing · categorical: list of R str | None ·
    id_sequence: list of R (list of ids | None). Unknown and stale entities have every value missing.
    """

    values: Mapping[str, np.ndarray | list[Any]]
    rows: int
