"""What the gates look at, computed from files: usable rows, held-out figures, lists, the judge's own traffic, off-policy data."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import small_schema, write_dataset
from tiny_bundle import START_US, TinyWorld, tiny_world

from degre_prod.config import Settings
from degre_prod.encoding.encoder import load_encoder
from degre_prod.encoding.splits import encode_splits
from degre_prod.errors import DataError, MismatchError
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.models.member import EvaluatorSpec
from degre_prod.rows import TrainingRow
from degre_prod.schema import DataSchema
from degre_prod.training.modules import load_judge, save_module
from orchestration.retrain.checks import (
    Period,
    bundle_check,
    data_check,
    drift_check,
    evaluator_check,
    split_period,
    train_judge_step,
    value_check,
)
from orchestration.retrain.made_lists import coverage, make_lists, upstream_lists
from orchestration.retrain.off_policy import paired_estimates
from orchestration.retrain.period import Chances, logged_chances
from serving.exploration import explore

NOW_US = START_US + 10**12
SETTINGS = Settings(
    scaling={"num_workers": 0}, judge={"width": 8, "layers": 1, "epochs": 1, "min_steps": 1, "batch_size": 8}
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    return tiny_world(tmp_path_factory.mktemp("checks"))


@pytest.fixture(scope="module")
def encoded(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoded") / "encoded"
    encode_splits(rows_of(world), schema_of(world), folder)
    (folder / "made_from.json").write_text(json.dumps({"made_from": "test"}))
    return folder


def rows_of(world: TinyWorld) -> Path:
    return world.dataset.parent / "training"


def schema_of(world: TinyWorld) -> DataSchema:
    return world.bundle.schema


def whole(world: TinyWorld) -> Period:
    return Period(rows_of(world), schema_of(world))


def test_usable_rows_are_accepted_and_confirmed_ones(tmp_path: Path) -> None:
    def row(r: int, **changes: object) -> dict[str, object]:
        log = {"request_id": f"r{r}", "event_timestamp": START_US + r, "user_id": 1, "candidate_ids": [1, 2, 3]}
        return {**log, "shown_ids": [1, 2], "feedback": {"click": [0.0, 1.0]}, "confirmed": True, **changes}

    schema = small_schema("int64")
    log = [row(0), row(1, confirmed=None), row(2, confirmed=False), row(3, shown_ids=[1, 1]), row(4), row(5)]
    file = write_dataset(tmp_path / "data", schema, [], [], log) / "impressions.parquet"
    gate = data_check([file], schema, SETTINGS, now_us=NOW_US, earlier_requests=2000)
    assert not gate.passed
    assert gate.figures["requests"] == 4
    assert gate.figures["rejected_shown_twice"] == 1
    clean = write_dataset(tmp_path / "clean", schema, [], [], [row(0), row(1)]) / "impressions.parquet"
    assert data_check(clean, schema, SETTINGS, now_us=NOW_US, earlier_requests=2000).passed
    assert "2 usable requests" in data_check(clean, schema, SETTINGS, now_us=NOW_US).reason
    pq.write_table(pq.read_table(clean).drop_columns(["feedback"]), clean)
    broken = data_check(clean, schema, SETTINGS, now_us=NOW_US)
    assert not broken.passed
    assert "required column is missing" in broken.reason


def test_periods_hold_their_rows_and_splits_agree_with_the_encoding(world: TinyWorld, encoded: Path) -> None:
    periods = [split_period(rows_of(world), schema_of(world), split) for split in ("train", "validation", "test")]
    assert sum(p.count() for p in periods) == whole(world).count() == 60
    for split, period in zip(("train", "validation", "test"), periods, strict=True):
        known = json.loads((encoded / split / "request_ids.json").read_text())
        assert [r.request.request_id for r in period.rows()] == known
    assert len(whole(world).rows(at_most=25)) == 20
    nothing = Period(rows_of(world), schema_of(world), NOW_US)
    with pytest.raises(DataError, match="no row in the period `now`"):
        drift_check(whole(world), nothing, SETTINGS)
    with pytest.raises(DataError, match="no request in the period"):
        bundle_check(world.bundle.path, None, nothing, SETTINGS)


def test_an_evaluator_is_only_asked_about_arrays_of_its_own_encoder(encoded: Path, tmp_path: Path) -> None:
    layout = load_encoder(encoded / "encoder.json").layout()
    spec = EvaluatorSpec(layout, "additive", 8, 1, (False,), ((1.0,) * 3,), mean_utility=1.0)
    for name, of in (("own", spec), ("other", replace(spec, layout=replace(layout, num={**layout.num, "item": 2})))):
        save_module(LookaheadEvaluator(of), of, tmp_path / name, "evaluator")
    gate = evaluator_check(tmp_path / "own", None, encoded / "test", SETTINGS)
    assert "too little held-out feedback" in gate.reason  # nothing was clicked here
    with pytest.raises(MismatchError, match="encode them through the encoder"):
        evaluator_check(tmp_path / "own", tmp_path / "other", encoded / "test", SETTINGS)


def test_the_judge_learns_from_explored_requests_alone_once_there_are_enough(
    world: TinyWorld, encoded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    table = pq.read_table(rows_of(world) / "part-00000.parquet")
    chances = [[0.5] * len(shown) if r % 2 else None for r, shown in enumerate(table["shown_ids"].to_pylist())]
    at = table.column_names.index("propensity")
    table = table.set_column(at, "propensity", pa.array(chances, pa.list_(pa.float32())))
    pq.write_table(table, rows / "part-00000.parquet")
    (rows / "made_from.json").write_text(json.dumps({"made_from": "explored"}))
    known = logged_chances(rows)
    assert len(known) == 30
    assert all(k.whole is None and k.slots is not None for k in known.values())
    everything = train_judge_step(encoded, rows, tmp_path / "everything", SETTINGS)
    assert json.loads((everything / "traffic.json").read_text()) == {"requests": 48, "explored_alone": False}
    monkeypatch.setattr("orchestration.retrain.judge.ENOUGH", 20)
    alone = train_judge_step(encoded, rows, tmp_path / "alone", SETTINGS)
    assert json.loads((alone / "traffic.json").read_text()) == {"requests": 24, "explored_alone": True}
    assert load_judge(alone).spec.layout == load_encoder(alone / "encoder.json").layout()
    before = (alone / "judge.safetensors").stat().st_mtime_ns
    train_judge_step(encoded, rows, tmp_path / "alone", SETTINGS)
    assert (alone / "judge.safetensors").stat().st_mtime_ns == before
    gate = value_check(world.bundle.path, world.bundle.path, alone, whole(world), SETTINGS)
    assert gate.passed
    assert gate.figures["judged_difference"] == 0.0


def test_lists_are_those_of_the_bundle_checked_and_timed(world: TinyWorld) -> None:
    rows = world.rows
    (made,) = make_lists([world.bundle], rows, 3)
    for row, items in zip(rows, made.lists_RL.tolist(), strict=True):
        expected = world.bundle.answer(row.request, row.user, row.items, 3)
        assert [row.request.candidate_ids[c] for c in items if c >= 0] == expected
    assert made.invalid == 0
    assert made.median_ms > 0
    upstream = upstream_lists(rows, 3)
    assert 0 < coverage(rows, upstream) <= 1
    gate = bundle_check(world.bundle.path, world.bundle.path, whole(world), SETTINGS)
    assert gate.passed, gate.reason
    assert gate.figures["coverage"] == gate.figures["champion_coverage"] == coverage(rows, made.lists_RL)
    assert gate.figures["diversity"] > 0


def test_off_policy_estimates_find_a_difference_from_what_the_champion_explored(world: TinyWorld) -> None:
    """The first item alone is clicked where it is candidate 1, and the candidate's lists have that one first."""
    row = next(r for r in world.rows if len(r.request.candidate_ids) >= 4)
    n, share, chance = len(row.request.candidate_ids), 0.2, random.Random(0)
    rows: list[TrainingRow] = []
    known: dict[str, Chances] = {}
    for r in range(6000):
        explored = explore([0, 1, 2], n, share, chance)
        clicks = np.array([[float(explored.order[0] == 1), 0.0, 0.0]], np.float32)
        name = f"x{r}"
        request = replace(row.request, request_id=name)
        rows.append(replace(row, request=request, shown_T=np.array(explored.order), feedback_OT=clicks))
        known[name] = Chances(np.array(explored.propensity), None, "champion")
    champion, candidate = np.tile([0, 1, 2], (6000, 1)), np.tile([1, 0, 2], (6000, 1))
    nothing, weights = np.zeros((6000, 3)), np.full((1, 3), 2.0)
    estimates = paired_estimates(rows, known, "champion", (candidate, nothing), (champion, nothing), weights)
    assert set(estimates) == {"ips", "snips", "dr"}
    for estimate in estimates.values():
        assert estimate.low - 1e-9 <= 2.0 <= estimate.high + 1e-9  # one click, worth 2
        assert 100 < estimate.effective_samples < 1000
    assert paired_estimates(rows, known, "another", (candidate, nothing), (champion, nothing), weights) == {}
    # propensities that say another list was planned, a cached one: how far the log reaches isn't known
    other = paired_estimates(rows, known, "champion", (candidate, nothing), (candidate[:, ::-1], nothing), weights)
    assert all(estimate.effective_samples == 0 for estimate in other.values())
