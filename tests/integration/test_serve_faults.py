"""Short versions of `degre bench swaps` and `degre bench faults` against two real replicas behind HAProxy."""

from __future__ import annotations

import asyncio
import re
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from urllib.parse import urlsplit

import httpx
import pytest
from serving_server import poll

from degre_prod.config import ServingConfig
from orchestration.bench import breakages, faults
from orchestration.bench.bed import Bed, bed, replica_urls, service
from orchestration.bench.faults import Fault
from orchestration.bench.hang import hanging_engine
from orchestration.bench.swaps import swap_under_load

RATE = 30.0
SECONDS = 1.5


@pytest.fixture(scope="module")
def made() -> Iterator[Bed]:
    with bed(candidates=20, length=5, users=100, items=300, count=400) as small:
        yield small


@pytest.fixture(scope="module")
def url(
    made: Bed,
    ray_cluster: None,  # noqa: ARG001 - joins the session's cluster
    settled_heap: None,  # noqa: ARG001
) -> Iterator[str]:
    with ExitStack() as stack:
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        patched.setattr(faults, "WATCHED_S", 2.5)
        build = partial(hanging_engine, flag=made.folder / "hang")
        yield stack.enter_context(service(made, build=build, replicas=2))


def test_swaps_under_load_fail_nothing_and_mix_nothing(made: Bed, url: str) -> None:
    result = swap_under_load(made, url, 3, RATE, replicas=2)
    assert (result["failed"], result["mixed"], result["strangers"]) == (0, 0, 0)
    assert result["bundles_seen"] == 4


@pytest.mark.parametrize("name", ["redis_frozen", "redis_killed", "corrupt_bundle", "model_hangs", "replica_killed"])
def test_faults_cost_order_never_the_answer(made: Bed, url: str, name: str) -> None:
    fault: Fault = next(f for f in faults.faults(made) if f.name == name)
    row = faults.row(made, url, fault, SECONDS, RATE)
    # Latency is the benchmark's: a busy machine must not fail a test.
    assert (row["non_200"], row["invalid"]) == (0, 0), row
    assert row["reasons_counted_right"] is not False, row
    assert not fault.expected or any(row["reasons"].get(reason) for reason in fault.expected), row
    assert row["best_again_s"] <= 5, row
    if name == "corrupt_bundle":
        assert row["refused_by"] == 2


def answers_by_model(replica: str, body: bytes) -> bool:
    return httpx.post(f"{replica}/v1/rerank", content=body).json()["source"] in ("generator", "cache")


def test_a_burst_far_beyond_capacity_is_shed_in_one_way(made: Bed, url: str) -> None:
    """Five times what two replicas take at once, while nothing gets done: what is not answered is a problem document."""
    # A deadline within which slow cores have opened all the connections: what ends at it makes room for others.
    body = made.requests[0].model_copy(update={"deadline_ms": 4000.0, "user_id": 98}).model_dump_json().encode()
    address = urlsplit(url)
    burst, taken = 640, 2 * ServingConfig().max_ongoing_requests

    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        head = b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        writer.write(head % len(body) + body)
        answer = await reader.read()
        writer.close()
        return answer

    async def together() -> list[bytes]:
        return await asyncio.gather(*(ask() for _ in range(burst)))

    with breakages.model_hangs(made.folder / "hang"):
        answers = Counter(
            re.sub(rb"\r\ndate:[^\r]*", b"", a.split(b"\r\n\r\n")[0].lower()) for a in asyncio.run(together())
        )
    heads = {head: count for head, count in answers.items() if not head.startswith(b"http/1.1 200")}
    assert answers.total() - sum(heads.values()) <= taken
    for head in heads:
        assert head.startswith(b"http/1.1 429"), head
        assert b"content-type: application/problem+json" in head
        assert b"retry-after: 1" in head
    for replica in replica_urls():  # both must have got over it before the next test
        poll(partial(answers_by_model, replica, body))


def test_a_client_that_hangs_up_is_not_worked_for(made: Bed, url: str) -> None:
    def total(sample: str) -> float:
        lines = [line for u in replica_urls() for line in httpx.get(f"{u}/metrics").text.splitlines()]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"{sample} "))

    body = made.requests[0].model_copy(update={"deadline_ms": 10_000.0, "user_id": 99}).model_dump_json().encode()
    address = urlsplit(url)
    before = total("degre_cancelled_total")
    with breakages.model_hangs(made.folder / "hang"):
        with socket.create_connection((str(address.hostname), int(address.port or 0))) as client:
            client.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            poll(lambda: total("degre_ongoing") == 1)
        poll(lambda: total("degre_cancelled_total") == before + 1)
