"""One column, and one cross feature, at a time: what numbers, categories, ranks, sequences and recent events become."""

from __future__ import annotations

import math
from collections import Counter

import crafted
import numpy as np
import pytest
from helpers import small_schema

from degre_prod.encoding.columns import CLIP, fit_categorical, fit_numeric
from degre_prod.encoding.cross import in_list_features, recent_event_features, sequence_features
from degre_prod.encoding.fit import fit_encoder
from degre_prod.requests import FeatureColumns, RecentEvent, Request
from degre_prod.schema import Feature, FeatureTable

NAN = float("nan")
NOW = 1_767_225_600_000_000
S = 1_000_000


def f32(*values: float | None) -> np.ndarray:
    return np.array([NAN if v is None else v for v in values], np.float32)


# -- single columns ------------------------------------------------------------------------------------------------


def column(feature: Feature, training: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What a user's numeric column becomes, (R, width), fitted on the training values; checks `absent` and cuts it off."""
    schema = small_schema("int64", user=FeatureTable(features=(feature,)), item=FeatureTable(features=()))
    request, no_items = Request("r", 1, NOW, [1]), FeatureColumns({}, 1)

    def row(value: np.ndarray) -> crafted.Row:
        return request, FeatureColumns({feature.name: value[None]}, 1), no_items

    encoder = fit_encoder(schema, [row(v) for v in training])
    encoded = np.stack([encoder.encode(*row(v))["user_num_F"] for v in values])
    assert encoded.dtype == np.float32
    np.testing.assert_array_equal(encoded[:, -1], np.isnan(values.reshape(len(values), -1)).all(1))
    return encoded[:, :-1]


NUMBER = Feature(name="x", kind="numeric")


def test_numbers_are_standardised_over_the_rows_that_have_one() -> None:
    sd = np.std([1, 3, 5])
    out = column(NUMBER, f32(1, 3, None, 5), f32(3, None, 3 + sd, 1e9, -1e9))
    np.testing.assert_allclose(out, [[0, 0], [0, 1], [1, 0], [CLIP, 0], [-CLIP, 0]], atol=1e-6)


def test_without_missing_values_in_training_there_is_no_flag_and_missing_is_the_mean() -> None:
    np.testing.assert_array_equal(column(NUMBER, f32(1, 3), f32(None, 2)), [[0], [0]])


def test_log1p_is_signed_and_before_the_statistics() -> None:
    logs = np.log1p([0, 10, 1000])
    out = column(Feature(name="x", kind="numeric", transform="log1p"), f32(0, 10, 1000), f32(50, -50))
    expected = (np.array([math.log1p(50), -math.log1p(50)]) - logs.mean()) / logs.std()
    np.testing.assert_allclose(out[:, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("training", [f32(7, 7, 7), f32(None, None)])
def test_a_constant_and_an_absent_column_stay_finite(training: np.ndarray) -> None:
    assert fit_numeric("x", training).scale == (1.0,)
    out = column(NUMBER, training, f32(7, None, -3))
    assert np.isfinite(out).all()
    assert out[1, 0] == 0
    assert out[0, 0] > out[2, 0]


def test_a_vector_is_missing_as_a_whole() -> None:
    vector = Feature(name="v", kind="vector", size=2)
    training = np.array([[0, 2], [2, 4], [NAN, NAN]], np.float32)
    out = column(vector, training, np.array([[2, 4], [NAN, NAN], [5, NAN]], np.float32))
    np.testing.assert_allclose(out, [[1, 1, 0], [0, 0, 1], [0, 0, 1]])


def test_categories_rare_ones_share_the_unknown_index() -> None:
    column = fit_categorical("g", Counter({"b": 9, "a": 9, "c": 5, "rare": 4}))
    assert column.vocabulary == ("a", "b", "c")  # by frequency, then by name
    assert column.lookup() == {"a": 2, "b": 3, "c": 4}
    assert column.cardinality == 5
    assert fit_categorical("g", Counter({str(i): 9 for i in range(30)}), max_size=4).cardinality == 6


# -- cross features ------------------------------------------------------------------------------------------------


def test_ranks_in_the_list_are_shares_and_ties_share_the_lowest() -> None:
    out = in_list_features(f32(3, 1, 1, None, 9))
    np.testing.assert_allclose(out[:, 0], [2 / 3, 0, 0, 0.5, 1])
    known = np.array([3, 1, 1, 9], np.float32)
    np.testing.assert_allclose(out[[0, 1, 2, 4], 1], (known - known.mean()) / known.std(), rtol=1e-5)
    assert out[3, 1] == 0


@pytest.mark.parametrize("values", [f32(2), f32(2, 2), f32(None, None), f32(4, None)])
def test_ranks_of_degenerate_lists_are_finite(values: np.ndarray) -> None:
    out = in_list_features(values)
    assert out.dtype == np.float32
    assert (out[:, 1] == 0).all()
    np.testing.assert_array_equal(out[:, 0], np.where(np.isnan(values), 0.5, 0))


def test_an_id_sequence_says_whether_and_how_recently() -> None:
    out = sequence_features([5, 6, 7], [7, 9, 5, 7])
    np.testing.assert_allclose(out, [[1, 1 / 3], [0, 0], [1, 1]])
    for nothing in (None, []):
        assert not sequence_features([5, 6], nothing).any()


def event(item: int, kind: str, seconds_ago: float) -> RecentEvent:
    return RecentEvent(item, kind, NOW - round(seconds_ago * S))


def test_recent_events_count_and_name_the_last_touch() -> None:
    events = [event(1, "click", 90), event(2, "save", 60), event(1, "click", 30), event(99, "click", 10)]
    out = recent_event_features([1, 2, 3], events, ["click", "save"], NOW)
    assert out.shape == (3, 9)
    np.testing.assert_array_equal(out[:, 0], [1, 1, 0])  # touched
    np.testing.assert_allclose(out[:, 1], [1 / 2, 1 / 3, 0])  # 99 was touched since, then 1
    day = math.log1p(86400)
    np.testing.assert_allclose(out[:, 2], [1 - math.log1p(30) / day, 1 - math.log1p(60) / day, 0], rtol=1e-5)
    np.testing.assert_allclose(out[:, 3], [0, math.log1p(1) / 4, math.log1p(2) / 4], rtol=1e-5)  # from candidate 1
    np.testing.assert_array_equal(out[:, 4], 1)
    np.testing.assert_allclose(out[:, 5], [math.log1p(2), 0, 0], rtol=1e-5)  # clicks
    np.testing.assert_array_equal(out[:, 6], 0)  # the last click was elsewhere
    np.testing.assert_allclose(out[:, 7], [0, math.log1p(1), 0], rtol=1e-5)  # saves
    np.testing.assert_array_equal(out[:, 8], [0, 1, 0])


def test_the_order_of_events_in_the_request_matters_only_at_the_same_moment() -> None:
    events = [event(1, "click", 30), event(2, "click", 20), event(3, "save", 10)]
    features = [recent_event_features([1, 2, 3], e, ["click", "save"], NOW) for e in (events, events[::-1])]
    np.testing.assert_array_equal(*features)
    together = [event(1, "click", 10), event(2, "click", 10)]  # the newest comes last
    out = recent_event_features([1, 2], together, ["click"], NOW)
    np.testing.assert_allclose(out[:, 1], [1 / 2, 1])
    np.testing.assert_array_equal(out[:, 6], [0, 1])


def test_time_is_that_of_the_request() -> None:
    events = [event(1, "click", 30)]
    later = recent_event_features([1], events, ["click"], NOW + 3600 * S)
    assert later[0, 2] < recent_event_features([1], events, ["click"], NOW)[0, 2]
    np.testing.assert_array_equal(
        later, recent_event_features([1], [event(1, "click", -3570)], ["click"], NOW + 7200 * S)
    )


def test_unknown_types_and_other_items_touch_no_candidate() -> None:
    assert not recent_event_features([1], [], ["click"], NOW).any()
    assert not recent_event_features([1], [event(5, "click", 3)], ["click"], NOW).any()
    strange = recent_event_features([1], [event(1, "gaze", 3)], ["click"], NOW)
    assert strange[0, 0] == 1
    assert not strange[0, 5:].any()
