"""Drift figures against values known by hand or by construction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from crafted import Row, rich, rows, schema

from degre_prod.evaluation.drift import Column, Drift, feature_columns, independent_draws
from degre_prod.evaluation.drift import drift_report as report_of_columns
from degre_prod.rows import TrainingRow

NAN = float("nan")


def drift_report(
    before: dict[str, Sequence[Any] | np.ndarray], now: dict[str, Sequence[Any] | np.ndarray]
) -> list[Drift]:
    """Every value drawn by itself."""
    return report_of_columns(*({n: Column(v, len(v)) for n, v in of.items()} for of in (before, now)))


def training_rows(count: int) -> list[TrainingRow]:
    made: list[Row] = rows([4 + r % 3 for r in range(count)])
    nothing = np.zeros((2, 0), np.float32)
    return [TrainingRow(*row, shown_T=np.arange(0), feedback_OT=nothing, seen_T=None) for row in made]


def test_the_same_distribution_has_nearly_none() -> None:
    random = np.random.default_rng(0)
    (found,) = drift_report({"x": random.normal(size=5000)}, {"x": random.normal(size=5000)})
    assert found.psi < 0.01
    assert found.ks is not None
    assert found.ks < 0.04


def test_psi_of_two_categories_by_hand() -> None:
    (found,) = drift_report({"c": ["a"] * 50 + ["b"] * 50}, {"c": ["a"] * 80 + ["b"] * 20})
    assert found.psi == pytest.approx(-0.3 * math.log(0.5 / 0.8) + 0.3 * math.log(0.5 / 0.2))
    assert found.ks is None


def test_a_shifted_number_stands_out_and_comes_first() -> None:
    random = np.random.default_rng(1)
    same, moved = random.normal(size=4000), random.normal(size=4000)
    found = drift_report({"same": same, "moved": moved}, {"same": same, "moved": moved + 1.0})
    assert [d.feature for d in found] == ["moved", "same"]
    assert found[0].psi > 0.25
    assert found[0].ks == pytest.approx(0.38, abs=0.03)  # 2Φ(½) − 1
    assert (found[1].psi, found[1].ks) == (0.0, 0.0)


def test_missing_values_are_a_bin_of_their_own() -> None:
    values = np.linspace(0, 1, 1000)
    holes = np.where(np.arange(1000) % 2, values, NAN)
    (found,) = drift_report({"x": values}, {"x": holes})
    assert (found.missing_before, found.missing_now) == (0.0, 0.5)
    assert found.psi > 1.0
    assert found.ks < 0.01  # the values that are there have not moved


def test_a_new_category_and_an_emptied_feature() -> None:
    old = ["a"] * 90 + ["b"] * 10
    by_name = {
        d.feature: d for d in drift_report({"new": old, "gone": old}, {"new": ["z"] * 100, "gone": [None] * 100})
    }
    assert by_name["new"].psi > 5
    assert by_name["gone"].missing_now == 1.0


def test_a_constant_feature_does_not_divide_by_zero() -> None:
    (found,) = drift_report({"x": np.full(10, 2.0)}, {"x": np.full(10, 3.0)})
    assert math.isfinite(found.psi)
    assert found.ks == 1.0


@pytest.mark.parametrize(("n", "m"), [(50, 50), (60, 2000), (2000, 2000)])
def test_bounds_by_chance_are_hardly_ever_exceeded(n: int, m: int) -> None:
    random = np.random.default_rng(n)
    shares = 1 / np.arange(1, 31)
    exceeded, largest = 0, 0.0
    for _ in range(100):
        a, b = random.normal(size=n), random.normal(size=m)
        names = [random.choice(30, size, p=shares / shares.sum()).astype(str).tolist() for size in (n, m)]
        for found in drift_report({"x": b, "c": names[1]}, {"x": a, "c": names[0]}):
            exceeded += found.psi > found.psi_by_chance or (found.ks or 0.0) > found.ks_by_chance > 0
            largest = max(largest, found.psi)
    assert exceeded <= 3  # of 200
    assert largest > 0.3 * drift_report({"x": b}, {"x": a})[0].psi_by_chance  # or the bound says nothing


def test_a_rare_flag_that_vanishes_is_constant_and_one_that_is_too_rare_to_tell_is_not() -> None:
    flag = np.array([1.0] * 30 + [0.0] * 970)
    (found,) = drift_report({"x": flag}, {"x": np.zeros(1000)})
    assert found.psi < 0.5
    assert found.constant
    assert not drift_report({"x": flag}, {"x": np.zeros(100)})[0].constant
    assert not drift_report({"x": np.zeros(1000)}, {"x": np.zeros(1000)})[0].constant
    assert drift_report({"c": ["a"] * 900 + ["b"] * 100}, {"c": ["a"] * 1000})[0].constant


def test_every_kind_of_column_is_compared_by_name() -> None:
    columns = feature_columns(training_rows(12), schema(**rich()))
    assert set(columns) == {
        *("request.candidates", "request.recent_events", "user.taste[0]", "user.taste[1]", "user.age"),
        *("user.history (length)", "user.segment", "item.style[0]", "item.style[1]", "item.quality", "item.group"),
        *("context.hour", "context.device", "context.country", "scores.upstream", "candidate.discount"),
        "candidate.badge",
    }
    assert columns["request.candidates"].draws == 12
    assert len(columns["item.quality"].values) == len(columns["candidate.badge"].values) == 60
    assert np.isnan(np.asarray(columns["user.history (length)"].values, float)).sum() == 4
    assert all(d.psi == 0 for d in report_of_columns(columns, columns))


def test_values_of_one_entity_are_one_draw() -> None:
    assert independent_draws(["a"] * 5) == 1.0
    assert independent_draws(range(7)) == 7.0
    assert independent_draws([1, 1, 2]) == pytest.approx(9 / 5)
