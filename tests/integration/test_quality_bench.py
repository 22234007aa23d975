"""`degre bench quality`, small enough for a test, and the join it makes do with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from helpers import small_schema, write_dataset
from typer.testing import CliRunner

from degre_prod.errors import ConfigurationError, DataError
from degre_prod.rows import read_rows
from degre_prod.schema import load_schema
from degre_prod.worlds.simulate import simulate
from orchestration.bench.direct_join import join_by_id
from orchestration.cli import app
from orchestration.features.training_set import build_training_set

SETTINGS = {
    "evaluator": {"width": 16, "epochs": 4, "min_steps": 100, "togo_steps": 60, "batch_size": 128},
    "generator": {"width": 16, "epochs": 4},
}


def bench(folder: Path, *more: str) -> dict[str, object]:
    config = folder / "config.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    config.write_text(yaml.safe_dump(SETTINGS))
    arguments = ["bench", "quality", "--world", "mixed", "--size", "small", "--seeds", "2", "--logs", "800"]
    arguments += ["--mined", "60", "--test", "40", "--out", str(folder / "out"), "--config", str(config), "--json"]
    done = CliRunner().invoke(app, [*arguments, *more])
    assert done.exit_code == 0, done.output
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_the_bench_measures_and_does_nothing_twice(tmp_path: Path) -> None:
    first = bench(tmp_path, "--methods", "pointwise,goalrank", "--shares", "0.3,1")
    methods = first["methods"]
    assert isinstance(methods, dict)
    assert set(methods) == {"pointwise", "goalrank", "degre", "greedy_evaluator", "beam_evaluator"}
    for method in methods.values():
        low, high = method["interval"]
        assert 0 < low <= method["mean"] <= high <= 1
        assert 0 <= method["hit_rate_1_percent"] <= method["hit_rate_10_percent"] <= 1
        assert method["regret"] == pytest.approx(1 - method["mean"])
        assert len(method["by_seed"]) == 2
    assert methods["degre"]["minus_degre"] == {"mean": 0.0, "interval": [0.0, 0.0]}
    assert 0 < methods["goalrank"]["evaluator_calls"] <= methods["degre"]["evaluator_calls"] == first["budget_calls"]
    assert methods["beam_evaluator"]["calls_per_answer"] > methods["greedy_evaluator"]["calls_per_answer"] > 0
    curves = first["curves"]
    assert isinstance(curves, dict)
    assert [point["share"] for point in curves["degre"]] == [0.3, 1.0]
    assert curves["degre"][0]["evaluator_calls"] == pytest.approx(0.3 * curves["degre"][1]["evaluator_calls"], rel=0.01)
    assert "<svg" in (tmp_path / "out" / "quality.svg").read_text()
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("made_from.json")}
    assert bench(tmp_path, "--methods", "pointwise,goalrank", "--shares", "0.3,1") == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("made_from.json")} == made
    more = bench(tmp_path, "--methods", "pointwise,input_order")
    assert isinstance(more["methods"], dict)
    assert more["methods"]["pointwise"] == methods["pointwise"]
    new = {p.parent.name for p in (tmp_path / "out").rglob("made_from.json")} - {p.parent.name for p in made}
    assert new == {"input_order"}


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [("--methods", "pointwise,nonsense", "nonsense"), ("--shares", "2", "shares"), ("--world", "flat", "flat")],
)
def test_what_cannot_be_measured_is_refused_by_name(tmp_path: Path, option: str, value: str, says: str) -> None:
    done = CliRunner().invoke(app, ["bench", "quality", option, value, "--out", str(tmp_path)])
    assert isinstance(done.exception, ConfigurationError)
    assert says in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_the_direct_join_gives_the_rows_of_the_point_in_time_join(tmp_path: Path) -> None:
    simulate("mixed", "small", tmp_path / "data", train=30, validation=5, test=5)
    build_training_set(tmp_path / "data", tmp_path / "registry.db", tmp_path / "feast", progress=False)
    (tmp_path / "direct").mkdir()
    join_by_id(tmp_path / "data", tmp_path / "direct")
    schema = load_schema(tmp_path / "data")
    pairs = list(zip(read_rows(tmp_path / "feast", schema), read_rows(tmp_path / "direct", schema), strict=True))
    assert len(pairs) == 40
    for one, other in pairs:
        assert repr(one.request) == repr(other.request)
        assert one.shown_T.tolist() == other.shown_T.tolist()
        for role in ("user", "items"):
            for name, values in getattr(one, role).values.items():
                np.testing.assert_array_equal(values, getattr(other, role).values[name])


def test_the_direct_join_refuses_features_that_change(tmp_path: Path) -> None:
    versions = [{"user_id": 1, "event_timestamp": t, "created_timestamp": t, "amount": float(t)} for t in (1, 2)]
    dataset = write_dataset(tmp_path / "data", small_schema("int64"), versions, [], [])
    assert pq.read_table(dataset / "user_features.parquet").num_rows == 2
    with pytest.raises(DataError, match="two rows"):
        join_by_id(dataset, tmp_path)
