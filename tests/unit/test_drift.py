"""Drift figures against values known by hand or by construction."""

from __future__ import annotations

import math

import numpy as np
import pytest

from degre_prod.evaluation.drift import drift_report

NAN = float("nan")


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
    (found,) = drift_report({"x": [2.0] * 10}, {"x": [3.0] * 10})
    assert math.isfinite(found.psi)
    assert found.ks == 1.0
