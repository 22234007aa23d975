"""A service that has run for long beside one just started, under the same load in turn.

A machine's speed changes within minutes by more than a service could creep, so the first requests of a long run and its last
can't be compared on it. Blocks of seconds that alternate between the two can.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from orchestration.bench.bed import until
from orchestration.bench.load import Load
from serving.deploy import wait_until_ready
from serving.ports import free_port
from serving.protocol import RerankRequest

_PROGRAM: Final = "from orchestration.cli import main; main()"
_STOP_S = 30.0
PAIRS = 8
BLOCK = 1000  # requests compared of each block …
LEAD = 150  # … after these, which find connections closed and the item table out of date


@contextmanager
def fresh_service(bundle: Path, redis_url: str, environment: dict[str, str]) -> Iterator[str]:
    """`degre serve` as a process of its own with a Ray of its own; yields its URL, ends with the block.

    `environment`: this process's variables as they were before it served anything itself.
    """
    port = free_port("127.0.0.1")
    command = [sys.executable, "-c", _PROGRAM, "serve", str(bundle), "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command, env=environment | {"DEGRE_REDIS__URL": redis_url}, stdout=said, stderr=subprocess.STDOUT
        )
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(url)
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def alternate(
    aged: str, fresh: str, requests: Sequence[RerankRequest], rate: float, warm_s: float
) -> tuple[list[float], list[float]]:
    """p50 in milliseconds of PAIRS blocks for the aged service and as many for the fresh one, which is warmed first.

    Requests go on where the block before ended, so that no block finds the other's answers in the result cache.
    """
    with Load(fresh, requests, rate) as load:
        time.sleep(warm_s)
    sent = len(load.samples)
    p50s: dict[str, list[float]] = {aged: [], fresh: []}
    for pair in range(PAIRS):
        for url in (aged, fresh) if pair % 2 == 0 else (fresh, aged):
            with Load(url, requests, rate, first=sent) as load:
                until(partial(_answered, load, LEAD + BLOCK), "a block is not over", (LEAD + BLOCK) / rate + _STOP_S)
            sent += len(load.samples)
            samples = sorted(load.samples, key=lambda s: s.due)
            p50s[url].append(median(s.took_ms for s in samples[LEAD:]))
    return p50s[aged], p50s[fresh]


def _answered(load: Load, count: int) -> bool:
    return len(load.samples) >= count


def ratio(aged_ms: Sequence[float], fresh_ms: Sequence[float]) -> float:
    """Median over the pairs of aged over fresh."""
    return median(a / f for a, f in zip(aged_ms, fresh_ms, strict=True))
