"""The axes of the quality benchmark's plots."""

from __future__ import annotations

import pytest

from orchestration.bench.quality_plot import bands


def test_values_far_below_the_others_get_a_part_of_the_axis_of_their_own() -> None:
    (upper, lower) = bands([0.86, 0.43, 0.85, 0.46, 0.855])
    assert upper == pytest.approx((0.847, 0.863))
    assert lower == pytest.approx((0.425, 0.465))


def test_values_close_to_each_other_share_one_axis() -> None:
    assert bands([0.7, 0.8, 0.75]) == [pytest.approx((0.688, 0.812))]
