"""The list when the generator cannot answer: greedy on the upstream score, else the upstream order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

FallbackSource = Literal["fallback_score", "fallback_order"]


def fallback_order(
    count: int, length: int, scores: Mapping[str, Sequence[float | None]], score_names: Iterable[str]
) -> tuple[list[int], FallbackSource]:
    """Candidate indices (length,) by the first of `score_names` the request carries, else in upstream order.

    Higher scores first, missing ones last, ties by prior rank (= index).
    """
    for name in score_names:
        column = scores.get(name)
        if column is not None and any(v is not None and not math.isnan(v) for v in column):
            keys = [math.inf if v is None or math.isnan(v) else -v for v in column]
            return sorted(range(count), key=keys.__getitem__)[:length], "fallback_score"
    return list(range(min(count, length))), "fallback_order"
