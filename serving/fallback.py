"""The list when the generator cannot answer: greedy on the upstream score, else the upstream order, within the rules."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from degre_prod.constraints.greedy import leading_feasible
from degre_prod.constraints.rules import Rules
from degre_prod.errors import ConstraintError

FallbackSource = Literal["fallback_score", "fallback_order"]


def fallback_order(
    count: int,
    length: int,
    scores: Mapping[str, Sequence[float | None]],
    score_names: Iterable[str],
    rules: Rules | None = None,
) -> tuple[list[int], FallbackSource]:
    """Candidate indices (length,) by the first of `score_names` the request carries, else in upstream order.

    Higher scores first, missing ones last, ties by prior rank (= index). With `rules`, whose length counts then: the first
    in this order that may stand in each slot.
    """
    ranking, source = _ranking(count, scores, score_names)
    return (ranking[:length] if rules is None else first_feasible(rules, ranking)), source


def first_feasible(rules: Rules, ranking: Sequence[int]) -> list[int]:
    """Slot by slot the first of `ranking` (every candidate once) that the mask leaves; raises ConstraintError if none is."""
    order = np.array(ranking)
    chosen: list[int] = []
    for slot in range(rules.length):
        found = leading_feasible(rules, chosen, order, 1)
        if not found:
            raise ConstraintError(f"no candidate may stand in slot {slot}")
        chosen += found
    return chosen


def _ranking(
    count: int, scores: Mapping[str, Sequence[float | None]], score_names: Iterable[str]
) -> tuple[list[int], FallbackSource]:
    for name in score_names:
        column = scores.get(name)
        if column is not None and any(v is not None and not math.isnan(v) for v in column):
            keys = [math.inf if v is None or math.isnan(v) else -v for v in column]
            return sorted(range(count), key=keys.__getitem__), "fallback_score"
    return list(range(count)), "fallback_order"
