"""`degre bench features`: one request's features by our reader, cold and warm, against Feast's `get_online_features`."""

from __future__ import annotations

import math
import tempfile
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from degre_prod.requests import FeatureColumns
from degre_prod.schema import FeatureTable
from orchestration.bench.report import machine
from orchestration.bench.timing import interleaved_ms
from orchestration.bench.world import EVENT_US, catalogue, requests, write_dataset
from serving.features import FeatureRead, FeatureReader

ITEMS, USERS = 100_000, 5_000
WARM_REQUESTS = 3_000  # asked before the warm figure is read
REQUESTS = 400
REPEATS, CALLS = 5, 60
TIMEOUT_MS = 1000.0
TTL_SECONDS = 600.0  # longer than the run: the hit rate is then that of the popularity alone


def bench_features(candidates: int) -> dict[str, Any]:
    """The same requests through each way, in turn, against one private Redis; milliseconds are medians.

    Cold: every item from Redis. Warm: the replica's item table after 3,000 requests with Zipf candidates out of 100,000
    items. The common way joins the user to every item row.
    """
    from orchestration.features.materialize import materialize
    from orchestration.features.store import open_store
    from orchestration.redis_server import running_redis

    world = catalogue(candidates=candidates, length=10, users=USERS, items=ITEMS)
    asked = requests(world, REQUESTS + WARM_REQUESTS, candidates)
    with tempfile.TemporaryDirectory() as folder, running_redis() as url:
        dataset = write_dataset(world, Path(folder) / "data")
        registry = Path(folder) / "registry.db"
        materialize(dataset, registry, url)
        store = open_store(dataset, registry, url)
        service = store.get_feature_service("rerank_v1")

        def common(index: int) -> dict[str, Any]:
            request = asked[index % REQUESTS]
            rows = [{"user_id": request.user_id, "item_id": item} for item in request.candidate_ids]
            answer = store.get_online_features(features=service, entity_rows=rows, full_feature_names=True)
            values: dict[str, Any] = answer.to_dict()
            return values

        with (
            closing(FeatureReader(world.schema, url, TIMEOUT_MS)) as cold,
            closing(FeatureReader(world.schema, url, TIMEOUT_MS, item_cache_ttl_seconds=TTL_SECONDS)) as warm,
        ):

            def read(reader: FeatureReader, index: int) -> FeatureRead:
                request = asked[index % len(asked)]
                return reader.read(request.user_id, request.candidate_ids, EVENT_US)

            for index in range(WARM_REQUESTS):
                read(warm, REQUESTS + index)
            assert warm.table is not None
            before = warm.table.hits, warm.table.misses
            times = interleaved_ms(
                {
                    "get_online_features": common,
                    "cold": lambda i: read(cold, i % REQUESTS),
                    "warm": lambda i: read(warm, i % REQUESTS),
                },
                repeats=REPEATS,
                calls=CALLS,
            )
            hits, misses = warm.table.hits - before[0], warm.table.misses - before[1]
            equal = all(_equal(common(i), read(reader, i), world) for i in range(20) for reader in (cold, warm))
    ms = {name: median(values) for name, values in times.items()}
    return {
        "bench": "features",
        "candidates": candidates,
        "get_online_features_ms": round(ms["get_online_features"], 3),
        "cold_ms": round(ms["cold"], 3),
        "warm_ms": round(ms["warm"], 3),
        "speedup_cold": round(ms["get_online_features"] / ms["cold"], 2),
        "speedup_warm": round(ms["get_online_features"] / ms["warm"], 2),
        "equal": equal,
        "warm_hit_rate": round(hits / (hits + misses), 4),
        "items": ITEMS,
        "repeats": {name: [round(one, 3) for one in values] for name, values in times.items()},
        "how": f"private Redis on loopback, {REPEATS} repeats of {CALLS} calls in turn, median of medians",
        "machine": machine(),
    }


def _equal(theirs: dict[str, list[Any]], ours: FeatureRead, world: Any) -> bool:
    return _same(theirs, ours.user, "user", world.schema.user) and _same(theirs, ours.items, "item", world.schema.item)


def _same(theirs: dict[str, list[Any]], ours: FeatureColumns, role: str, table: FeatureTable) -> bool:
    for f in table.features:
        values = theirs[f"{role}_features__{f.name}"][: ours.rows]
        mine = ours.values[f.name]
        if isinstance(mine, np.ndarray):
            missing: Any = math.nan if f.kind == "numeric" else [math.nan] * (f.size or 0)
            want = np.array([missing if v is None else v for v in values], np.float32)
            if not np.array_equal(mine, want, equal_nan=True):
                return False
        elif list(mine) != values:
            return False
    return True
