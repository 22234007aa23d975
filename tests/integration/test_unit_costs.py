"""`degre bench unit-costs` on a tiny scale: what it counts is what was done. No figure is judged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import httpx
import pytest
import redis
from serving_fakes import fake_engine, fake_schema
from serving_server import HttpServer, poll

from orchestration.bench import unit_costs
from orchestration.bench.service_costs import bytes_on_the_wire, measure_service, processes
from serving.event_log import added_key

BODY = json.dumps({"user_id": 1, "candidates": [{"id": i} for i in (5, 9, 3)], "deadline_ms": 5000})


def test_a_service_is_charged_with_what_it_did(clean_redis: str, http_server: HttpServer) -> None:
    with http_server(fake_engine(), clean_redis) as url, redis.Redis.from_url(clean_redis) as client:
        pids = {"replica": [os.getpid()]}
        told = measure_service(url, clean_redis, (BODY,), pids, seconds=0.5, connections=2, rounds=2, warm_s=0.3)
        poll(lambda: sum(int(client.get(added_key("served", s)) or 0) for s in range(4)) > 10)
    assert [set(one["statuses"]) for one in told["rounds"]] == [{"200"}, {"200"}]
    assert told["replica_cpu_ms"] == min(one["replica_cpu_ms"] for one in told["rounds"])
    assert told["http_bytes_in"] > len(BODY)
    assert told["http_bytes_out"] > 100
    assert 0 < told["replica_cpu_ms"] < 1000
    assert told["redis_commands"] > 0
    assert told["redis_bytes_in"] > len(BODY)  # the served list, which holds the candidates
    assert told["stream_bytes_per_list"] > 0


def test_bytes_are_those_on_the_wire(clean_redis: str, http_server: HttpServer) -> None:
    with http_server(fake_engine(), clean_redis) as url:
        sent, received = bytes_on_the_wire(url, BODY)
        longer = bytes_on_the_wire(url, BODY + " " * 50)
    assert longer[0] in (sent + 50, sent + 51)  # Content-Length may have a digit more
    assert abs(longer[1] - received) < 40  # timings and the request's id vary


def test_bytes_of_users_and_items_come_out_of_redis() -> None:
    user = unit_costs.bytes_per_entity("user", 400)
    item = unit_costs.bytes_per_entity("item", 400)
    assert 100 < user < item < 2000  # four features and nine


def test_processor_time_is_read_for_every_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"REQUESTS": 20, "REPEATS": 2, "CATALOGUE": 60}.items():
        monkeypatch.setattr(unit_costs, name, value)
    table = unit_costs.engine_cpu_ms((10, 40), (3,))
    assert set(table) == {"n=10,L=3", "n=40,L=3"}
    assert all(0 < ms < 1000 for ms in table.values())
    assert 0 < unit_costs.mining_cpu_s(4) < 10


def test_collecting_is_charged_to_the_lists_collected(
    clean_redis: str, http_server: HttpServer, tmp_path: Path
) -> None:
    (tmp_path / "schema.yaml").write_text(fake_schema().to_yaml())
    with http_server(fake_engine(), clean_redis) as url, httpx.Client() as client:
        for _ in range(12):
            assert client.post(f"{url}/v1/rerank", content=BODY).status_code == 200
    told = unit_costs.collecting(clean_redis, tmp_path)  # the service has written what it had when it stopped
    assert told["collected_lists"] == 12
    assert told["collector_cpu_s_per_million_lists"] > 0
    assert 100 < told["parquet_bytes_per_list"] < 100_000


def test_processes_are_found_by_name() -> None:
    with open(f"/proc/{os.getpid()}/comm") as own:
        name = own.read().strip()
    assert os.getpid() in processes(name)
    assert os.getpid() not in processes(name, "no such word")
    assert not processes("no such process")
