"""The best candidates that may come next, without asking about all of them: what a greedy pass over one request needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from degre_prod.constraints.mask import feasible_next
from degre_prod.constraints.rules import Rules

CHUNK = 8  # asked about at once: one costs nearly as much; many take memory where the search has to go wide


def leading_feasible(rules: Rules, prefix: Sequence[int] | np.ndarray, ranking: np.ndarray, count: int) -> list[int]:
    """The first `count` of `ranking` (candidates of one request, best first) that `feasible_next` leaves after a prefix.

    Fewer where there are no more.
    """
    before = np.asarray(prefix, np.int64).reshape(1, 1, -1)
    pin = rules.pinned_BL[0, before.shape[2]]
    ranking = ranking[ranking == pin] if pin >= 0 else ranking[rules.allowed_BC[0, ranking]]
    found: list[int] = []
    for at in range(0, len(ranking), CHUNK):
        chunk = ranking[at : at + CHUNK]
        among = np.zeros((1, 1, rules.allowed_BC.shape[1]), bool)
        among[0, 0, chunk] = True
        mask = feasible_next(rules, before, among)[0, 0]
        found += chunk[mask[chunk]].tolist()
        if len(found) >= count:
            break
    return found[:count]


def feasible(rules: Rules) -> bool:
    """Whether a list that obeys the rules of one request is found."""
    if by_item_alone(rules):
        return int(rules.allowed_BC[0].sum()) >= rules.length
    return bool(leading_feasible(rules, (), np.arange(rules.allowed_BC.shape[1]), 1))


def by_item_alone(rules: Rules) -> bool:
    """Whether the rules say nothing but which candidates may be chosen, whatever was chosen before."""
    return (
        rules.max_BQ.shape[1] == 0
        and (rules.gap_slots == 1 or not (rules.gap_group_BC >= 0).any())
        and not rules.must_BC.any()
        and not (rules.pinned_BL >= 0).any()
    )
