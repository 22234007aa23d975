"""Served lists and feedback joined by the rules of orchestration/collect/join.py."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from orchestration.collect.join import Counts, join, units, without_list
from orchestration.collect.streams import Entry

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
WINDOW_S = 600.0


def served(**changes: Any) -> Entry:
    record = {"request_id": "r", "event_timestamp": AT.isoformat(), "user_id": 7, "shown_ids": [3, 1, 2], **changes}
    return Entry((1000, 0), record)


def delivery(
    *events: tuple[str, int, float], shown: list[int] | None = None, arrived_ms: int = 2000, kind: str = "click"
) -> Entry:
    """Events are (event_id, item, seconds after the list)."""
    made = [
        {"event_id": e, "id": item, "type": kind, "timestamp": (AT + timedelta(seconds=s)).isoformat()}
        for e, item, s in events
    ]
    return Entry((arrived_ms, 0), {"request_id": "r", "shown_ids": shown, "events": made})


def fates(counts: Counts) -> tuple[int, int, int, int]:
    return counts.joined, counts.late, counts.orphaned, counts.duplicated


@pytest.mark.parametrize(
    ("deliveries", "expected", "clicks", "confirmed"),
    [
        ([], (0, 0, 0, 0), [0, 0, 0], False),
        ([delivery()], (1, 0, 0, 0), [0, 0, 0], True),
        ([delivery(), delivery()], (1, 0, 0, 1), [0, 0, 0], True),
        ([delivery(arrived_ms=601_001)], (0, 1, 0, 0), [0, 0, 0], False),
        ([delivery(("a", 1, 5))], (1, 0, 0, 0), [0, 1, 0], True),
        ([delivery(("a", 1, 5)), delivery(("a", 1, 5))], (1, 0, 0, 1), [0, 1, 0], True),
        ([delivery(("a", 1, 5), ("b", 2, 6))], (2, 0, 0, 0), [0, 1, 1], True),
        ([delivery(("a", 1, 601))], (0, 1, 0, 0), [0, 0, 0], False),
        ([delivery(("a", 1, -30))], (1, 0, 0, 0), [0, 1, 0], True),
        ([delivery(("a", 1, -61))], (0, 1, 0, 0), [0, 0, 0], False),
        ([delivery(("a", 9, 5))], (0, 0, 1, 0), [0, 0, 0], True),
        ([delivery(("a", 1, 5), ("b", 1, 6))], (2, 0, 0, 0), [0, 1, 0], True),
        ([delivery(("b", 2, 90)), delivery(("a", 1, 5))], (2, 0, 0, 0), [0, 1, 1], True),
    ],
    ids=[
        "nothing came",
        "shown, nothing happened",
        "shown, said twice",
        "shown, said too late",
        "a click",
        "the same click twice",
        "two clicks",
        "a late click",
        "an application's clock behind",
        "long before the list",
        "an item that was not shown",
        "two clicks on one item",
        "out of order",
    ],
)
def test_the_fate_of_every_unit(
    deliveries: list[Entry], expected: tuple[int, ...], clicks: list[int], confirmed: bool
) -> None:
    found = join(served(), deliveries, ["click"], WINDOW_S)
    assert fates(found.counts) == expected
    assert found.counts.feedback == sum(units(d.record) for d in deliveries)
    assert found.row["feedback"] == {"click": clicks}
    assert found.row["confirmed"] is confirmed


def test_what_the_application_says_was_shown_counts() -> None:
    entry = served(propensity=[0.5, 0.5, 0.5], list_propensity=0.125)
    found = join(entry, [delivery(shown=[3, 1, 2]), delivery(("a", 1, 9), shown=[1, 3])], ["click"], WINDOW_S)
    assert found.row["shown_ids"] == [1, 3]
    assert found.row["feedback"] == {"click": [1.0, 0.0]}
    assert found.row["propensity"] is None  # it was of the list that was served
    kept = join(entry, [delivery()], ["click"], WINDOW_S)
    assert kept.row["propensity"] == [0.5, 0.5, 0.5]


def test_each_objective_has_marks_of_its_own() -> None:
    both = [delivery(("a", 1, 5)), delivery(("b", 1, 8), kind="order")]
    assert join(served(), both, ["click", "order"], WINDOW_S).row["feedback"] == {
        "click": [0, 1, 0],
        "order": [0, 1, 0],
    }


@pytest.mark.parametrize(
    ("known", "expected"), [(None, (0, 0, 2, 0)), (frozenset[str](), (0, 2, 0, 0)), (frozenset("a"), (0, 1, 0, 1))]
)
def test_feedback_without_its_list_at_hand(known: frozenset[str] | None, expected: tuple[int, ...]) -> None:
    assert fates(without_list(delivery(("a", 1, 5), ("b", 2, 6)).record, known)) == expected
