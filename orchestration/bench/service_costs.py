"""What one request costs a service under load: processor time by process, Redis's commands, bytes on the wire and in streams."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from orchestration.bench.loadgen import Load, measure
from serving.event_log import SHARDS, added_key, shard_key

if TYPE_CHECKING:
    import redis

WARM_S = 5.0


def measure_service(
    url: str,
    redis_url: str,
    bodies: tuple[str, ...],
    pids: Mapping[str, Sequence[int]],
    *,
    seconds: float,
    connections: int,
    rounds: int = 1,
    warm_s: float = WARM_S,
) -> dict[str, Any]:
    """Costs of one request in closed loop, from the counters of the processes `pids` and of Redis before and after.

    Of processor time the least of the rounds: whatever else runs on the cores only adds. Redis's figures hold what the
    replica does on the side (the plan, the log of served lists), shared out over the requests.
    """
    import redis

    measure(Load(f"{url}/v1/rerank", bodies, connections, warm_s))
    with redis.Redis.from_url(redis_url) as client:
        told = [_round(url, client, bodies, pids, seconds, connections) for _ in range(rounds)]
        stream = _stream_bytes(client)
    sent, received = bytes_on_the_wire(url, bodies[0])
    least = {name: min(one[name] for one in told) for name in told[0] if name.endswith("_cpu_ms")}
    return {
        **told[-1],
        **least,
        "rounds": told,
        "http_bytes_in": sent,
        "http_bytes_out": received,
        "stream_bytes_per_list": round(stream, 1),
    }


def _round(
    url: str,
    client: redis.Redis,
    bodies: tuple[str, ...],
    pids: Mapping[str, Sequence[int]],
    seconds: float,
    connections: int,
) -> dict[str, Any]:
    cpu, counters = {name: _cpu_s(of) for name, of in pids.items()}, _counters(client)
    load = measure(Load(f"{url}/v1/rerank", bodies, connections, seconds))
    count = len(load.latencies_ms)
    spent = {name: _cpu_s(of) - cpu[name] for name, of in pids.items()}
    grown = {name: value - counters[name] for name, value in _counters(client).items()}
    return {
        "requests_per_s": round(load.throughput, 1),
        "statuses": load.statuses,
        "sources": load.sources,
        **{f"{name}_cpu_ms": round(s / count * 1000, 4) for name, s in spent.items()},
        "redis_cpu_ms": round(grown["cpu_s"] / count * 1000, 4),
        "redis_commands": round(grown["commands"] / count, 2),
        "redis_bytes_in": round(grown["bytes_in"] / count),
        "redis_bytes_out": round(grown["bytes_out"] / count),
    }


def processes(name: str, word: str = "") -> list[int]:
    """Ids of the processes of this name that run now and whose command line holds the word."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                if (place / "comm").read_text().strip() == name and word.encode() in (place / "cmdline").read_bytes():
                    found.append(int(place.name))
            except OSError:
                continue  # it has ended
    return sorted(found)


def bytes_on_the_wire(url: str, text: str) -> tuple[int, int]:
    """Bytes of one request and of its answer, heads included, without TLS."""
    place = urlsplit(url)
    body = text.encode()
    head = (
        f"POST /v1/rerank HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    received = 0
    with socket.create_connection((place.hostname, place.port), timeout=10) as connection:
        connection.sendall(head.encode() + body)
        while part := connection.recv(65536):
            received += len(part)
    return len(head) + len(body), received


def _cpu_s(pids: Sequence[int]) -> float:
    """Processor seconds of these processes so far."""
    ticks = 0
    for pid in pids:
        user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        ticks += int(user) + int(system)
    return ticks / os.sysconf("SC_CLK_TCK")


def _counters(client: redis.Redis) -> dict[str, float]:
    cpu, stats = client.info("cpu"), client.info("stats")
    return {
        "cpu_s": cpu["used_cpu_sys"] + cpu["used_cpu_user"],
        "commands": stats["total_commands_processed"],
        "bytes_in": stats["total_net_input_bytes"],
        "bytes_out": stats["total_net_output_bytes"],
    }


def _stream_bytes(client: redis.Redis) -> float:
    """Bytes that one served list takes in its stream; 0 while none is there."""
    keys = [shard_key("served", shard) for shard in range(SHARDS)]
    size = sum(int(client.memory_usage(key, samples=0) or 0) for key in keys)
    count = sum(int(client.xlen(key)) for key in keys)
    added = sum(int(client.get(added_key("served", shard)) or 0) for shard in range(SHARDS))
    return size / min(count, added) if count and added else 0.0
