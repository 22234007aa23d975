"""`degre bench serving`: the whole service over HTTP against the common way, closed loop, and its tail in open loop."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from degre_prod.config import Settings
from degre_prod.errors import ConfigurationError, ServiceError
from degre_prod.requests import Request
from orchestration.bench.loadgen import Load, Measured, measure
from orchestration.bench.report import machine
from orchestration.bench.world import catalogue, random_bundle, requests, write_dataset

ITEMS, USERS, BODIES = 20_000, 2_000, 1_000
CONNECTIONS = 16
REPEATS = 3
WARM_S, CLOSED_S, OPEN_S, SINGLE_S = 5.0, 6.0, 10.0, 4.0
OPEN_CONNECTIONS = (
    64  # more than ever wait at half load; a request that finds none free still counts from when it was due
)
START_S = 180.0


def bench_serving(candidates: int, length: int) -> dict[str, Any]:
    """Each service alone on the machine with one private Redis and the load generator; the result cache is off.

    Raises ConfigurationError outside a checkout (the common way lies in bench/), ServiceError when one does not start.
    """
    from orchestration.features.materialize import materialize
    from orchestration.redis_server import running_redis
    from serving.deploy import running_service

    script = _script()
    world = catalogue(candidates=candidates, length=length, users=USERS, items=ITEMS)
    bodies = tuple(_body(r, length) for r in requests(world, BODIES, candidates, seed=4))
    with tempfile.TemporaryDirectory(prefix="degre-bench-") as folder, running_redis() as redis_url:
        root = Path(folder)
        random_bundle(world, root / "bundle", candidates)
        dataset = write_dataset(world, root / "data")
        materialize(dataset, root / "registry.db", redis_url)
        with _naive(script, root, dataset, redis_url) as url:
            naive = _closed(f"{url}/v1/rerank", bodies)
        settings = Settings.model_validate({"serving": {"cache": False, "port": 0}})
        with running_service(root / "bundle", settings, redis_url) as url:
            ours = _closed(f"{url}/v1/rerank", bodies)
            trivial = _closed(f"{url}/healthz", ())
            half = ours["throughput"] / 2
            tail = [
                measure(Load(f"{url}/v1/rerank", bodies, OPEN_CONNECTIONS, OPEN_S, half, seed))
                for seed in range(REPEATS)
            ]
    p50, p99 = (median(m.quantile_ms(q) for m in tail) for q in (0.5, 0.99))
    return {
        "bench": "serving",
        "candidates": candidates,
        "length": length,
        "connections": CONNECTIONS,
        "throughput_vs_naive": round(ours["throughput"] / naive["throughput"], 2),
        "p50_vs_naive": round(naive["p50_ms"] / ours["p50_ms"], 2),
        "p50_vs_naive_one_connection": round(naive["one_connection_p50_ms"] / ours["one_connection_p50_ms"], 2),
        "open_loop": {
            "rate": round(half, 1),
            "p50_ms": round(p50, 2),
            "p99_ms": round(p99, 2),
            "p99_over_p50": round(p99 / p50, 2),
            "sent_late_p99_ms": round(median(float(np.quantile(m.late_ms, 0.99)) for m in tail), 2),
            "repeats": [
                {f"p{round(q * 100)}_ms": round(m.quantile_ms(q), 2) for q in (0.5, 0.9, 0.99, 1.0)} for m in tail
            ],
            **_answers(tail),
        },
        "service": ours,
        "naive": naive,
        "http_and_serve_alone": trivial,
        "how": (
            f"private Redis, services one after the other, load generator on the same machine; closed loop {REPEATS} × "
            f"{CLOSED_S:.0f} s after {WARM_S:.0f} s of warming up, open loop {REPEATS} × {OPEN_S:.0f} s, medians; "
            f"{ITEMS} items by Zipf's law, result cache off, item table on, deadline 100 ms"
        ),
        "machine": machine(),
    }


def _closed(url: str, bodies: Sequence[str]) -> dict[str, Any]:
    """Closed loop at CONNECTIONS and at one connection, after warming up."""
    texts = tuple(bodies)
    measure(Load(url, texts, CONNECTIONS, WARM_S))
    runs = [measure(Load(url, texts, CONNECTIONS, CLOSED_S)) for _ in range(REPEATS)]
    single = [measure(Load(url, texts, 1, SINGLE_S)) for _ in range(REPEATS)]
    return {
        "throughput": round(median(m.throughput for m in runs), 1),
        "p50_ms": round(median(m.quantile_ms(0.5) for m in runs), 3),
        "p99_ms": round(median(m.quantile_ms(0.99) for m in runs), 3),
        "one_connection_p50_ms": round(median(m.quantile_ms(0.5) for m in single), 3),
        "one_connection_throughput": round(median(m.throughput for m in single), 1),
        "repeats": [{"throughput": round(m.throughput, 1), "p50_ms": round(m.quantile_ms(0.5), 3)} for m in runs],
        **_answers([*runs, *single]),
    }


def _answers(runs: Sequence[Measured]) -> dict[str, dict[str, int]]:
    statuses: Counter[str] = Counter()
    sources: Counter[str] = Counter()
    for run in runs:
        statuses.update(run.statuses)
        sources.update(run.sources)
    return {"statuses": dict(statuses), "sources": dict(sources)}


def _body(request: Request, length: int) -> str:
    scores = request.scores["upstream"]
    return json.dumps(
        {
            "user_id": request.user_id,
            "candidates": [
                {"id": item, "scores": {"upstream": score}}
                for item, score in zip(request.candidate_ids, scores, strict=True)
            ],
            "context": dict(request.context),
            "length": length,
        }
    )


def _script() -> Path:
    script = Path(__file__).parents[2] / "bench" / "naive_serving.py"
    if not script.is_file():
        raise ConfigurationError(f"{script} is not there: this benchmark needs a checkout of the repository")
    return script


@contextmanager
def _naive(script: Path, root: Path, dataset: Path, redis_url: str) -> Iterator[str]:
    """The common way in a process of its own, gone afterwards."""
    from serving.deploy import NICENESS
    from serving.ports import free_port

    port = free_port("127.0.0.1")
    options = {"bundle": root / "bundle", "dataset": dataset, "registry": root / "registry.db", "redis": redis_url}
    command = [sys.executable, str(script), "--port", str(port)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    # The script imports ray.serve at once, as the documentation's examples do: the token must be there before.
    variables = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    variables |= NICENESS  # as ours: neither side gives way to the load generator
    with (root / "naive.log").open("w+") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=variables
        )
        impatience = threading.Timer(START_S, process.kill)
        impatience.start()
        try:
            assert process.stdout is not None
            if not any(line.strip() == "ready" for line in process.stdout):
                log.seek(0)
                raise ServiceError(f"{script.name} did not start: {log.read()[-500:]}")
            impatience.cancel()
            yield f"http://127.0.0.1:{port}"
        finally:
            impatience.cancel()
            if process.stdin is not None:
                process.stdin.close()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
