"""Cross features that relate candidates to the one touched last, and encoders from before there were any."""

from __future__ import annotations

import crafted
import numpy as np
import pytest
from crafted import N

from degre_prod.encoding import cross
from degre_prod.encoding.encoder import Encoder
from degre_prod.encoding.fit import fit_encoder
from degre_prod.requests import RecentEvent


def test_the_candidate_touched_last_is_the_newest_of_those_in_the_list() -> None:
    events = [RecentEvent("b", "click", 5), RecentEvent("a", "click", 7), RecentEvent("gone", "click", 9)]
    assert cross.last_touched(["x", "a", "b"], events) == 1
    assert cross.last_touched(["x", "a", "b"], events[::-1]) == 1  # by time, not by place
    assert cross.last_touched(["x", "b"], events) == 1
    assert cross.last_touched(["x"], events) is None
    assert cross.last_touched(["x"], []) is None
    assert cross.last_touched(["a", "b"], [RecentEvent(i, "click", 5) for i in "ab"]) == 1  # of a moment the later one


@pytest.mark.parametrize("last", [0, 2, 4])
def test_nearness_is_one_over_the_distance_on_either_side(last: int) -> None:
    near = cross.near_last_features(5, last)
    for c in range(5):
        below, above = (1 / (c - last) if c > last else 0.0), (1 / (last - c) if c < last else 0.0)
        assert near[c].tolist() == pytest.approx([below, above])
    assert not cross.near_last_features(5, None).any()


def test_values_are_compared_with_that_of_the_candidate_touched_last() -> None:
    prices = np.array([10, 20, np.nan, 40], np.float32)
    within = cross.in_list_features(prices)
    to_last = cross.value_to_last_features(within, 1)
    spread = np.array([10, 20, 40]).std()
    assert to_last[[0, 1, 3], 0].tolist() == pytest.approx([-10 / spread, 0, 20 / spread], abs=1e-6)
    assert to_last[2, 0] == pytest.approx(-within[1, 1])  # a missing value counts as the list's mean
    np.testing.assert_array_equal(to_last[:, 1], np.abs(to_last[:, 0]))
    assert not cross.value_to_last_features(within, None).any()


@pytest.mark.parametrize(("events", "more"), [(("click", "save"), 2 + 2 * 2), ((), 0)])
def test_an_encoder_of_format_1_gives_the_arrays_of_its_time(events: tuple[str, ...], more: int) -> None:
    rows = crafted.rows((N, 3, 1), seed=2)
    encoder = fit_encoder(crafted.schema(**crafted.rich(recent_event_types=events)), rows)
    before = Encoder(encoder.spec.model_copy(update={"format_version": 1}))
    assert encoder.spec.format_version == 2
    widths = encoder.layout().num["prior"], before.layout().num["prior"]
    assert widths[0] - widths[1] == more
    for row in rows:
        now, then = encoder.encode(*row), before.encode(*row)
        assert now["prior_num_CF"].shape[1] == widths[0]
        np.testing.assert_array_equal(now["prior_num_CF"][:, : widths[1]], then["prior_num_CF"])
