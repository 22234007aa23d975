"""Chances under exploration: those the service really has, the share they tell of, and how far a log reaches."""

from __future__ import annotations

import random
from collections import Counter
from itertools import permutations

import numpy as np
import pytest

from degre_prod.evaluation.explored import explored_chances, explored_share, reach
from serving.exploration import explore

PLAN, N, SHARE = [2, 0, 4], 5, 0.3


def chances(plan: list[int], wanted: np.ndarray, candidates: int = N, share: float = SHARE) -> np.ndarray:
    rows = len(wanted)
    return explored_chances(np.tile(plan, (rows, 1)), wanted, np.full(rows, candidates), np.full(rows, share))


def test_chances_are_those_of_the_lists_that_exploration_makes() -> None:
    every = np.array(list(permutations(range(N), 3)))
    expected = chances(PLAN, every).prod(1)
    assert expected.sum() == pytest.approx(1.0)
    chance = random.Random(0)
    drawn = Counter(tuple(explore(PLAN, N, SHARE, chance).order) for _ in range(20_000))
    np.testing.assert_allclose([drawn[tuple(x)] / 20_000 for x in every.tolist()], expected, atol=0.012)


def test_a_logged_propensity_is_the_chance_of_what_was_shown_and_tells_the_share() -> None:
    chance = random.Random(1)
    for _ in range(200):
        share = chance.choice([0.01, 0.05, 0.2])
        explored = explore(PLAN, N, share, chance)
        logged = np.array(explored.propensity, np.float32).astype(float)
        found = chances(PLAN, np.array([explored.order]), share=share)[0]
        np.testing.assert_allclose(found, logged, rtol=1e-6)
        assert explored_share(logged, N) == pytest.approx(share, rel=1e-4)
    assert np.isnan(explored_share(np.array([1.0]), 1))


def test_short_lists_and_requests_of_several_sizes() -> None:
    plans, wanted = np.array([[1, 0, -1], [0, 1, 2]]), np.array([[0, 1, -1], [0, 1, 2]])
    found = explored_chances(plans, wanted, np.array([2, 6]), np.array([0.2, 0.2]))
    np.testing.assert_allclose(found[0], [0.1, 0.8 + 0.2, 1.0])
    np.testing.assert_allclose(found[1], [0.8 + 0.2 / 6, 0.8 + 0.2 / 5, 0.8 + 0.2 / 4])


def test_reach_counts_what_has_left_no_trace() -> None:
    same, differs = np.ones((100, 1), bool), np.zeros((100, 1), bool)
    differs[:50] = True
    half = np.full((100, 1), 0.5)
    assert reach(half, half, same) == pytest.approx(200**2 / (100 * 4))
    assert reach(half, half, differs) == pytest.approx(100**2 / (50 * 4))
    rare = half.copy()
    rare[0] = 1e-6  # one request whose list is hardly ever possible
    assert reach(rare, half, differs) < 0.02
    assert reach(half, half, np.zeros((100, 1), bool)) == 0.0
