"""Served lists on their way to Redis: order kept, bounded, counted, caught up after an outage."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import redis
from serving_fakes import fake_engine
from serving_server import poll

from degre_prod.constraints.spec import Constraints
from orchestration.redis_server import running_redis
from serving.event_log import ServedLog, stream_key
from serving.metrics import Metrics
from serving.protocol import Candidate, RerankRequest


@contextmanager
def served_log(url: str, buffer: int = 1000) -> Iterator[tuple[ServedLog, Metrics]]:
    metrics = Metrics()
    log = ServedLog(url, buffer=buffer, stream_max_length=100_000, timeout_ms=50, metrics=metrics)
    try:
        yield log, metrics
    finally:
        log.close()


def append(log: ServedLog, *request_ids: str) -> None:
    engine = fake_engine()
    for name in request_ids:
        prepared = engine.prepare(RerankRequest(request_id=name, user_id=1, candidates=[Candidate(id=1)]))
        log.append(prepared, engine.answer(prepared).response)


def fate(metrics: Metrics, name: str) -> float:
    return metrics.value("degre_served_log_total", fate=name)


def logged(url: str) -> list[str]:
    with redis.Redis.from_url(url) as client:
        entries = [entry for shard in range(4) for entry in client.xrange(f"degre:served:{shard}")]
    return [json.loads(fields[b"record"])["request_id"] for _, fields in entries]


def test_every_list_is_written_to_its_shard(clean_redis: str) -> None:
    names = [f"r{i}" for i in range(600)]
    with served_log(clean_redis) as (log, metrics):
        append(log, *names)
    assert fate(metrics, "written") == 600
    assert sorted(logged(clean_redis)) == sorted(names)
    with redis.Redis.from_url(clean_redis) as client:
        (found,) = [
            key
            for key in (f"degre:served:{s}" for s in range(4))
            if any(json.loads(f[b"record"])["request_id"] == "r7" for _, f in client.xrange(key))
        ]
    assert found == stream_key("served", "r7")


def test_a_full_buffer_drops_and_counts() -> None:
    with running_redis() as gone:
        pass
    with served_log(gone, buffer=5) as (log, metrics):
        append(log, *(f"r{i}" for i in range(12)))
        assert fate(metrics, "dropped") == 7
        poll(lambda: fate(metrics, "failed") > 0)
        assert fate(metrics, "written") == 0
    assert fate(metrics, "dropped") == 12  # what was still waiting at the end


def test_an_outage_shorter_than_the_buffer_loses_nothing(clean_redis: str) -> None:
    with redis.Redis.from_url(clean_redis) as client, served_log(clean_redis) as (log, metrics):
        append(log, "before")
        poll(lambda: fate(metrics, "written") == 1)
        client.execute_command("CLIENT", "PAUSE", "400", "ALL")
        append(log, *(f"r{i}" for i in range(20)))
        poll(lambda: fate(metrics, "written") == 21)
    assert set(logged(clean_redis)) == {"before", *(f"r{i}" for i in range(20))}
    assert fate(metrics, "dropped") == 0


def test_what_nobody_will_write_counts_as_dropped(clean_redis: str) -> None:
    engine = fake_engine()
    prepared = engine.prepare(RerankRequest(request_id="odd", user_id=1, candidates=[Candidate(id=1)]))
    with served_log(clean_redis) as (log, metrics):
        log.append(prepared, engine.answer(prepared).response, [object()])  # type: ignore[list-item]
        append(log, "even")
    assert logged(clean_redis) == ["even"]
    append(log, "after the end")
    assert (fate(metrics, "written"), fate(metrics, "dropped")) == (1, 2)


def test_the_record_holds_the_requests_own_constraints(clean_redis: str) -> None:
    engine = fake_engine()
    asked = {
        "constraints": {"exclude": [2], "pinned": {"0": 3}},
        "user_id": 1,
        "candidates": [{"id": i} for i in (1, 2, 3)],
    }
    with served_log(clean_redis) as (log, _):
        for name, body in (("ruled", asked), ("free", {**asked, "constraints": None})):
            prepared = engine.prepare(RerankRequest(request_id=name, **body))
            log.append(prepared, engine.answer(prepared).response)
    with redis.Redis.from_url(clean_redis) as client:
        entries = [json.loads(f[b"record"]) for s in range(4) for _, f in client.xrange(f"degre:served:{s}")]
        added = sum(int(client.get(f"degre:added:served:{s}") or 0) for s in range(4))
    found = {e["request_id"]: e["constraints"] for e in entries}
    assert found["free"] is None
    assert Constraints.model_validate_json(found["ruled"]) == Constraints(exclude=(2,), pinned={0: 3})
    assert added == 2
