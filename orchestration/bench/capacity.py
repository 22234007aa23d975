"""`degre bench capacity`: from unit costs (`degre bench unit-costs --json`) and a demand to cores, memory, cells and bytes.

A cell is one service with a Redis, a collector and a share of the users of its own; items are in every cell. All of it is
arithmetic: no figure here is measured, each is a unit cost times what is asked for. docs/scaling.md explains the model.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from degre_prod.config import CollectConfig, ServingConfig
from degre_prod.errors import ConfigurationError, DataError

DAY_S = 86_400.0
REFERENCE = "n=100,L=10"  # what the live service was measured with


@dataclass(frozen=True)
class Demand:
    """What is asked for, and how full things may get. `rate`: requests a second at the peak; `mean_share`: of it, over a day."""

    users: int
    items: int
    rate: float
    candidates: int = 100
    length: int = 10
    mined: int = 100_000
    mean_share: float = 0.5
    busy: float = 0.5
    redis_gb: float = 64.0
    redis_full: float = 0.7


def capacity(costs: dict[str, Any], demand: Demand) -> dict[str, Any]:
    """The plan. Raises ConfigurationError for candidates and length that were not measured, or items that fill a Redis."""
    cell = f"n={demand.candidates},L={demand.length}"
    if cell not in costs["engine_cpu_ms"]:
        raise ConfigurationError(f"{cell} was not measured; there are {'; '.join(costs['engine_cpu_ms'])}")
    service, rate = costs["service"], demand.rate
    around_ms = service["replica_cpu_ms"] - costs["engine_cpu_ms"][REFERENCE]
    replica_ms = costs["engine_cpu_ms"][cell] + around_ms
    waiting_s = _waiting_seconds()
    shared = demand.users * costs["redis_bytes_per_user"] + rate * waiting_s * service["stream_bytes_per_list"]
    everywhere = demand.items * costs["redis_bytes_per_item"]
    room = demand.redis_gb * 1e9 * demand.redis_full - everywhere
    if room <= 0:
        raise ConfigurationError(f"{demand.items} items fill a Redis of {demand.redis_gb:g} GB; give it more memory")
    by = {
        "memory": shared / room,
        "redis_cpu": rate * service["redis_cpu_ms"] / 1000 / demand.busy,
        "collector": rate * service["collector_cpu_s_per_million_lists"] / 1e6 / demand.busy,
    }
    cells = max(1, math.ceil(max(by.values())))
    lists_a_day = rate * demand.mean_share * DAY_S
    return {
        "bench": "capacity",
        "demand": asdict(demand),
        "replica_cpu_ms": round(replica_ms, 3),
        "replica_cores": math.ceil(rate * replica_ms / 1000 / demand.busy),
        "proxy_cores": math.ceil(rate * service["haproxy_cpu_ms"] / 1000 / demand.busy),
        "cells_by": {name: round(value, 2) for name, value in by.items()},
        "cells": cells,
        "rate_a_cell": round(rate / cells, 1),
        "redis_gb_users": round(demand.users * costs["redis_bytes_per_user"] / 1e9, 2),
        "redis_gb_items_a_cell": round(everywhere / 1e9, 2),
        "redis_gb_streams": round(rate * waiting_s * service["stream_bytes_per_list"] / 1e9, 2),
        "redis_gb_a_cell": round((shared / cells + everywhere) / 1e9, 2),
        "log_stream_max_length": math.ceil(rate / cells * waiting_s),
        "log_stream_max_length_default": ServingConfig().log_stream_max_length,
        "http_gbit_s": round(rate * (service["http_bytes_in"] + service["http_bytes_out"]) * 8 / 1e9, 2),
        "redis_gbit_s": round(rate * (service["redis_bytes_in"] + service["redis_bytes_out"]) * 8 / 1e9, 2),
        "lists_a_day": round(lists_a_day),
        "log_tb_a_day": round(lists_a_day * service["parquet_bytes_per_list"] / 1e12, 2),
        "mining_core_hours": round(demand.mined * costs["mining_cpu_s_per_million_requests"] / 1e6 / 3600, 2),
        "measured_on": costs["machine"]["cpu"],
    }


def read_costs(file: Path) -> dict[str, Any]:
    """What `degre bench unit-costs --json` printed; raises DataError when it is something else."""
    try:
        document = json.loads(file.read_text().strip().splitlines()[-1])
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"cannot read unit costs: {error}", file=str(file)) from error
    if not isinstance(document, dict) or document.get("bench") != "unit-costs":
        raise DataError("not the last line of `degre bench unit-costs --json`", file=str(file))
    return document


def _waiting_seconds() -> float:
    """How long a list is in a stream at most, with a collector that keeps running: window, grace, pause between passes."""
    collect = CollectConfig()
    return collect.window_seconds + collect.grace_seconds + collect.every_seconds
