"""The application over real HTTP with a real Redis: bad input, degradation, limits, metrics."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
import redis
from serving_fakes import FakeFeatures, fake_engine
from serving_server import HttpServer, poll

from degre_prod.errors import BundleError
from orchestration.redis_server import running_redis
from serving.cache import ResultCache
from serving.engine import Engine
from serving.event_log import stream_key

REQUEST: dict[str, Any] = {
    "request_id": "r1",
    "user_id": 1,
    "candidates": [{"id": i, "scores": {"upstream": float(i % 3)}} for i in (5, 9, 3, 4)],
}


def records(url: str, kind: str) -> list[dict[str, Any]]:
    with redis.Redis.from_url(url) as client:
        entries = [entry for shard in range(4) for entry in client.xrange(f"degre:{kind}:{shard}")]
    return [json.loads(fields[b"record"]) for _, fields in entries]


def metric(url: str, line: str) -> float:
    for found in httpx.get(f"{url}/metrics").text.splitlines():
        if found.startswith(line + " "):
            return float(found.rsplit(" ", 1)[1])
    return 0.0


def is_problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["status"] == status
    return document


def test_a_list_is_answered_logged_and_counted(http_server: HttpServer, clean_redis: str) -> None:
    with http_server(fake_engine(), clean_redis) as url:
        answer = httpx.post(f"{url}/v1/rerank", json=REQUEST)
        assert answer.status_code == 200
        document = answer.json()
        assert [i["id"] for i in document["items"]] == [9, 5, 4]
        assert (document["source"], document["degraded"], document["request_id"]) == ("generator", [], "r1")
        assert "margin" not in document["items"][0]
        assert {"parse", "features", "encode", "decode", "total"} <= set(document["timings_ms"])
        poll(lambda: records(clean_redis, "served"))
        assert metric(url, 'degre_answers_total{source="generator"}') == 1
        assert metric(url, 'degre_requests_total{endpoint="rerank",status="200"}') == 1
        assert metric(url, 'degre_stage_seconds_count{stage="decode"}') == 1
        assert metric(url, "degre_ready") == 1
    (record,) = records(clean_redis, "served")
    assert record["shown_ids"] == [9, 5, 4]
    assert record["candidate_ids"] == [5, 9, 3, 4]
    assert record["upstream_scores"] == {"upstream": [2.0, 0.0, 0.0, 1.0]}
    assert (record["request_id"], record["source"], record["arm"]) == ("r1", "generator", "champion")


@pytest.mark.parametrize(
    ("content", "status", "field"),
    [
        (b"{", 400, None),
        (b"", 400, None),
        (b"\xff\xfe", 400, None),
        (b"[]", 422, "body"),
        (json.dumps({"candidates": [{"id": 1}]}).encode(), 422, "user_id"),
        (json.dumps(REQUEST | {"user_id": "one"}).encode(), 422, "user_id"),
        (json.dumps(REQUEST | {"event_timestamp": "2026-01-01T00:00:00Z"}).encode(), 422, "event_timestamp"),
        (
            b'{"user_id": 1, "candidates": [{"id": 1, "scores": {"upstream": NaN}}]}',
            422,
            "candidates[0].scores.upstream",
        ),
        (json.dumps({"user_id": 1, "candidates": [{"id": i} for i in range(7)]}).encode(), 413, None),
        (b" " * 3000, 413, None),
    ],
)
def test_bad_input_gets_a_problem_document(
    http_server: HttpServer, clean_redis: str, content: bytes, status: int, field: str | None
) -> None:
    with http_server(fake_engine(), clean_redis, max_body_bytes=2000) as url:
        document = is_problem(httpx.post(f"{url}/v1/rerank", content=content), status)
        assert field is None or [e["field"] for e in document["errors"]] == [field]


def test_a_long_body_of_unknown_length_is_cut_off(http_server: HttpServer, clean_redis: str) -> None:
    with http_server(fake_engine(), clean_redis, max_body_bytes=2000) as url:
        is_problem(httpx.post(f"{url}/v1/rerank", content=(b" " * 500 for _ in range(10))), 413)


def test_unknown_paths_and_methods_are_problems_too(http_server: HttpServer, clean_redis: str) -> None:
    with http_server(fake_engine(), clean_redis) as url:
        is_problem(httpx.get(f"{url}/v2/rerank"), 404)
        is_problem(httpx.get(f"{url}/v1/rerank"), 405)


def test_tokens(http_server: HttpServer, clean_redis: str) -> None:
    with http_server(fake_engine(), clean_redis, tokens=["old", "new"]) as url:
        for header in ({}, {"Authorization": "Bearer wrong"}):
            for path in ("rerank", "feedback"):
                answer = httpx.post(f"{url}/v1/{path}", content=b"{", headers=header)
                is_problem(answer, 401)
                assert answer.headers["www-authenticate"] == "Bearer"
        for token in ("old", "new"):
            header = {"Authorization": f"Bearer {token}"}
            assert httpx.post(f"{url}/v1/rerank", json=REQUEST, headers=header).status_code == 200
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_the_openapi_document_states_the_limits(http_server: HttpServer, clean_redis: str) -> None:
    with http_server(fake_engine(), clean_redis, tokens=["t"]) as url:
        document = httpx.get(f"{url}/openapi.json").json()
    post = document["paths"]["/v1/rerank"]["post"]
    assert "maximum of 6" in post["responses"]["413"]["description"]
    assert post["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/RerankRequest"
    }
    assert {"RerankRequest", "RerankResponse", "ProblemDocument"} <= set(document["components"]["schemas"])
    assert post["security"] == [{"bearer": []}]
    told = post["responses"]
    assert [s for s in told if "Retry-After" in told[s].get("headers", {})] == ["429", "502", "503", "504"]
    assert all("application/problem+json" in told[status]["content"] for status in told if status != "200")


def test_not_ready_while_the_bundle_loads(http_server: HttpServer, clean_redis: str) -> None:
    gate = threading.Event()

    def slow() -> Engine:
        gate.wait(20)
        return fake_engine()

    with http_server(slow, clean_redis, ready=False) as url:
        assert httpx.get(f"{url}/healthz").status_code == 200
        is_problem(httpx.get(f"{url}/readyz"), 503)
        refused = httpx.post(f"{url}/v1/rerank", json=REQUEST)
        is_problem(refused, 503)
        assert refused.headers["retry-after"] == "1"
        gate.set()
        poll(lambda: httpx.get(f"{url}/readyz").status_code == 200)


def test_a_bundle_that_must_not_serve_is_never_ready(http_server: HttpServer, clean_redis: str) -> None:
    def broken() -> Engine:
        raise BundleError("generator.onnx was changed")

    with http_server(broken, clean_redis, ready=False) as url:
        poll(lambda: "was changed" in httpx.get(f"{url}/readyz").text)
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_the_deadline_is_kept_while_features_hang(http_server: HttpServer, clean_redis: str) -> None:
    features = FakeFeatures()
    with http_server(fake_engine(features), clean_redis) as url, httpx.Client() as client:
        client.post(f"{url}/v1/rerank", json=REQUEST)
        features.gate.clear()
        try:
            started = time.perf_counter()
            answer = client.post(f"{url}/v1/rerank", json=REQUEST | {"deadline_ms": 50}).json()
            took_ms = (time.perf_counter() - started) * 1000
            assert (answer["source"], answer["degraded"]) == ("fallback_score", ["deadline"])
            assert [i["id"] for i in answer["items"]] == [5, 4, 9]
            assert 45 <= took_ms < 500
            # With every thread stuck the handler still answers, and so does the health check.
            with ThreadPoolExecutor(12) as pool:
                asked = [
                    pool.submit(client.post, f"{url}/v1/rerank", json=REQUEST | {"deadline_ms": 60}) for _ in range(12)
                ]
                started = time.perf_counter()
                assert client.get(f"{url}/healthz").status_code == 200
                assert time.perf_counter() - started < 0.5
                # Once enough calls hang, the rest need not wait for their deadline to know.
                assert {f.result().json()["degraded"][0] for f in asked} <= {"deadline", "engine_stuck"}
            counted = [metric(url, f'degre_degraded_total{{reason="{name}"}}') for name in ("deadline", "engine_stuck")]
            assert sum(counted) == 13
        finally:
            features.gate.set()


def test_redis_gone_costs_order_never_the_answer(http_server: HttpServer) -> None:
    with running_redis() as gone:
        pass
    cache = ResultCache(gone, ttl_seconds=30, timeout_ms=50)
    with http_server(fake_engine(FakeFeatures(fails=True), cache=cache), gone) as url:
        document = httpx.post(f"{url}/v1/rerank", json=REQUEST).json()
        assert (document["source"], document["degraded"]) == ("fallback_score", ["features_unavailable"])
        assert metric(url, 'degre_cache_total{outcome="error"}') == 1
        feedback = httpx.post(f"{url}/v1/feedback", json={"request_id": "r1", "shown_ids": [9]})
        is_problem(feedback, 503)
        assert feedback.headers["retry-after"] == "1"
        assert metric(url, 'degre_feedback_total{fate="refused"}') == 1


def test_feedback_is_in_redis_when_it_is_accepted(http_server: HttpServer, clean_redis: str) -> None:
    event = {"event_id": "e1", "id": 9, "type": "click", "timestamp": "2026-01-01T00:00:01Z"}
    with http_server(fake_engine(), clean_redis) as url:
        answer = httpx.post(f"{url}/v1/feedback", json={"request_id": "r1", "shown_ids": [9, 5], "events": [event]})
        assert (answer.status_code, answer.json()) == (202, {"request_id": "r1", "accepted": 1})
        with redis.Redis.from_url(clean_redis) as client:
            assert client.xlen(stream_key("feedback", "r1")) == 1
        (record,) = records(clean_redis, "feedback")
        assert record["events"] == [event]
        assert record["shown_ids"] == [9, 5]
        wrong = is_problem(
            httpx.post(f"{url}/v1/feedback", json={"request_id": "r1", "events": [event | {"type": "x"}]}), 422
        )
        assert wrong["errors"][0]["field"] == "events[0].type"


def test_the_cache_over_http(http_server: HttpServer, clean_redis: str) -> None:
    features = FakeFeatures()
    cache = ResultCache(clean_redis, ttl_seconds=30, timeout_ms=500)
    with (
        http_server(fake_engine(features, cache=cache), clean_redis) as url,
        redis.Redis.from_url(clean_redis) as client,
    ):
        first = httpx.post(f"{url}/v1/rerank", json=REQUEST).json()
        poll(lambda: list(client.scan_iter("degre:cache:*")))
        second = httpx.post(f"{url}/v1/rerank", json=REQUEST | {"request_id": "r2"}).json()
        assert (first["source"], second["source"], second["request_id"]) == ("generator", "cache", "r2")
        assert second["items"] == first["items"]
        assert features.reads == 1
        assert metric(url, 'degre_cache_total{outcome="hit"}') == 1


def test_exploration_changes_some_lists_and_logs_with_what_chance(http_server: HttpServer, clean_redis: str) -> None:
    cache = ResultCache(clean_redis, ttl_seconds=30, timeout_ms=500)
    with http_server(fake_engine(cache=cache), clean_redis, exploration_share=0.2) as url, httpx.Client() as client:
        answers = [client.post(f"{url}/v1/rerank", json=REQUEST | {"request_id": f"r{n}"}).json() for n in range(200)]
        explained = client.post(f"{url}/v1/rerank", json=REQUEST | {"request_id": "why", "explain": True}).json()
        poll(lambda: len(records(clean_redis, "served")) == 201)
    lists = {a["request_id"]: [i["id"] for i in a["items"]] for a in answers}
    usual = [9, 5, 4]
    assert [i["id"] for i in explained["items"]] == usual
    changed = sum(shown != usual for shown in lists.values())
    assert 40 < changed < 120  # 1 − P(all three slots keep their item) is .36
    assert {a["source"] for a in answers} == {"generator", "cache"}  # what the cache keeps is the generator's own list
    for record in records(clean_redis, "served"):
        if record["request_id"] == "why":
            assert record["propensity"] is None
            continue
        assert record["shown_ids"] == lists[record["request_id"]]  # what was sent is what is logged
        assert len(record["propensity"]) == 3
        assert record["list_propensity"] == pytest.approx(np.prod(record["propensity"]))
        if record["shown_ids"] == usual:
            assert record["propensity"] == pytest.approx([0.8 + 0.2 / 4, 0.8 + 0.2 / 3, 0.8 + 0.2 / 2])


def test_without_exploration_no_propensity_is_logged(http_server: HttpServer, clean_redis: str) -> None:
    with http_server(fake_engine(), clean_redis) as url:
        httpx.post(f"{url}/v1/rerank", json=REQUEST)
        poll(lambda: records(clean_redis, "served"))
    (record,) = records(clean_redis, "served")
    assert (record["propensity"], record["list_propensity"]) == (None, None)
