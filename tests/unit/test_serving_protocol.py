"""Requests over HTTP: strict fields, and errors that name them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from serving.problems import Problem, field_path, from_validation
from serving.protocol import FeedbackRequest, RerankRequest

GOOD: dict[str, Any] = {"user_id": 1, "candidates": [{"id": 2, "scores": {"upstream": 0.5}}]}


def problem_of(document: dict[str, Any] | str) -> Problem:
    text = document if isinstance(document, str) else json.dumps(document)
    with pytest.raises(ValidationError) as caught:
        RerankRequest.model_validate_json(text)
    return from_validation(caught.value, RerankRequest)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"user_id": None}, "user_id"),
        ({"user_id": True}, "user_id"),
        ({"user_id": 1.5}, "user_id"),
        ({"user_id": 2**63}, "user_id"),
        ({"user_id": ""}, "user_id"),
        ({"candidates": []}, "candidates"),
        ({"candidates": [{"id": None}]}, "candidates[0].id"),
        ({"candidates": [{"id": 1}, {"scores": {}}]}, "candidates[1].id"),
        ({"candidates": [{"id": 1, "scores": {"upstream": "high"}}]}, "candidates[0].scores.upstream"),
        ({"candidates": [{"id": 1, "colour": "red"}]}, "candidates[0].colour"),
        ({"candidates": [{"id": 1, "features": {"discount": [1]}}]}, "candidates[0].features.discount"),
        ({"length": 0}, "length"),
        ({"length": 2.5}, "length"),
        ({"deadline_ms": 0}, "deadline_ms"),
        ({"deadline_ms": 1e9}, "deadline_ms"),
        ({"explain": "yes"}, "explain"),
        ({"request_id": ""}, "request_id"),
        ({"request_id": "a\nb"}, "request_id"),
        ({"event_timestamp": 1767225600}, "event_timestamp"),
        ({"event_timestamp": "2026-01-01T00:00:00"}, "event_timestamp"),
        ({"recent_events": [{"item_id": 1, "type": "click", "timestamp": "soon"}]}, "recent_events[0].timestamp"),
        ({"constraints": []}, "constraints"),
        ({"usr_id": 1}, "usr_id"),
    ],
)
def test_each_wrong_field_is_a_422_naming_it(change: dict[str, Any], field: str) -> None:
    problem = problem_of(GOOD | change)
    assert problem.status == 422
    assert [e.field for e in problem.errors] == [field]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidate": []}, "no such field; did you mean candidates?"),
        ({"candidates": [{"id": 1, "colour": "red"}]}, "no such field; there are id, scores, features"),
        ({"constraints": {"gap": {"by": "brand", "slot": 2}}}, "no such field; did you mean slots?"),
    ],
)
def test_a_field_that_is_none_is_answered_with_those_there_are(change: dict[str, Any], message: str) -> None:
    assert message in [error.message for error in problem_of(GOOD | change).errors]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(number: str) -> None:
    problem = problem_of(json.dumps(GOOD).replace("0.5", number))
    assert problem.status in (400, 422)
    assert "candidates[0].scores.upstream" in problem.detail or "JSON" in problem.detail


@pytest.mark.parametrize("text", ["", "{", "[1,", '{"user_id": 1,}', "\x00"])
def test_what_is_not_json_is_a_400(text: str) -> None:
    assert problem_of(text).status == 400


def test_a_json_value_of_another_shape_is_a_422_about_the_body() -> None:
    problem = problem_of("[]")
    assert (problem.status, problem.errors[0].field) == (422, "body")


def test_problem_document_has_the_members_of_rfc_9457() -> None:
    document = json.loads(problem_of(GOOD | {"length": 0}).body())
    assert document["type"] == "about:blank"
    assert document["status"] == 422
    assert document["title"]
    assert document["errors"][0]["field"] == "length"


def test_ids_keep_their_type() -> None:
    numbers = RerankRequest.model_validate_json('{"user_id": 1, "candidates": [{"id": 2}]}')
    strings = RerankRequest.model_validate_json('{"user_id": "1", "candidates": [{"id": "2"}]}')
    assert (numbers.user_id, numbers.candidates[0].id) == (1, 2)
    assert (strings.user_id, strings.candidates[0].id) == ("1", "2")


def test_feedback_needs_event_ids() -> None:
    event = {"id": 1, "type": "click", "timestamp": "2026-01-01T00:00:00Z"}
    with pytest.raises(ValidationError) as caught:
        FeedbackRequest.model_validate_json(json.dumps({"request_id": "r", "events": [event]}))
    assert from_validation(caught.value, FeedbackRequest).errors[0].field == "events[0].event_id"


def test_field_path() -> None:
    assert field_path(("candidates", 3, "id", "constrained-int")) == "candidates[3].id"
    assert field_path(()) == "body"
