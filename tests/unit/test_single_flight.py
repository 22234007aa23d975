"""One computation per key at a time, and an engine that uses it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving_fakes import FakeFeatures, fake_engine
from serving_server import poll

import serving.single_flight as module
from serving.cache import ResultCache
from serving.engine import Answer, Engine
from serving.protocol import RerankRequest
from serving.single_flight import SingleFlight


def test_who_joins_gets_the_leaders_result() -> None:
    flights: SingleFlight[int] = SingleFlight()
    assert flights.join("k", 0.1) is None  # nothing under way
    gate, started = threading.Event(), threading.Event()

    def compute() -> int:
        started.set()
        gate.wait(10)
        return 7

    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(flights.lead, "k", compute)
        assert started.wait(10)
        assert flights.join("k", 0.01) is None  # too slow for this one
        follower = pool.submit(flights.join, "k", 10)
        gate.set()
        assert (leader.result(), follower.result()) == (7, 7)
    assert flights.join("k", 0.1) is None


def test_a_computation_that_hangs_is_not_waited_for_by_everyone_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALE_S", 0.05)
    flights: SingleFlight[int] = SingleFlight()
    gate, started = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        hung = pool.submit(flights.lead, "k", lambda: (started.set(), gate.wait(10), 1)[2])
        assert started.wait(10)
        time.sleep(0.06)
        begun = time.monotonic()
        assert flights.join("k", 5) is None
        assert time.monotonic() - begun < 1
        seen: list[int | None] = []
        again = threading.Thread(target=lambda: seen.append(flights.join("k", 10)))

        def compute() -> int:
            again.start()
            poll(lambda: again.is_alive())
            gate.set()
            hung.result()  # the one that hung ends, and takes nobody else's place away
            time.sleep(0.02)
            return 2

        monkeypatch.setattr(module, "STALE_S", 10)
        flights._flights["k"].started -= 20
        assert flights.lead("k", compute) == 2
        again.join()
        assert seen == [2]
    assert flights._flights == {}


def test_a_failed_computation_is_nobodys_result() -> None:
    flights: SingleFlight[int] = SingleFlight()
    with pytest.raises(ZeroDivisionError):
        flights.lead("k", lambda: 1 // 0)
    assert flights.lead("k", lambda: 3) == 3


def test_equal_requests_at_once_are_computed_once(clean_redis: str) -> None:
    features = FakeFeatures()
    cache = ResultCache(clean_redis, ttl_seconds=30, timeout_ms=500)
    engine = fake_engine(features, cache=cache, deadline_ms=10_000)
    features.gate.clear()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(_ask, engine, "a", 1)
        poll(lambda: engine._flights._flights)
        second, other = pool.submit(_ask, engine, "b", 1), pool.submit(_ask, engine, "c", 2)
        poll(lambda: len(engine._flights._flights) == 2)
        features.gate.set()
        answers = [one.result() for one in (first, second, other)]
    assert [a.response.source for a in answers] == ["generator", "cache", "generator"]
    assert [a.cache_outcome for a in answers] == ["miss", "shared", "miss"]
    assert [a.response.request_id for a in answers] == ["a", "b", "c"]
    assert answers[0].response.ids() == answers[1].response.ids()
    assert features.reads == 2


def _ask(engine: Engine, request_id: str, user_id: int) -> Answer:
    document = {"request_id": request_id, "user_id": user_id, "candidates": [{"id": i} for i in (5, 9, 3)]}
    return engine.answer(engine.prepare(RerankRequest.model_validate(document)))
