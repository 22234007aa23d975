"""Requests against a bundle's schema: what is refused, what is mended and flagged."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_fakes import NOW_US, fake_schema

from serving.clock import fixed_clock, from_us, to_us
from serving.preparation import Prepared, _errors, _plainly_right, check_feedback, prepare
from serving.problems import Problem
from serving.protocol import FeedbackRequest, RerankRequest


def prepared(mode: Literal["wall", "request"] = "wall", **fields: Any) -> Prepared:
    document = {"user_id": 1, "candidates": [{"id": i} for i in (5, 3, 4)]} | fields
    return prepare(RerankRequest.model_validate(document), fake_schema(), fixed_clock(NOW_US), mode)


def refused(**fields: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        prepared(**fields)
    return caught.value


def event(item: Any, us: int, kind: str = "click") -> dict[str, Any]:
    return {"item_id": item, "type": kind, "timestamp": from_us(us)}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"user_id": "1"}, "user_id"),
        ({"candidates": [{"id": 1}, {"id": "2"}]}, "candidates[1].id"),
        ({"candidates": [{"id": 1, "scores": {"upstraem": 1.0}}]}, "candidates[0].scores.upstraem"),
        ({"candidates": [{"id": 1, "features": {"discount": "much"}}]}, "candidates[0].features.discount"),
        ({"candidates": [{"id": 1, "features": {"badge": 1.0}}]}, "candidates[0].features.badge"),
        ({"candidates": [{"id": 1, "features": {"price": 1.0}}]}, "candidates[0].features.price"),
        ({"context": {"minute": 1.0}}, "context.minute"),
        ({"context": {"hour": "noon"}}, "context.hour"),
        ({"recent_events": [event("7", NOW_US - 1)]}, "recent_events[0].item_id"),
        ({"event_timestamp": datetime(2026, 1, 1, tzinfo=UTC)}, "event_timestamp"),
    ],
)
def test_what_the_schema_does_not_know_is_a_422_naming_the_field(fields: dict[str, Any], field: str) -> None:
    problem = refused(**fields)
    assert (problem.status, [e.field for e in problem.errors]) == (422, [field])


def test_more_candidates_than_the_bundle_takes_is_a_413_naming_the_maximum() -> None:
    problem = refused(candidates=[{"id": i} for i in range(7)])
    assert problem.status == 413
    assert "at most 6" in problem.detail


def test_all_of_the_maximum_is_taken() -> None:
    assert len(prepared(candidates=[{"id": i} for i in range(6)]).request.candidate_ids) == 6


def test_duplicates_keep_the_first_occurrence_and_its_place() -> None:
    given = [(5, 0.1), (3, 0.2), (5, 0.9), (4, 0.3), (3, 0.8)]
    out = prepared(candidates=[{"id": i, "scores": {"upstream": s}} for i, s in given])
    assert list(out.request.candidate_ids) == [5, 3, 4]
    assert out.request.scores == {"upstream": [0.1, 0.2, 0.3]}
    assert out.flags == ("duplicate_candidates",)


@pytest.mark.parametrize(
    ("count", "length", "due", "flags"),
    [
        (5, None, 3, ()),  # the bundle's list length
        (2, None, 2, ()),  # few candidates are no surprise
        (1, None, 1, ()),
        (5, 2, 2, ()),
        (5, 3, 3, ()),
        (5, 4, 3, ("length_cut",)),  # longer than the bundle's lists
        (2, 3, 2, ("length_cut",)),  # longer than the candidates
    ],
)
def test_length(count: int, length: int | None, due: int, flags: tuple[str, ...]) -> None:
    out = prepared(candidates=[{"id": i} for i in range(count)], length=length)
    assert (out.length, out.flags) == (due, flags)


def test_columns_are_aligned_with_the_candidates_and_absent_values_are_missing() -> None:
    out = prepared(candidates=[{"id": 1, "features": {"discount": 0.5}}, {"id": 2, "features": {"badge": "new"}}])
    assert out.request.candidate_features == {"discount": [0.5, None], "badge": [None, "new"]}


def test_events_after_the_request_are_left_out_and_flagged() -> None:
    out = prepared(recent_events=[event(1, NOW_US - 5), event(2, NOW_US + 1), event(3, NOW_US - 1, "hover")])
    assert [(e.item_id, e.timestamp_us) for e in out.request.recent_events] == [(1, NOW_US - 5), (3, NOW_US - 1)]
    assert out.flags == ("future_events:1", "unknown_event_types:1")


def test_the_clock_gives_the_time_unless_the_request_may() -> None:
    moment = datetime(2025, 6, 1, 12, 0, 0, 123_457, tzinfo=UTC)
    assert prepared().request.event_timestamp_us == NOW_US
    assert prepared("request", event_timestamp=moment).request.event_timestamp_us == to_us(moment)
    assert from_us(to_us(moment)) == moment


def test_a_request_without_id_gets_one() -> None:
    assert prepared().request.request_id != prepared().request.request_id
    assert prepared(request_id="mine").request.request_id == "mine"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "events"),
        ({"shown_ids": [1, "2"]}, "shown_ids[1]"),
        ({"shown_ids": [1, 1]}, "shown_ids"),
        ({"events": [("e", "1", "click")]}, "events[0].id"),
        ({"events": [("e", 1, "clik")]}, "events[0].type"),
    ],
)
def test_feedback_that_could_never_be_joined_is_refused(fields: dict[str, Any], field: str) -> None:
    events = [{"event_id": e, "id": i, "type": t, "timestamp": from_us(NOW_US)} for e, i, t in fields.get("events", [])]
    feedback = FeedbackRequest.model_validate({"request_id": "r"} | fields | {"events": events})
    with pytest.raises(Problem) as caught:
        check_feedback(feedback, fake_schema())
    assert [e.field for e in caught.value.errors] == [field]


def test_showing_alone_is_feedback() -> None:
    check_feedback(FeedbackRequest(request_id="r", shown_ids=[1, 2]), fake_schema())


_VALUES = st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(["new", "desk"])
_NAMES = st.sampled_from(["upstream", "second", "discount", "badge", "hour", "device", "strange"])


@given(
    ids=st.lists(st.integers(0, 9) | st.sampled_from(["a"]), min_size=2, max_size=4),
    scores=st.dictionaries(_NAMES, st.none() | st.floats(0, 1), max_size=2),
    features=st.dictionaries(_NAMES, _VALUES, max_size=2),
    context=st.dictionaries(_NAMES, _VALUES, max_size=2),
)
def test_the_quick_check_agrees_with_the_thorough_one(
    ids: list[Any], scores: dict[str, Any], features: dict[str, Any], context: dict[str, Any]
) -> None:
    candidates = [{"id": i} for i in ids[1:]]
    candidates[0] |= {"scores": scores, "features": features}
    received = RerankRequest.model_validate({"user_id": ids[0], "candidates": candidates, "context": context})
    assert _plainly_right(received, fake_schema()) == (not list(_errors(received, fake_schema())))
