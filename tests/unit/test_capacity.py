"""The capacity model: its arithmetic on round costs, and docs/scaling.md, which quotes it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from degre_prod.errors import ConfigurationError, DataError
from orchestration.bench.capacity import Demand, capacity, read_costs
from orchestration.cli import app

DOCS = Path(__file__).parents[2] / "docs"
COSTS: dict[str, Any] = {
    "bench": "unit-costs",
    "redis_bytes_per_user": 100.0,
    "redis_bytes_per_item": 1000.0,
    "engine_cpu_ms": {"n=100,L=10": 1.0, "n=50,L=5": 0.5},
    "service": {
        "replica_cpu_ms": 2.0,
        "haproxy_cpu_ms": 0.1,
        "redis_cpu_ms": 0.1,
        "http_bytes_in": 4000,
        "http_bytes_out": 1000,
        "redis_bytes_in": 5000,
        "redis_bytes_out": 5000,
        "stream_bytes_per_list": 1000.0,
        "collector_cpu_s_per_million_lists": 100.0,
        "parquet_bytes_per_list": 500.0,
    },
    "mining_cpu_s_per_million_requests": 36_000,
    "machine": {"cpu": "one"},
}


def test_each_figure_is_a_unit_cost_times_the_demand() -> None:
    plan = capacity(COSTS, Demand(users=10_000_000, items=1_000_000, rate=10_000))
    assert plan["replica_cores"] == 40  # 10,000 × 2 ms, half busy
    assert plan["proxy_cores"] == 2
    # users 1 GB; streams 10,000/s × 2,220 s × 1 kB = 22.2 GB; room in a Redis .7 × 64 GB less 1 GB of items
    assert plan["cells_by"] == {"memory": pytest.approx(23.2 / 43.8, abs=0.01), "redis_cpu": 2.0, "collector": 2.0}
    assert plan["cells"] == 2
    assert plan["redis_gb_a_cell"] == pytest.approx(12.6)
    assert plan["log_stream_max_length"] == 11_100_000  # 5,000/s for 2,220 s
    assert (plan["http_gbit_s"], plan["redis_gbit_s"]) == (0.4, 0.8)
    assert plan["log_tb_a_day"] == pytest.approx(0.22, abs=0.01)
    assert plan["mining_core_hours"] == 1.0


def test_other_lists_cost_what_their_engine_does_and_the_same_around_it() -> None:
    plan = capacity(COSTS, Demand(users=1, items=1, rate=1000, candidates=50, length=5))
    assert plan["replica_cpu_ms"] == 1.5
    assert plan["cells"] == 1


def test_what_cannot_be_planned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="n=7,L=10 was not measured; there are n=100,L=10"):
        capacity(COSTS, Demand(users=1, items=1, rate=1, candidates=7))
    with pytest.raises(ConfigurationError, match="fill a Redis of 1 GB"):
        capacity(COSTS, Demand(users=1, items=1_000_000, rate=1, redis_gb=1))
    (tmp_path / "other.json").write_text('{"bench": "decode"}')
    with pytest.raises(DataError, match="unit-costs"):
        read_costs(tmp_path / "other.json")


def test_the_page_quotes_the_measurement_and_the_plan() -> None:
    """Every figure that docs/scaling.md marks as measured or planned is the one in unit-costs.json or follows from it."""
    page, costs = (DOCS / "scaling.md").read_text(), read_costs(DOCS / "unit-costs.json")
    [command] = re.findall(r"^degre (bench capacity .*)$", page, re.MULTILINE)
    words = command.replace("docs/unit-costs.json", str(DOCS / "unit-costs.json")).split()
    done = CliRunner().invoke(app, [*words, "--json"])
    known = {"plan": json.loads(done.stdout), "costs": costs}
    quoted = re.findall(r"\| ([^|]*) \| `((?:plan|costs)\.[^`]+)`", page)
    assert len(quoted) > 25
    for said, way in quoted:
        value: Any = known
        for step in way.split("."):
            value = value[step]
        assert float(said.split()[0].replace(",", "")) == pytest.approx(value), way
