"""`degre bench unit-costs`: what one user, item, request and mined request cost. docs/scaling.md plans with these figures.

The catalogue is the benchmarks' (orchestration.bench.world): 4 features a user, 9 an item, ids as integers.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from degre_prod.config import ServingConfig
from orchestration.bench.bed import bed, replica_pids, service
from orchestration.bench.report import machine
from orchestration.bench.service_costs import measure_service, processes
from orchestration.bench.timing import one_core
from orchestration.bench.world import EVENT_US, catalogue, random_bundle, requests, write_dataset

ENTITIES = 20_000  # users, and items, whose bytes are counted
CANDIDATES, LENGTHS = (50, 100, 200), (5, 10, 20)
REQUESTS, REPEATS = 50, 40  # of one cell of the table: many short ones, so that some fall between what else runs
CATALOGUE = 5_000  # users and items that the requests are about
SERVICE = (100, 10)  # candidates and length of the live service
SECONDS, CONNECTIONS, ROUNDS = 5.0, 4, 6
MINED = 128


def bench_unit_costs(say: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """All four measurements, one after the other; about four minutes on two cores. Units are in the names."""
    say("bytes in Redis")
    memory = {role: bytes_per_entity(role, ENTITIES) for role in ("user", "item")}
    say("processor time by candidates and length")
    table = engine_cpu_ms(CANDIDATES, LENGTHS)
    say("the live service")
    live = live_service(*SERVICE)
    say("mining")
    mined = mining_cpu_s(MINED)
    return {
        "bench": "unit-costs",
        "redis_bytes_per_user": round(memory["user"], 1),
        "redis_bytes_per_item": round(memory["item"], 1),
        "engine_cpu_ms": table,
        "service": live,
        "mining_cpu_s_per_million_requests": round(mined * 1e6),
        "how": (
            f"{ENTITIES} users and as many items of the benchmarks' catalogue, used_memory of a private Redis before and after; "
            f"engine: parse, features, encode, decode, answer in one thread, processor time, the least of {REPEATS} × {REQUESTS} "
            f"requests; service: one replica, {CONNECTIONS} connections in closed loop, {ROUNDS} × {SECONDS:g} s, result "
            f"cache off, processor time by process, its least; mining: large mixed world, additive state, default settings, one core"
        ),
        "machine": machine(),
    }


def bytes_per_entity(role: str, count: int) -> float:
    """Bytes of Redis's memory that one user's or item's hash takes, its share of the key table included."""
    import redis

    from orchestration.features.materialize import materialize
    from orchestration.redis_server import running_redis

    few = 10
    sizes = []
    for many in (few, few + count):
        users, items = (many, few) if role == "user" else (few, many)
        world = catalogue(candidates=few, length=few, users=users, items=items)
        with tempfile.TemporaryDirectory() as folder, running_redis() as url:
            materialize(write_dataset(world, Path(folder) / "data"), Path(folder) / "registry.db", url, progress=False)
            with redis.Redis.from_url(url) as client:
                sizes.append(float(client.info("memory")["used_memory"]))
    return (sizes[1] - sizes[0]) / count


def engine_cpu_ms(candidates: tuple[int, ...], lengths: tuple[int, ...]) -> dict[str, float]:
    """Processor milliseconds of one request in the engine, by `n=…,L=…`; everything but HTTP and the event log.

    The cells are measured in turn, and the least of the repeats counts: whatever else runs on the cores only adds.
    """
    from orchestration.features.materialize import materialize
    from orchestration.redis_server import running_redis
    from serving.clock import fixed_clock
    from serving.engine import Engine
    from serving.features import FeatureReader
    from serving.protocol import RerankRequest

    most = max(candidates)
    # Of one catalogue; the list's length is the schema's, and with it the graph's.
    worlds = {n: catalogue(candidates=most, length=n, users=CATALOGUE, items=CATALOGUE) for n in lengths}
    first = worlds[lengths[0]]
    settings = ServingConfig(cache=False, deadline_ms=10_000.0)
    asked = {n: requests(first, REQUESTS, n, seed=n) for n in candidates}
    bodies = {(n, length): [body(r, length) for r in asked[n]] for n in candidates for length in lengths}
    with tempfile.TemporaryDirectory() as name, running_redis() as url:
        folder = Path(name)
        materialize(write_dataset(first, folder / "data"), folder / "registry.db", url, progress=False)
        bundles = {length: random_bundle(world, folder / f"bundle-{length}", most) for length, world in worlds.items()}
        with one_core(), closing(FeatureReader(first.schema, url, 1000.0, item_cache_ttl_seconds=600.0)) as reader:
            engines = {
                n: Engine(bundle, reader, None, settings, fixed_clock(EVENT_US)) for n, bundle in bundles.items()
            }

            def seconds(length: int, texts: list[bytes]) -> float:
                engine, started = engines[length], time.process_time()
                for text in texts:
                    prepared = engine.prepare(RerankRequest.model_validate_json(text))
                    engine.answer(prepared).response.model_dump_json(exclude_none=True).encode()
                return (time.process_time() - started) / len(texts)

            for (_, length), texts in bodies.items():  # fills the replica's table
                seconds(length, texts)
            repeats = [{cell: seconds(cell[1], texts) for cell, texts in bodies.items()} for _ in range(REPEATS)]
    least = {cell: min(repeat[cell] for repeat in repeats) * 1000 for cell in bodies}
    return {f"n={n},L={length}": round(ms, 4) for (n, length), ms in least.items()}


def live_service(candidates: int, length: int) -> dict[str, Any]:
    """One replica behind HAProxy and its Redis under load: processor time by process, commands and bytes a request; then
    what it costs to collect the lists that were served."""
    different = 3_000
    with bed(candidates=candidates, length=length, count=different) as made:
        with service(made, cache=False) as url:
            ours = str(Path(os.environ["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent)
            pids = {"replica": replica_pids(), "haproxy": processes("haproxy", ours)}
            texts = tuple(r.model_dump_json(exclude_none=True) for r in made.requests)
            told = measure_service(
                url, made.redis_url, texts, pids, seconds=SECONDS, connections=CONNECTIONS, rounds=ROUNDS
            )
        return told | collecting(made.redis_url, made.folder / "data")


def collecting(redis_url: str, dataset: Path) -> dict[str, float]:
    """Processor seconds of the collector a million lists, without feedback, and bytes of a collected list on disk."""
    import redis

    from degre_prod.config import CollectConfig
    from orchestration.collect.collector import FOLDER, collect

    with redis.Redis.from_url(redis_url) as client:
        started = time.process_time()
        count = collect(client, dataset, CollectConfig(), flush=True)
        spent = time.process_time() - started
    size = sum(file.stat().st_size for file in (dataset / FOLDER).rglob("*.parquet"))
    return {
        "collected_lists": count,
        "collector_cpu_s_per_million_lists": round(spent / count * 1e6, 1),
        "parquet_bytes_per_list": round(size / count, 1),
    }


def mining_cpu_s(count: int) -> float:
    """Processor seconds that mining one request takes on one core: n = 50, L = 10, K = 8, additive state, one member."""
    import torch

    from degre_prod.config import MiningConfig
    from degre_prod.mining.mine import mine_requests
    from orchestration.bench.mining import make_bed

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, one_core(), torch.inference_mode():
        made = make_bed(Path(folder), count)
        settings = MiningConfig()
        parts = [np.arange(count)[i : i + settings.chunk_size] for i in range(0, count, settings.chunk_size)]
        figures = []
        for _ in range(REPEATS):
            started = time.process_time()
            for part in parts:
                mine_requests(made.models["additive"], made.encoded, part, settings)
            figures.append((time.process_time() - started) / count)
    return min(figures)


def body(request: Any, length: int) -> bytes:
    """The request as a caller sends it."""
    scores = request.scores["upstream"]
    candidates = [{"id": i, "scores": {"upstream": s}} for i, s in zip(request.candidate_ids, scores, strict=True)]
    document = {"user_id": request.user_id, "candidates": candidates, "context": dict(request.context)}
    return json.dumps(document | {"length": length}, separators=(",", ":")).encode()
