"""Exploration changes the promised share of slots, and its propensities are true probabilities."""

from __future__ import annotations

import random
from collections import Counter
from itertools import permutations
from math import prod

import pytest

from serving.exploration import explore


def test_without_a_share_nothing_changes() -> None:
    found = explore([2, 0, 1], 5, 0.0, random.Random(0))
    assert found.order == [2, 0, 1]
    assert found.propensity == [1.0, 1.0, 1.0]
    assert not found.changed


def test_every_list_has_the_propensity_it_is_drawn_with() -> None:
    order, count, share, draws = [1, 3], 4, 0.5, 40_000
    chance = random.Random(0)
    found = [explore(order, count, share, chance) for _ in range(draws)]
    seen = Counter(tuple(f.order) for f in found)
    propensity = {tuple(f.order): prod(f.propensity) for f in found}
    assert set(seen) == set(permutations(range(count), 2))  # full support
    assert sum(propensity.values()) == pytest.approx(1.0)
    for chosen, times in seen.items():
        expected = propensity[chosen]
        assert abs(times / draws - expected) < 4 * (expected * (1 - expected) / draws) ** 0.5


def test_the_share_of_changed_slots_is_what_was_asked() -> None:
    order, count, share = list(range(4)), 20, 0.1
    chance = random.Random(1)
    drawn = [explore(order, count, share, chance) for _ in range(5000)]
    first_slot = sum(d.order[0] != 0 for d in drawn) / len(drawn)
    assert first_slot == pytest.approx(share * (1 - 1 / count), abs=0.015)
    assert all(len(set(d.order)) == 4 for d in drawn)
    assert all(d.changed == (d.order != order) for d in drawn)
