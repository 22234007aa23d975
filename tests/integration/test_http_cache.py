"""The result cache against a real Redis: what makes a hit, what ends one, what Redis being away costs."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

import pytest
import redis
from serving_fakes import FakeBundle, FakeFeatures, fake_engine, fake_schema

from degre_prod.constraints.settle import YIELDED
from orchestration.redis_server import running_redis
from serving.cache import EPOCH_KEY, ResultCache, cache_key
from serving.engine import Engine
from serving.protocol import RerankRequest, RerankResponse

EVENT = {"item_id": 3, "type": "click", "timestamp": "2025-12-31T00:00:00Z"}
REQUEST: dict[str, Any] = {
    "user_id": 1,
    "candidates": [{"id": i, "scores": {"upstream": float(i)}, "features": {"discount": 0.5}} for i in (5, 9, 3)],
    "context": {"hour": 12.0},
    "recent_events": [EVENT],
}


def ask(engine: Engine, **fields: Any) -> RerankResponse:
    """What the service does: answer, then store."""
    answer = engine.answer(engine.prepare(RerankRequest.model_validate_json(json.dumps(REQUEST | fields))))
    if answer.entry is not None:
        engine.store(answer.entry)
    return answer.response


@pytest.fixture
def cache(clean_redis: str) -> ResultCache:
    return ResultCache(clean_redis, ttl_seconds=30, timeout_ms=500, seed=1)


def test_the_same_inputs_hit_and_give_the_same_answer(cache: ResultCache) -> None:
    engine = fake_engine(FakeFeatures(known_items={5}), cache=cache)
    first = ask(engine, request_id="a")
    second = ask(engine, request_id="b", deadline_ms=900.0)
    assert (first.source, second.source) == ("generator", "cache")
    assert (second.items, second.degraded) == (first.items, first.degraded)
    assert second.degraded == ["unknown_items:2"]
    assert set(second.timings_ms) == {"cache", "total"}


@pytest.mark.parametrize(
    "change",
    [
        {"user_id": 2},
        {"candidates": REQUEST["candidates"][::-1]},
        {"candidates": REQUEST["candidates"][:2]},
        {"candidates": [c | {"scores": {"upstream": 1.0}} for c in REQUEST["candidates"]]},
        {"candidates": [c | {"features": {"discount": 0.6}} for c in REQUEST["candidates"]]},
        {"context": {"hour": 13.0}},
        {"recent_events": []},
        {"constraints": {"exclude": [9]}},
        {"constraints": {"gap": {"by": "brand", "slots": 2}}},
        {"recent_events": [EVENT | {"item_id": 4}]},
        {"length": 2},
    ],
)
def test_every_model_input_is_in_the_key(cache: ResultCache, change: dict[str, Any]) -> None:
    engine = fake_engine(cache=cache)
    ask(engine)
    assert ask(engine, **change).source == "generator"
    assert ask(engine).source == "cache"


def test_the_bundle_is_in_the_key(cache: ResultCache) -> None:
    ask(fake_engine(cache=cache))
    assert ask(fake_engine(bundle=FakeBundle(manifest_sha256="b" * 64), cache=cache)).source == "generator"


def test_the_requests_own_time_is_in_the_key(cache: ResultCache) -> None:
    engine = fake_engine(cache=cache, clock="request")
    assert ask(engine, event_timestamp="2026-01-01T00:00:00Z").source == "generator"
    assert ask(engine, event_timestamp="2026-01-01T00:00:01Z").source == "generator"
    assert ask(engine, event_timestamp="2026-01-01T00:00:00Z").source == "cache"


def test_a_materialisation_ends_every_entry(cache: ResultCache, clean_redis: str) -> None:
    engine = fake_engine(cache=cache)
    ask(engine)
    with redis.Redis.from_url(clean_redis) as client:
        client.incr(EPOCH_KEY)
    assert ask(engine).source == "generator"
    assert ask(engine).source == "cache"


def test_explained_answers_never_come_from_the_cache_nor_go_there(cache: ResultCache, clean_redis: str) -> None:
    engine = fake_engine(cache=cache)
    assert ask(engine, explain=True).source == "generator"
    with redis.Redis.from_url(clean_redis) as client:
        assert list(client.scan_iter("degre:cache:*")) == []
    ask(engine)
    assert ask(engine, explain=True).source == "generator"


def test_constraints_are_part_of_the_key_and_hits_obey_them(cache: ResultCache, clean_redis: str) -> None:
    engine, pinned = fake_engine(cache=cache), {"constraints": {"pinned": {"0": 3}, "gap": {"by": "brand", "slots": 2}}}
    first, second = ask(engine, **pinned), ask(engine, **pinned)
    assert (first.source, second.source) == ("generator", "cache")
    assert first.ids() == second.ids() == [3, 5, 9]
    with redis.Redis.from_url(clean_redis) as client:
        (key,) = client.scan_iter("degre:cache:*")
        entry = json.loads(client.get(key))
        client.set(key, json.dumps(entry | {"items": [9, 5, 3]}))  # a list, but not with 3 in front
    assert ask(engine, **pinned).source == "generator"


def test_a_list_for_which_standing_constraints_yielded_is_kept_and_says_so(cache: ResultCache) -> None:
    schema = fake_schema("constraints: {quotas: [{by: badge, value: x, min: 1}]}")  # no candidate has it
    engine = fake_engine(bundle=FakeBundle(schema=schema), cache=cache)
    first, second = ask(engine), ask(engine)
    assert (first.source, second.source) == ("generator", "cache")
    assert first.degraded == second.degraded == [YIELDED]


def test_fallbacks_are_not_kept(cache: ResultCache) -> None:
    assert ask(fake_engine(FakeFeatures(fails=True), cache=cache)).source == "fallback_score"
    assert ask(fake_engine(cache=cache)).source == "generator"


def test_entries_expire_at_times_that_differ(cache: ResultCache, clean_redis: str) -> None:
    engine = fake_engine(cache=cache)
    for user in range(20):
        ask(engine, user_id=user)
    with redis.Redis.from_url(clean_redis) as client:
        left_ms = [client.pttl(key) for key in client.scan_iter("degre:cache:*")]
    assert len(left_ms) == 20
    assert all(20_000 < ms <= 33_000 for ms in left_ms)
    assert max(left_ms) - min(left_ms) > 1000


@pytest.mark.parametrize("text", [b"garbage", b'{"epoch": 0}', b'{"epoch": 0, "items": [1, 1], "degraded": []}'])
def test_a_spoilt_entry_is_a_miss(cache: ResultCache, clean_redis: str, text: bytes) -> None:
    engine = fake_engine(cache=cache)
    ask(engine)
    with redis.Redis.from_url(clean_redis) as client:
        (key,) = client.scan_iter("degre:cache:*")
        client.set(key, text)
    assert ask(engine).source == "generator"
    assert ask(engine).source == "cache"


def test_redis_gone_costs_nothing_noticeable() -> None:
    with running_redis() as url:
        engine = fake_engine(cache=ResultCache(url, ttl_seconds=30, timeout_ms=50))
        ask(engine)
        assert ask(engine).source == "cache"
    started = time.perf_counter()
    for _ in range(50):
        assert ask(engine).source == "generator"
    assert time.perf_counter() - started < 0.5


def test_redis_frozen_costs_one_timeout_then_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts connections, never answers
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        engine = fake_engine(cache=ResultCache(url, ttl_seconds=30, timeout_ms=50))
        started = time.perf_counter()
        assert ask(engine).source == "generator"
        first_s = time.perf_counter() - started
        started = time.perf_counter()
        assert ask(engine).source == "generator"
        assert 0.04 < first_s < 0.2
        assert time.perf_counter() - started < 0.04


def test_an_entry_of_ten_items_takes_less_than_half_a_kilobyte(cache: ResultCache, clean_redis: str) -> None:
    """Measured as Redis counts it, key included: what sizes `maxmemory`."""
    key = cache_key("a" * 64, RerankRequest.model_validate_json(json.dumps(REQUEST)), 10)
    cache.put(key, 1, [f"item-{i:08d}" for i in range(10)], ["unknown_items:3"])
    with redis.Redis.from_url(clean_redis) as client:
        assert 100 < client.memory_usage(key) < 512
