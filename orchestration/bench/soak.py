"""`degre bench soak`: half the highest load for a long time; neither memory nor latency may creep up."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from statistics import mean, median
from typing import Any

from degre_prod.config import ServingConfig
from degre_prod.errors import ConfigurationError
from orchestration.bench.aged import alternate, fresh_service, ratio
from orchestration.bench.bed import bed, replica_pids, service
from orchestration.bench.load import Load, Sample, percentile, reasons
from orchestration.bench.report import machine
from serving.client import AsyncRerankClient
from serving.heap import settle_heap
from serving.protocol import RerankRequest

CONNECTIONS = 16
BURST_S = 8.0
WARM_S = 40.0  # under the load itself, before anything is compared: allocator, caches, branch predictors
MOST_RATE = 150.0  # the load stays moderate on any machine
SETTLE_SHARE = 0.25  # of the time, until memory is looked at: 5 of 20 minutes
EVERY_S = 2.0
COMPARED = 1000


@dataclass(frozen=True, slots=True)
class Reading:
    """The replica's process: minutes since the load began to count, resident bytes, seconds of processor time so far."""

    minute: float
    resident_bytes: int
    cpu_s: float


def bench_soak(minutes: float) -> dict[str, Any]:
    """Open loop at half the throughput of 16 busy connections; the replica's memory and processor time every two seconds.

    Counted from WARM_S after the load began. `memory_growth`: the mean of the last tenth of the time over that of the
    tenth after the first quarter, less 1. `p50_last_vs_first`: of the last and the first 1,000 requests, which a machine
    changes as much as a service could; so in the end the service takes turns with one just started (`p50_aged_vs_fresh`).
    Raises ConfigurationError below a minute.
    """
    if minutes < 1:
        raise ConfigurationError("--minutes: at least 1 is needed for a comparison")
    # More than are sent within a cache entry's life, so that every request is computed.
    different = ceil(MOST_RATE * ServingConfig().cache_ttl_seconds * 1.25)
    outside = dict(os.environ)
    with bed(count=different) as made, service(made) as url:
        settle_heap()
        highest = asyncio.run(_throughput(url, made.requests))
        rate = min(highest / 2, MOST_RATE)
        (pid,) = replica_pids()
        readings: list[Reading] = []
        with Load(url, made.requests, rate) as load:
            time.sleep(WARM_S)
            started = time.monotonic()
            while (now := time.monotonic() - started) < minutes * 60:
                readings.append(_read(pid, now / 60))
                time.sleep(EVERY_S)
        with fresh_service(made.first.path, made.redis_url, outside) as fresh_url:
            aged_ms, fresh_ms = alternate(url, fresh_url, made.requests, rate, WARM_S)
    samples = sorted((s for s in load.samples if s.due >= started), key=lambda s: s.due)
    by_minute = [[s for s in samples if m <= (s.due - started) / 60 < m + 1] for m in range(int(minutes))]
    first, last = (_p50(part) for part in (samples[:COMPARED], samples[-COMPARED:]))
    p50s = [_p50(part) for part in by_minute]
    cpus = [_cpu_s(readings, m, m + 1) / max(len(part), 1) * 1000 for m, part in enumerate(by_minute)]
    settled, end = (
        _resident(readings, a * minutes, b * minutes) for a, b in ((SETTLE_SHARE, SETTLE_SHARE + 0.1), (0.9, 1.0))
    )
    return {
        "bench": "soak",
        "minutes": minutes,
        "warm_seconds": WARM_S,
        "requests": len(samples),
        "failed": sum(not s.answered or not s.valid for s in samples),
        "highest_throughput": round(highest, 1),
        "rate": round(rate, 1),
        "memory_settled_mb": round(settled / 1e6, 1),
        "memory_end_mb": round(end / 1e6, 1),
        "memory_growth": round(end / settled - 1, 4),
        "memory_mb_by_minute": [round(_resident(readings, m, m + 1) / 1e6, 1) for m in range(int(minutes))],
        "cpu_ms_by_minute": [round(cpu, 3) for cpu in cpus],
        "p50_ms_by_minute": [round(p50, 2) for p50 in p50s],
        "p50_first_ms": round(first, 3),
        "p50_last_ms": round(last, 3),
        "p50_last_vs_first": round(last / first, 3),
        "p50_aged_ms": [round(p50, 2) for p50 in aged_ms],
        "p50_fresh_ms": [round(p50, 2) for p50 in fresh_ms],
        "p50_aged_vs_fresh": round(ratio(aged_ms, fresh_ms), 3),
        "p99_ms": round(percentile([s.took_ms for s in samples], 0.99), 2),
        "sent_late_p99_ms": round(percentile([s.late_ms for s in samples], 0.99), 2),
        "reasons": dict(reasons(samples)),
        "machine": machine(),
    }


async def _throughput(url: str, requests: Sequence[RerankRequest]) -> float:
    """Answers a second of CONNECTIONS clients that each ask again as soon as they are answered."""
    answered = 0
    end = time.monotonic() + BURST_S

    async def ask(client: AsyncRerankClient, first: int) -> None:
        nonlocal answered
        index = first
        while time.monotonic() < end:
            await client.rerank(requests[index % len(requests)].model_copy(update={"deadline_ms": 1000.0}))
            answered += 1
            index += CONNECTIONS

    async with AsyncRerankClient(url) as client:
        await asyncio.gather(*(ask(client, c) for c in range(CONNECTIONS)))
    return answered / BURST_S


def _read(pid: int, minute: float) -> Reading:
    process = Path(f"/proc/{pid}")
    pages = int((process / "statm").read_text().split()[1])
    user, system = (process / "stat").read_text().rpartition(")")[2].split()[11:13]  # the name may hold anything
    return Reading(minute, pages * os.sysconf("SC_PAGE_SIZE"), (int(user) + int(system)) / os.sysconf("SC_CLK_TCK"))


def _between(readings: Sequence[Reading], start: float, end: float) -> list[Reading]:
    return [r for r in readings if start <= r.minute < end]


def _resident(readings: Sequence[Reading], start: float, end: float) -> float:
    return mean(r.resident_bytes for r in _between(readings, start, end))


def _cpu_s(readings: Sequence[Reading], start: float, end: float) -> float:
    """Scaled to the whole time between the two minutes, as readings do not fall on them exactly."""
    part = _between(readings, start, end)
    return (part[-1].cpu_s - part[0].cpu_s) * (end - start) / (part[-1].minute - part[0].minute)


def _p50(samples: Sequence[Sample]) -> float:
    return median(s.took_ms for s in samples)
