"""`degre bench soak`: half the highest load for a long time; neither memory nor latency may creep up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from degre_prod.errors import ConfigurationError
from orchestration.bench.bed import bed, replica_pids, service
from orchestration.bench.load import Load, Sample, percentile, reasons
from orchestration.bench.report import machine
from serving.client import AsyncRerankClient
from serving.protocol import RerankRequest

CONNECTIONS = 16
BURST_S = 8.0
MOST_RATE = 150.0  # the load stays moderate on any machine
SETTLE_SHARE = 0.25  # of the time, until memory is looked at: 5 of 20 minutes
EVERY_S = 2.0
COMPARED = 1000
PAGE_BYTES = 4096


def bench_soak(minutes: float) -> dict[str, Any]:
    """Open loop at half the throughput of 16 busy connections; resident memory of the replica every two seconds.

    `memory_growth`: the mean of the last tenth of the time over that of the tenth after the first quarter, less 1.
    `p50_last_vs_first`: of the last and the first 1,000 requests. Raises ConfigurationError below a minute.
    """
    if minutes < 1:
        raise ConfigurationError("--minutes: at least 1 is needed for a comparison")
    with bed() as made, service(made) as url:
        highest = asyncio.run(_throughput(url, made.requests))
        rate = min(highest / 2, MOST_RATE)
        (pid,) = replica_pids()
        memory: list[tuple[float, int]] = []
        started = time.monotonic()
        with Load(url, made.requests, rate) as load:
            while (now := time.monotonic() - started) < minutes * 60:
                memory.append((now / 60, _resident_bytes(pid)))
                time.sleep(EVERY_S)
    samples = sorted(load.samples, key=lambda s: s.due)
    first, last = (_p50(part) for part in (samples[:COMPARED], samples[-COMPARED:]))
    settled, end = (
        _mean_between(memory, a * minutes, b * minutes) for a, b in ((SETTLE_SHARE, SETTLE_SHARE + 0.1), (0.9, 1.0))
    )
    return {
        "bench": "soak",
        "minutes": minutes,
        "requests": len(samples),
        "failed": sum(not s.answered or not s.valid for s in samples),
        "highest_throughput": round(highest, 1),
        "rate": round(rate, 1),
        "memory_settled_mb": round(settled / 1e6, 1),
        "memory_end_mb": round(end / 1e6, 1),
        "memory_growth": round(end / settled - 1, 4),
        "memory_mb_by_minute": {str(m): round(_mean_between(memory, m, m + 1) / 1e6, 1) for m in range(int(minutes))},
        "p50_first_ms": round(first, 3),
        "p50_last_ms": round(last, 3),
        "p50_last_vs_first": round(last / first, 3),
        "p99_ms": round(percentile([s.took_ms for s in samples], 0.99), 2),
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


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES


def _mean_between(memory: Sequence[tuple[float, int]], start: float, end: float) -> float:
    return mean(value for minute, value in memory if start <= minute < end)


def _p50(samples: Sequence[Sample]) -> float:
    return median(s.took_ms for s in samples)
