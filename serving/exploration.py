"""Exploration: a small share of slots gets a random item instead of the generator's, with known propensity.

At each slot, with probability `share`, the item there changes places with one drawn uniformly from the slot and all
candidates not yet placed. Given the items before it, the item of slot t therefore had the chance

    (1 − share)·1[it is the one the generator's list has there] + share / (n − t)

(t from 0, n candidates), which is above 0 for every candidate: logs of such lists support off-policy estimates.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from degre_prod.requests import Id
from serving.protocol import RankedItem, RerankResponse


@dataclass(frozen=True, slots=True)
class Explored:
    """A list of L candidate indices, the propensity of each item given those before it, and whether any slot changed."""

    order: list[int]
    propensity: list[float]
    changed: bool


def explore(order: Sequence[int], count: int, share: float, chance: random.Random) -> Explored:
    """Perhaps another list than `order` (L distinct indices below `count`)."""
    listed = set(order)
    line = [*order, *(c for c in range(count) if c not in listed)]
    propensity = []
    for t in range(len(order)):
        planned = line[t]
        if chance.random() < share:
            other = chance.randrange(t, count)
            line[t], line[other] = line[other], line[t]
        propensity.append((1 - share) * (line[t] == planned) + share / (count - t))
    chosen = line[: len(order)]
    return Explored(chosen, propensity, chosen != list(order))


def explored_response(
    response: RerankResponse, candidate_ids: Sequence[Id], share: float, chance: random.Random
) -> tuple[RerankResponse, list[float]]:
    """The answer to send instead, and the propensity of each of its items."""
    place = {item: index for index, item in enumerate(candidate_ids)}
    explored = explore([place[item] for item in response.ids()], len(candidate_ids), share, chance)
    if not explored.changed:
        return response, explored.propensity
    items = [RankedItem(id=candidate_ids[c], position=t) for t, c in enumerate(explored.order)]
    return response.model_copy(update={"items": items}), explored.propensity
