"""`degre bench quality --trivago`: small enough for a test; who is drawn together, and what counts as first."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from degre_prod.datasets.trivago_source import COLUMNS
from orchestration.bench.quality_trivago import ROWS, by_user
from orchestration.cli import app

DAY_1 = 1_541_548_800  # 2018-11-07T00:00:00Z
SETTINGS = {
    "evaluator": {"prefix_state": "additive", "width": 8, "epochs": 2, "min_steps": 10, "togo_steps": 4},
    "mining": {"requests": 40, "beam_width": 2},
    "generator": {"width": 8, "epochs": 2},
}


def events(path: Path) -> Path:
    """A session of two click-outs every twenty minutes for two days; one click in two is on the first item."""
    rng, rows = random.Random(0), []
    for session in range(140):
        for step in (1, 2):
            shown = [str(item) for item in rng.sample(range(60), 12)]
            row = dict.fromkeys(name for name, _, _ in COLUMNS)
            row |= {"user_id": f"u{session % 30}", "session_id": f"s{session}", "action_type": "clickout item"}
            row |= {"timestamp": DAY_1 + 1200 * session + step, "step": step, "platform": "DE", "device": "mobile"}
            row |= {"reference": shown[0] if rng.random() < 0.5 else rng.choice(shown), "impressions": "|".join(shown)}
            rows.append(row | {"prices": "|".join(str(rng.randrange(20, 300)) for _ in shown)})
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([(n, t) for n, t, _ in COLUMNS])), path)
    return path


def test_every_method_is_measured_on_the_last_day_and_nothing_twice(tmp_path: Path) -> None:
    config, out = tmp_path / "config.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump(SETTINGS))
    arguments = ["bench", "quality", "--trivago", str(events(tmp_path / "events.parquet")), "--seeds", "2"]
    arguments += ["--out", str(out), "--config", str(config), "--json"]

    def bench() -> dict[str, object]:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        return dict(json.loads(done.stdout.splitlines()[-1]))

    document = bench()
    methods = document["methods"]
    assert isinstance(methods, dict)
    assert tuple(methods) == ROWS
    for method in methods.values():
        low, high = method["interval"]
        assert 0 < low <= method["mrr"] <= high <= 1
        assert 0 < method["mrr_not_first"] < method["mrr"] or method["mrr"] < 0.4
        assert np.mean(method["by_seed"]) == pytest.approx(method["mrr"])
    for fixed in ("input_order", "last_interacted_first"):
        assert len(set(methods[fixed]["by_seed"])) == 1
    assert len(set(methods["degre"]["by_seed"])) == 2
    assert methods["input_order"]["mrr_not_first"] < 0.5
    assert document["test_requests"] == document["clicks"] == 136
    assert document["without_a_click"] == 0
    paired = document["generator_minus_lambdarank"]
    assert isinstance(paired, dict)
    assert paired["mean"] == pytest.approx(methods["degre"]["mrr"] - methods["lambdarank"]["mrr"])
    assert paired["interval"][0] <= paired["mean"] <= paired["interval"][1]
    made = {p: p.stat().st_mtime_ns for p in out.rglob("made_from.json")}
    assert bench() == document
    assert {p: p.stat().st_mtime_ns for p in out.rglob("made_from.json")} == made


def test_intervals_draw_users_with_all_their_requests() -> None:
    """Forty users whose ten requests are all alike tell as much as forty requests do."""
    users = np.repeat(np.arange(40), 10)
    values = np.repeat((np.arange(40) % 2).astype(float), 10)
    together = by_user({"a": values, "b": 1 - values}, users)
    apart = by_user({"a": values}, np.arange(400))

    def width(interval: list[float]) -> float:
        return interval[1] - interval[0]

    assert 2.5 < width(together["a"]) / width(apart["a"]) < 4  # √10
    assert together["a"][0] == pytest.approx(1 - together["b"][1])  # the same draws
