"""The figures of a replay, worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from degre_prod.errors import DataError
from orchestration.replaying.page import render
from orchestration.replaying.summary import summarise


def row(shown: list[int], answered: list[int], **changes: Any) -> dict[str, Any]:
    return {
        "request_id": "r",
        "event_us": 0,
        "shown": shown,
        "answered": answered,
        "earned": [1.0] + [0.0] * (len(shown) - 1),
        "judged_shown": [0.1] * len(shown),
        "judged_answered": [0.2] * len(answered),
        "propensity": None,
        "list_propensity": None,
        "segments": json.dumps({"hour": "07", "user.group": "a"}),
        "shown_categories": json.dumps({"brand": ["x"] * len(shown)}),
        "answered_categories": json.dumps({"brand": ["y"] * len(answered)}),
        **changes,
    }


def found(*rows: dict[str, Any], minimum: float = 1.0) -> dict[str, Any]:
    return summarise(pa.Table.from_pylist(list(rows)), 3, minimum)


def test_agreement_is_counted_slot_by_slot() -> None:
    agreement = found(row([1, 2, 3], [1, 3, 2]), row([1, 2, 3], [1, 2, 3]), row([1, 2], [3, 1]))["agreement"]
    assert agreement["same_list"]["mean"] == pytest.approx(1 / 3)
    assert agreement["overlap"]["mean"] == pytest.approx((1 + 1 + 0.5) / 3)
    assert agreement["rank_correlation"]["mean"] == pytest.approx((1 / 3 + 1) / 2)  # one common item has no order
    assert [s["mean"] for s in agreement["by_slot"]] == pytest.approx([2 / 3, 1 / 3, 1 / 2])
    assert [s["count"] for s in agreement["by_slot"]] == [3, 3, 2]


def test_values_are_compared_request_by_request() -> None:
    document = found(row([1, 2], [2, 1]), row([1, 2, 3], [1, 2, 3]), row([1], []))
    assert (document["requests"], document["without_list"]) == (3, 1)
    assert document["judged"]["difference"]["mean"] == pytest.approx((0.2 + 0.3) / 2)
    assert document["earned"]["mean"] == 1.0
    lost = found(row([1, 2], [2, 1], earned=[None, 1.0]), row([1, 2], [2, 1], earned=[1.0, 1.0]))
    assert lost["earned"] == {"mean": 2.0, "low": None, "high": None, "count": 1}


def test_what_rises_and_what_falls() -> None:
    document = found(row([1, 2], [3, 2]), row([1, 4], [3, 4]))
    (up,), (down,) = document["items"]["promoted"], document["items"]["demoted"]
    assert (up["name"], up["change"], up["slot_shown"], up["slot_answered"]) == (3, 2, None, 1.0)
    assert (down["name"], down["change"]) == (1, -2)
    shares = {c["value"]: (c["shown_share"], c["answered_share"]) for c in document["categories"]}
    assert shares == {"x": (1.0, 0.0), "y": (0.0, 1.0)}


def test_a_segment_is_every_request_of_its_value() -> None:
    other = json.dumps({"hour": "08", "user.group": None})
    document = found(row([1], [1]), row([1], [1]), row([1], [2], segments=other))
    told = {(s["column"], s["value"]): (s["requests"], s["same_list"]) for s in document["segments"]}
    assert told == {
        ("hour", "07"): (2, 1.0),
        ("hour", "08"): (1, 0.0),
        ("user.group", "a"): (2, 1.0),
        ("user.group", "(missing)"): (1, 0.0),
    }


def test_estimates_rest_on_requests_with_propensities() -> None:
    explored = [row([1, 2], [1, 2], propensity=[0.5, 1.0]), row([3, 2], [1, 2], propensity=[0.5, 1.0])]
    estimates = {e["name"]: e for e in found(*explored, row([1], [1]))["off_policy"]}
    assert estimates["IPS by slot"]["requests"] == 2
    assert estimates["IPS by slot"]["value"] == pytest.approx((1 / 0.5 + 0) / 2)
    assert estimates["SNIPS by slot"]["value"] == pytest.approx(1.0)
    # Of each request the judge's .4, and where the list was the bundle's own (1 − .4) / .5 more.
    assert estimates["DR by slot"]["value"] == pytest.approx(0.4 + (1 / 0.5) * (1 - 0.4) / 2)
    assert all(e["estimable"] and e["mean_weight"] == pytest.approx(1.0) for e in estimates.values())
    assert not any(e["estimable"] for e in found(*explored, minimum=2.0)["off_policy"])
    whole = found(row([1, 2], [1, 2], list_propensity=0.25), row([2, 1], [1, 2], list_propensity=0.25))["off_policy"]
    assert {e["name"]: e["value"] for e in whole}["IPS of lists"] == pytest.approx(2.0)
    assert found(row([1], [1]))["off_policy"] == []


def test_estimates_of_what_the_log_never_showed_are_not_told() -> None:
    far = [row([1, 2], [2, 1], propensity=[0.9, 0.9]) for _ in range(5)]
    (ips,) = found(*far, minimum=0.0)["off_policy"]
    assert (ips["mean_weight"], ips["estimable"]) == (0.0, False)


def test_without_any_list_there_is_nothing_to_say() -> None:
    with pytest.raises(DataError, match="no list for any"):
        found(row([1], []))


def test_the_page_escapes_and_does_without_a_judge() -> None:
    nobody = {"judged_shown": None, "judged_answered": None}
    table = pa.Table.from_pylist([row([1, 2], [2, 1], **nobody), row([1, 2], [1, 2], **nobody)])
    document = {
        "dataset": "<b>shop</b>",
        "bundle": "b",
        "manifest_sha256": "f" * 64,
        "trained_until": "2026-01-02T00:00:00+00:00",
        "from": "2026-01-01T00:00:00+00:00",
        "to": "2026-01-08T00:00:00+00:00",
        "days": 7.0,
        "unconfirmed": 1,
        "rejected": 0,
        "judge": None,
        **summarise(table, 3, 1.0),
    }
    page = render(document)
    assert "<b>shop</b>" not in page
    assert "as the judge values it" not in page
    assert "No judge lies in this run" in page
    assert "trained on requests up to" in page
