"""`degre bench loop-kills --kills N`: whatever dies, the training rows are those of a run in which nothing died.

    collector   killed with SIGKILL before its k-th call to the file system or to Redis; k spread over all there are
    redis       killed with SIGKILL at the collector's k-th call, while lists and feedback come in; restarted on its file
    pipeline    a night of `degre retrain` killed at a random moment of each step in turn
    mining      a mining worker, or the driver, killed at a random moment
    training    a training worker of the Ray Train group killed at a random moment

Each is started again and must end with the same rows (hash), and have gone on where it stood. No part of the product knows of
this: the calls are counted and the process is killed by what this benchmark puts around them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from orchestration.bench.report import machine

SHARES = {"collector": 0.4, "redis": 0.12, "pipeline": 0.28, "mining": 0.1, "training": 0.1}


def shares(kills: int) -> dict[str, int]:
    """How many of `kills` each part gets: at least one each as far as they go, then by SHARES."""
    given = dict.fromkeys(SHARES, 0)
    for _ in range(kills):
        given[max(SHARES, key=lambda part: SHARES[part] / (given[part] + 0.5))] += 1
    return given


def bench_loop_kills(
    folder: Path,
    kills: dict[str, int],
    *,
    lists: int = 400,
    workers: int = 2,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Kill and compare; works in `folder` (new or empty). `kills` by part, as `shares` gives them; `workers`: of the groups
    that train and mine, at least one for `training`."""
    from orchestration.bench.collector_kills import kill_collector, kill_redis
    from orchestration.bench.mining_kills import bench_kills
    from orchestration.bench.night_kills import kill_nights
    from orchestration.bench.training_kills import kill_training

    random = np.random.default_rng(seed)
    parts: dict[str, Callable[[Path, int], dict[str, Any]]] = {
        "collector": lambda place, count: kill_collector(place, count, lists, random, say),
        "redis": lambda place, count: kill_redis(place, count, lists, random, say),
        "pipeline": lambda place, count: kill_nights(place, count, random, say),
        "mining": lambda place, count: _mining(bench_kills(place, count, workers=workers, requests=600, say=say)),
        "training": lambda place, count: kill_training(place, count, workers, random, say),
    }
    found: dict[str, Any] = {}
    for part, run in parts.items():
        if count := kills.get(part, 0):
            place = folder / part
            place.mkdir(parents=True)
            say(f"{part}: {count} kills")
            found[part] = run(place, count)
    return {
        "kills": sum(part["kills"] for part in found.values()),
        "same": all(part["same"] for part in found.values()),
        "resumed": all(part["resumed"] for part in found.values()),
        **found,
        "machine": machine(),
    }


def _mining(found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "same": found["files_equal"], "resumed": found["shards_recomputed"] == 0}
