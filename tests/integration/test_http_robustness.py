"""Over real HTTP: a model that hangs, overload, slow bodies, clients that go away, explanations."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from itertools import islice
from statistics import median
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from serving_fakes import FakeBundle, FakeDecoded, FakeFeatures, fake_engine, fake_schema
from serving_server import HttpServer, poll
from test_http import REQUEST, is_problem, metric

import serving.body
import serving.workers
from degre_prod.config import RedisConfig, ServingConfig, Settings
from serving.features import FeatureReader
from serving.protocol import RerankRequest
from serving.service import Service


class StoppingBundle(FakeBundle):
    """Its model hangs while `gate` is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.gate.set()

    def decode(self, *args: Any) -> FakeDecoded:
        self.gate.wait()
        return super().decode(*args)


def post(url: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/rerank", json=REQUEST | fields)


def test_a_model_that_hangs_for_good_costs_order_never_the_service(
    http_server: HttpServer, clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.workers, "STUCK_S", 0.1)
    monkeypatch.setattr(serving.workers, "PAUSE_S", (0.05, 0.1))
    bundle = StoppingBundle()
    with http_server(fake_engine(bundle=bundle), clean_redis, threads=2) as url:
        assert post(url, deadline_ms=5000).json()["source"] == "generator"
        bundle.gate.clear()
        try:
            given: list[str] = []
            took_s: list[float] = []
            while given.count("engine_stuck") < 20:
                started = time.perf_counter()
                document = post(url, deadline_ms=50).json()
                took_s.append(time.perf_counter() - started)
                assert [i["id"] for i in document["items"]] == [5, 4, 9]
                given += document["degraded"]
            assert set(given) == {"deadline", "engine_stuck"}
            assert median(took_s) < 0.15  # a busy machine may delay a few
            assert metric(url, 'degre_degraded_total{reason="engine_stuck"}') == given.count("engine_stuck")
            assert metric(url, 'degre_degraded_total{reason="deadline"}') == given.count("deadline")
            poll(lambda: (post(url, deadline_ms=20), metric(url, "degre_threads_lost") >= 2)[1])
            assert httpx.get(f"{url}/healthz").status_code == 200
        finally:
            bundle.gate.set()
        # Those that hung come back and end; nothing needs a restart.
        poll(lambda: post(url).json()["source"] == "generator")
        poll(lambda: metric(url, "degre_threads_lost") == 0)


def test_too_many_threads_lost_and_the_replica_asks_to_be_replaced(
    http_server: HttpServer, clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.workers, "STUCK_S", 0.01)
    monkeypatch.setattr(serving.workers, "PAUSE_S", (0.01, 0.02))
    monkeypatch.setattr(serving.workers, "MOST_LOST", 3)
    bundle = StoppingBundle()
    with http_server(fake_engine(bundle=bundle), clean_redis, threads=2) as url:
        bundle.gate.clear()
        try:
            poll(lambda: (post(url, deadline_ms=10), httpx.get(f"{url}/healthz").status_code == 503)[1])
            is_problem(httpx.get(f"{url}/healthz"), 503)
            assert post(url).json()["degraded"] == ["engine_stuck"]  # until then it answers
        finally:
            bundle.gate.set()


def test_overload_is_shed_with_a_problem_document(http_server: HttpServer, clean_redis: str) -> None:
    features = FakeFeatures()
    limits = {"threads": 1, "max_ongoing_requests": 3}
    with (
        http_server(fake_engine(features), clean_redis, **limits) as url,
        ThreadPoolExecutor(8) as pool,
    ):
        features.gate.clear()
        asked = [pool.submit(post, url, deadline_ms=10_000) for _ in range(8)]
        first = list(islice(as_completed(asked, timeout=9), 5))  # refused at once, while three are under way
        features.gate.set()
        refused = [a.result() for a in first]
        assert [a.result().status_code for a in asked if a not in first] == [200] * 3
        for answer in refused:
            assert "serving.max_ongoing_requests" in is_problem(answer, 429)["detail"]
            assert answer.headers["retry-after"] == "1"
        assert metric(url, 'degre_shed_total{reason="ongoing"}') == 5


def test_bodies_that_only_trickle_in_do_not_pile_up(http_server: HttpServer, clean_redis: str) -> None:
    with (
        http_server(fake_engine(), clean_redis, max_ongoing_requests=1, max_queued_requests=2) as url,
        ExitStack() as open_ones,
    ):
        host, port = url.removeprefix("http://").split(":")
        for _ in range(3):
            slow = open_ones.enter_context(socket.create_connection((host, int(port)), timeout=5))
            slow.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        poll(lambda: post(url).status_code == 429)
        refused = post(url)
        assert "3 requests are open" in is_problem(refused, 429)["detail"]
        assert refused.headers["retry-after"] == "1"
        assert metric(url, 'degre_shed_total{reason="open"}') >= 2
        open_ones.close()
        poll(lambda: post(url).status_code == 200)
        assert metric(url, 'degre_requests_total{endpoint="rerank",status="500"}') == 0


def test_work_that_would_come_too_late_gets_a_fallback_at_once(http_server: HttpServer, clean_redis: str) -> None:
    class SlowFeatures(FakeFeatures):
        def read(self, *args: Any) -> Any:
            time.sleep(0.04)
            return super().read(*args)

    with (
        http_server(fake_engine(SlowFeatures()), clean_redis, threads=1) as url,
        ThreadPoolExecutor(16) as pool,
    ):
        for _ in range(30):  # until the service knows how long a request takes
            post(url, deadline_ms=1000)
        answers = [a.result().json() for a in [pool.submit(post, url, deadline_ms=150) for _ in range(16)]]
        assert {d for a in answers for d in a["degraded"]} >= {"overloaded"}
        early = [a for a in answers if a["degraded"] == ["overloaded"]]
        assert all(a["timings_ms"]["total"] < 100 for a in early)


def test_a_body_that_never_arrives_is_given_up(
    http_server: HttpServer, clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.body, "BODY_SECONDS", 0.2)
    with http_server(fake_engine(), clean_redis) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as slow:
            slow.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
            reply = slow.recv(4096)
    assert reply.startswith(b"HTTP/1.1 408")
    assert b"application/problem+json" in reply


def test_a_client_that_goes_away_is_not_worked_for(clean_redis: str) -> None:
    """Ray Serve cancels the handler; see test_serve_faults for the whole way."""
    features = FakeFeatures()
    settings = Settings(
        redis=RedisConfig(url=SecretStr(clean_redis)), serving=ServingConfig(threads=1, deadline_ms=5000)
    )

    async def run() -> None:
        service = Service(lambda: fake_engine(features), settings)
        service.start()
        while service.readiness() is not None:
            await asyncio.sleep(0.005)
        features.gate.clear()
        request = RerankRequest.model_validate(REQUEST)

        async def handle() -> None:
            with service.admitted():
                await service.rerank(request, time.perf_counter())

        asked = [asyncio.create_task(handle()) for _ in range(3)]
        await asyncio.sleep(0.05)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        features.gate.set()
        after = await service.rerank(request, time.perf_counter())
        assert after.source == "generator"
        assert features.reads == 2  # the one that was running, and the last
        assert service.metrics.value("degre_cancelled_total") == 3
        await service.close()

    asyncio.run(run())


def test_explained_answers_tell_the_features_read(http_server: HttpServer, clean_redis: str) -> None:
    with http_server(fake_engine(), clean_redis) as url:
        document = post(url, explain=True, candidates=[{"id": 5}, {"id": 9}, {"id": 101}]).json()
    assert document["user_features"] == {"age": 30.0}
    assert [i["features"]["price"] for i in document["items"]] == [None, 9.0, 5.0]
    assert [i.get("margin") for i in document["items"]] == [3.0, 2.0, None]


def test_far_too_many_candidates_are_refused_while_they_are_parsed(http_server: HttpServer, clean_redis: str) -> None:
    with http_server(fake_engine(), clean_redis) as url:
        is_problem(post(url, candidates=[{"id": i} for i in range(5001)]), 413)


def test_no_secret_is_logged_or_told(http_server: HttpServer, capsys: pytest.CaptureFixture[str]) -> None:
    url_with_secret = "redis://:topsecret@127.0.0.1:1/0"
    broken = fake_engine(FeatureReader(fake_schema(), url_with_secret, 50.0))
    with http_server(broken, url_with_secret, tokens=["alsosecret"]) as url:
        headers = {"Authorization": "Bearer alsosecret"}
        answer = httpx.post(f"{url}/v1/rerank", json=REQUEST, headers=headers)
        assert answer.json()["degraded"] == ["features_unavailable"]
        feedback = httpx.post(f"{url}/v1/feedback", json={"request_id": "r", "shown_ids": [9]}, headers=headers)
        assert feedback.status_code == 503
        told = answer.text + feedback.text + httpx.get(f"{url}/metrics").text + httpx.get(f"{url}/readyz").text
        httpx.post(f"{url}/v1/rerank", json=REQUEST, headers={"Authorization": "Bearer nearlysecret"})
    logged = "".join(capsys.readouterr())
    assert "features unavailable" in logged
    assert "secret" not in logged + told
