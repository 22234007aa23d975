"""`degre bench quality`, small enough for a test, and the join it makes do with."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from helpers import small_schema, write_dataset
from typer.testing import CliRunner

from degre_prod.config import Settings
from degre_prod.errors import ConfigurationError, DataError
from degre_prod.rows import read_rows
from degre_prod.schema import load_schema
from degre_prod.worlds.simulate import simulate
from orchestration.bench.direct_join import join_by_id
from orchestration.bench.quality import SeedWork, make_plan
from orchestration.bench.quality_steps import SeedRun
from orchestration.bench.quality_summary import average, judge_agreement
from orchestration.bench.quality_variants import VARIANTS
from orchestration.cli import app
from orchestration.features.training_set import build_training_set

SETTINGS = {
    "evaluator": {
        "prefix_state": "additive",
        "width": 16,
        "epochs": 4,
        "min_steps": 100,
        "togo_steps": 60,
        "batch_size": 128,
    },
    "generator": {"width": 16, "epochs": 4},
    "judge": {"width": 16, "layers": 1, "epochs": 4, "min_steps": 100},
}


def bench(folder: Path, *more: str) -> dict[str, Any]:
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
    assert set(methods) == {"pointwise", "goalrank", "degre", "greedy_evaluator", "beam_evaluator"}
    for method in methods.values():
        low, high = method["interval"]
        assert 0 < low <= method["mean"] <= high <= 1
        assert 0 <= method["hit_rate_1_percent"] <= method["hit_rate_10_percent"] <= 1
        assert method["regret"] == pytest.approx(1 - method["mean"])
        assert len(method["by_seed"]) == 2
        assert 0 < method["judged"] < 2
    assert methods["degre"]["minus_degre"] == {"mean": 0.0, "interval": [0.0, 0.0]}
    assert 0 < methods["goalrank"]["evaluator_calls"] <= methods["degre"]["evaluator_calls"] == first["budget_calls"]
    assert methods["beam_evaluator"]["calls_per_answer"] > methods["greedy_evaluator"]["calls_per_answer"] > 0
    assert 0.8 < first["true_beam"]["mean"] <= 1
    assert first["true_beam"]["width"] == 8
    assert 0 <= first["judge_agreement"]["pairs"] <= 10
    evaluator = first["evaluator"]
    assert [group["of"] for group in evaluator["detail"]["by_edit_distance"]] == [0, 1, 2, 3, 4]
    assert evaluator["rmse_over_sd"] == evaluator["rmse_over_pooled_sd"] < evaluator["rmse_over_sd_within"]
    curves = first["curves"]
    assert [point["share"] for point in curves["degre"]] == [0.3, 1.0]
    assert 0.28 * first["budget_calls"] < curves["degre"][0]["evaluator_calls"] <= 0.3 * first["budget_calls"]
    assert "<svg" in (tmp_path / "out" / "quality.svg").read_text()
    assert (tmp_path / "out" / "quality.png").read_bytes().startswith(b"\x89PNG")
    made = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("made_from.json")}
    assert bench(tmp_path, "--methods", "pointwise,goalrank", "--shares", "0.3,1") == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("made_from.json")} == made
    more = bench(tmp_path, "--methods", "pointwise,input_order")
    assert more["methods"]["pointwise"] == methods["pointwise"]
    new = {p.parent.name for p in (tmp_path / "out").rglob("made_from.json")} - {p.parent.name for p in made}
    assert {name.split("-")[0] for name in new} == {"input_order"}


def test_a_variant_is_a_row_with_an_evaluator_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(settings: Settings) -> Settings:
        return settings.model_copy(update={"evaluator": settings.evaluator.model_copy(update={"head": "step"})})

    monkeypatch.setitem(VARIANTS, "by_steps", steps)
    document = bench(tmp_path, "--methods", "by_steps", "--seeds", "1", "--logs", "400")
    assert set(document["methods"]) == {"by_steps", "degre", "greedy_evaluator", "beam_evaluator"}
    assert document["methods"]["by_steps"]["by_seed"] != document["methods"]["degre"]["by_seed"]
    assert set(document["variants"]) == {"by_steps"}
    assert document["variants"]["by_steps"]["spearman"] != document["evaluator"]["spearman"]
    assert document["curves"]["by_steps"][0]["evaluator_calls"] > 0
    made = [p.name.split("-")[0] for p in (tmp_path / "out" / "seed-0").iterdir()]
    assert (made.count("evaluator"), made.count("mined"), made.count("judge")) == (2, 2, 1)


def test_what_a_seed_has_to_learn_can_be_sent_to_another_process() -> None:
    work = SeedWork(
        SeedRun(Path("seed-0"), make_plan("mixed", "small", settings=Settings(), logs=9, mined=9, test=2), 0), ()
    )
    assert pickle.loads(pickle.dumps(work)) == work


def test_a_part_of_the_log_is_its_newest_part(tmp_path: Path) -> None:
    plan = make_plan("mixed", "small", settings=Settings(), logs=60, mined=20, test=10)
    whole = SeedRun(tmp_path, plan, 0)
    part = SeedRun(tmp_path, replace(plan, log_share=0.25), 0)
    random = SeedRun(tmp_path, replace(plan, exploration=0.5), 0)
    train = whole.split("train")
    assert part.split("train").request_ids == train.request_ids[-15:]
    np.testing.assert_array_equal(part.split("train").arrays["shown"], train.arrays["shown"][-15:])
    assert part.split("test").request_ids == whole.split("test").request_ids
    assert part.reference == whole.reference != random.reference
    np.testing.assert_array_equal(np.load(random.reference / "best.npy"), np.load(whole.reference / "best.npy"))
    assert (random.split("train").arrays["shown"] != train.arrays["shown"]).any()


def test_the_judge_agrees_where_it_orders_telling_pairs_alike() -> None:
    methods = {
        name: {"mean": mean, "judged": judged}
        for name, mean, judged in [("a", 0.9, 0.8), ("b", 0.87, 0.7), ("c", 0.6, 0.75), ("d", 0.3, 0.1)]
    }
    # telling: a-c, a-d, b-c, b-d, c-d; b-c is judged the other way round
    assert judge_agreement(methods) == {"share": 0.8, "pairs": 5, "true_gap_above": 0.05}
    assert judge_agreement({"a": methods["a"], "b": methods["b"]})["share"] is None


def test_averages_follow_the_documents_shape() -> None:
    one = {"a": 1, "b": [1.0, {"c": 3.0}], "form": "additive", "on": True}
    other = {"a": 2, "b": [2.0, {"c": 5.0}], "form": "attention", "on": True}
    assert average([one, other]) == {"a": 1.5, "b": [1.5, {"c": 4.0}], "form": ["additive", "attention"], "on": True}


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
