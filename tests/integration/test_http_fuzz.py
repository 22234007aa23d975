"""Fuzzing: whatever arrives, no 5xx, no status that OpenAPI does not know, and every list is valid.

`DEGRE_TEST_FUZZ_CASES` (schemathesis) and `DEGRE_TEST_FUZZ_REQUESTS` (valid requests) raise the numbers for a long run:
2,000 and 10,000 take about three minutes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CHECKS
from serving_fakes import BRANDS, FakeFeatures, fake_engine
from serving_server import served

from degre_prod.constraints.rules import compile_rules
from degre_prod.constraints.settle import UNCHECKED
from degre_prod.constraints.spec import Constraints
from serving.cache import ResultCache
from serving.protocol import RerankResponse
from serving.validation import validate

CASES = int(os.environ.get("DEGRE_TEST_FUZZ_CASES", "60"))
REQUESTS = int(os.environ.get("DEGRE_TEST_FUZZ_REQUESTS", "300"))
LENIENT = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
KNOWN = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


@pytest.fixture(scope="module")
def service(redis_url: str) -> Iterator[str]:
    cache = ResultCache(redis_url, ttl_seconds=30, timeout_ms=500)
    with served(fake_engine(FakeFeatures(), cache=cache), redis_url, max_body_bytes=100_000) as url:
        yield url


@pytest.mark.timeout(900)
def test_no_server_error_and_no_undocumented_answer(service: str) -> None:
    schema = schemathesis.openapi.from_url(f"{service}/openapi.json")
    checks = [CHECKS.get_one(name) for name in KNOWN]
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) == 5
    sent = 0
    both = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    for operation in operations:
        # What has no parameters has but one case, and no wrong one.
        modes, most = (both, CASES // 4) if operation.method == "post" else (both[:1], 1)
        for mode in modes:

            @settings(LENIENT, max_examples=most)
            @given(case=operation.as_strategy(generation_mode=mode))
            def send(case: schemathesis.Case) -> None:
                nonlocal sent
                sent += 1
                case.call_and_validate(checks=checks)

            send()
    assert sent >= CASES


@pytest.mark.timeout(900)
def test_every_answer_to_a_valid_request_is_valid(service: str) -> None:
    number = st.floats(-1e9, 1e9)
    candidate = st.fixed_dictionaries(
        {"id": st.integers(-5, 120)},
        optional={
            "scores": st.dictionaries(st.sampled_from(["upstream", "second"]), st.none() | number),
            "features": st.fixed_dictionaries(
                {}, optional={"discount": st.none() | number, "badge": st.none() | st.text(max_size=20)}
            ),
        },
    )
    event = st.fixed_dictionaries(
        {
            "item_id": st.integers(-5, 120),
            "type": st.text(min_size=1, max_size=20),
            "timestamp": st.datetimes().map(lambda m: m.isoformat() + "Z"),
        }
    )
    body = st.fixed_dictionaries(
        {"user_id": st.integers(-(2**63), 2**63 - 1), "candidates": st.lists(candidate, min_size=1, max_size=6)},
        optional={
            "length": st.integers(1, 9),
            "deadline_ms": st.floats(0.01, 10_000),
            "explain": st.booleans(),
            "context": st.fixed_dictionaries({}, optional={"hour": number, "device": st.text(max_size=9)}),
            "recent_events": st.lists(event, max_size=5),
            "constraints": constraints(),
        },
    )
    refusals = 0
    with httpx.Client() as client:

        @settings(LENIENT, max_examples=REQUESTS)
        @given(body=body)
        def ask(body: dict[str, Any]) -> None:
            nonlocal refusals
            own = body.get("constraints") or {}
            for slot, place in own.get("pinned", {}).items():  # which candidate, not known before
                own["pinned"][slot] = body["candidates"][place % len(body["candidates"])]["id"]
            reply = client.post(f"{service}/v1/rerank", json=body)
            if own and reply.status_code == 422:
                refusals += 1
                assert all(error["field"].startswith("constraints") for error in reply.json()["errors"]), reply.text
                return
            assert reply.status_code == 200, reply.text
            check(body, own, RerankResponse.model_validate_json(reply.content))

        ask()
    assert 0 < refusals < REQUESTS / 2


def constraints() -> st.SearchStrategy[dict[str, Any]]:
    """Most can be obeyed, some cannot."""
    column = st.sampled_from(["brand", "brand", "brand", "badge"])
    quota = st.fixed_dictionaries(
        {"by": column, "value": st.sampled_from([*BRANDS[:2], "hot"]), "max": st.integers(1, 3)},
        optional={"min": st.integers(0, 1)},
    )
    return st.fixed_dictionaries(
        {},
        optional={
            "exclude": st.lists(st.integers(-5, 120), max_size=5),
            "pinned": st.dictionaries(st.sampled_from(["0", "1", "2"]), st.integers(0, 5), max_size=1),
            "gap": st.fixed_dictionaries({"by": column, "slots": st.integers(2, 3)}),
            "quotas": st.lists(quota, max_size=2, unique_by=lambda q: (q["by"], q["value"])),
        },
    )


def check(body: dict[str, Any], own: dict[str, Any], answer: RerankResponse) -> None:
    """The list is valid, and obeys the request's constraints as far as the service says that it could check them."""
    first = {c["id"]: c for c in reversed(body["candidates"])}
    ids = list(dict.fromkeys(c["id"] for c in body["candidates"]))
    badges = [first[i].get("features", {}).get("badge") for i in ids]
    columns: dict[str, Any] = {"badge": badges, "brand": [BRANDS[i % 3] for i in ids]}
    if UNCHECKED in answer.degraded:
        own = own | {"gap": None, "quotas": []}
    due = min(body.get("length", 3), 3, len(set(ids) - set(own.get("exclude", ()))))
    validate(answer.ids(), ids, due, compile_rules(Constraints.model_validate(own), ids, columns, due))
