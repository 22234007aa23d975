"""Measures of predicted values and of lists among all lists, against formulas worked out by hand."""

from __future__ import annotations

from itertools import permutations
from math import log2

import numpy as np
import pytest
from scipy.stats import spearmanr

from degre_prod.evaluation.enumeration import all_values, random_lists, true_increments
from degre_prod.evaluation.ranking import (
    better_shares,
    calibration_error,
    hit_rate,
    logged_ndcg,
    paired_bootstrap,
    regret,
    rmse_over_pooled_sd,
    rmse_over_sd,
    spearman_by_request,
)
from degre_prod.worlds.reference import reference_values
from degre_prod.worlds.simulate import draw_log
from degre_prod.worlds.truth import make_world


def test_spearman_is_scipys_row_by_row_ties_included() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, (6, 12)).astype(float), rng.normal(size=(6, 12))
    expected = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(spearman_by_request(a, b), expected)
    assert np.isnan(spearman_by_request(np.ones((1, 4)), b[:1, :4])).all()


def test_rmse_over_sd_is_one_for_the_request_mean_and_counts_a_shift() -> None:
    truth = np.array([[1.0, 3.0], [10.0, 14.0]])
    assert rmse_over_sd(np.array([[2.0, 2.0], [12.0, 12.0]]), truth) == pytest.approx(1.0)
    assert rmse_over_sd(truth + 2.5**0.5, truth) == pytest.approx(1.0)
    assert rmse_over_sd(truth, truth) == 0
    assert rmse_over_pooled_sd(np.full((2, 2), 7.0), truth) == pytest.approx(1.0)


def test_calibration_error_by_hand() -> None:
    predicted = np.array([0.1, 0.2, 0.8, 0.9])
    outcome = np.array([0.0, 1.0, 1.0, 1.0])
    assert calibration_error(predicted, outcome, bins=2) == pytest.approx((abs(0.15 - 0.5) + abs(0.85 - 1)) / 2)
    assert calibration_error(predicted[::-1], outcome[::-1], bins=1) == pytest.approx(0.25)


def test_hit_rate_and_regret_by_hand() -> None:
    every = np.array([[1.0, 2.0, 3.0, 4.0]] * 3)
    better = better_shares(np.array([4.0, 3.0, 1.0]), every)
    assert better.tolist() == [0.0, 0.25, 0.75]
    assert hit_rate(better, 0.01) == pytest.approx(1 / 3)
    assert hit_rate(better, 0.5) == pytest.approx(2 / 3)
    assert regret(np.array([4.0, 3.0, 1.0]), np.full(3, 4.0)) == pytest.approx(1 / 3)


def test_logged_ndcg_by_hand() -> None:
    clicked = np.array([[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    lists = np.array([[3, 0, 1], [0, 1, 2], [2, 0, -1]])
    got = logged_ndcg(lists, clicked)
    assert got[0] == pytest.approx((1 + 1 / log2(4)) / (1 + 1 / log2(3)))
    assert np.isnan(got[1])
    assert got[2] == pytest.approx(1 / log2(3))


def test_bootstrap_pairs_its_draws_and_covers_the_mean() -> None:
    rng = np.random.default_rng(1)
    common = rng.normal(size=(2, 400))
    values = {"a": common, "b": common + 0.1, "difference": np.full((2, 400), 0.1)}
    got = paired_bootstrap(values, draws=400)
    assert got["a"].mean == pytest.approx(common.mean())
    assert got["b"].low - got["a"].low == pytest.approx(0.1)
    assert (got["difference"].low, got["difference"].high) == (pytest.approx(0.1), pytest.approx(0.1))
    half = (got["a"].high - got["a"].low) / 2
    assert half == pytest.approx(1.96 / 800**0.5, rel=0.3)


def test_bootstrap_draws_seeds_too() -> None:
    rng = np.random.default_rng(1)
    noise = 0.01 * rng.normal(size=(4, 200))
    apart = noise + np.array([-1.0, 0.0, 0.0, 1.0])[:, None]
    got = paired_bootstrap({"alike": noise, "apart": apart, "shift": np.full((4, 200), 0.2)}, draws=600)
    assert got["alike"].high - got["alike"].low < 0.01
    half = (got["apart"].high - got["apart"].low) / 2
    assert half == pytest.approx(1.96 * 0.5**0.5 / 4**0.5, rel=0.2)  # the seeds' own spread over √4
    assert got["shift"].low == pytest.approx(got["shift"].high)
    one = paired_bootstrap({"apart": apart[:1]}, draws=400)["apart"]
    assert one.high - one.low == pytest.approx(2 * 1.96 * 0.01 / 200**0.5, rel=0.3)  # requests alone


def test_all_values_hold_every_list_and_the_optimum() -> None:
    world = make_world("mixed", "small", 1)
    log = draw_log(world, 20, np.random.default_rng(0))
    every = all_values(world, log.user_ids_B, log.candidate_ids_BC)
    best, lists = reference_values(world, log.user_ids_B, log.candidate_ids_BC)
    assert every.shape == (20, 8 * 7 * 6 * 5)
    np.testing.assert_allclose(every.max(1), best)
    position = {order: x for x, order in enumerate(permutations(range(8), 4))}
    at = [position[tuple(row)] for row in lists.tolist()]
    np.testing.assert_allclose(every[np.arange(20), at], best)


def test_increments_add_up_to_the_lists_value() -> None:
    world = make_world("exit", "small", 1)
    log = draw_log(world, 20, np.random.default_rng(0))
    lists = random_lists(20, 8, 4, 5, seed=0)
    assert all(len(set(row)) == 4 for row in lists.reshape(-1, 4).tolist())
    steps = true_increments(world, log.user_ids_B, log.candidate_ids_BC, lists)
    values = world.true_values(log.user_ids_B, log.candidate_ids_BC, lists)
    np.testing.assert_allclose(steps.sum(2), values)
    assert (steps > 0).all()
