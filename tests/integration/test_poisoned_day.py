"""A day that is wrong is stopped by the gate that is there for it, and the champion serves on; an ordinary day, and one of a
market whose taste has turned by 10°, pass. Gates as they are by default, on whole nights of a small world."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from collected_day import collect_day, rewrite

from degre_prod.artefact import file_digest
from degre_prod.config import GatesConfig, Settings, load_settings
from degre_prod.records import TIMESTAMP
from degre_prod.schema import load_schema
from degre_prod.worlds.simulate import START, simulate
from orchestration.retrain.checks import Period, encode_period, evaluator_check
from orchestration.retrain.outcome import Outcome
from orchestration.retrain.pipeline import retrain
from orchestration.rollout import activate
from orchestration.run import open_run
from serving.plan_store import read_plan

REQUESTS = 1000  # a day
QUICK: dict[str, Any] = {
    "scaling": {"num_workers": 0},
    "evaluator": {
        "width": 16,
        "layers": 1,
        "prefix_state": "attention",
        "min_steps": 120,
        "togo_steps": 30,
        "batch_size": 256,
    },
    "mining": {"requests": 200, "beam_width": 4},
    "generator": {"width": 32, "epochs": 6},
    "judge": {"width": 16, "layers": 1, "epochs": 4, "min_steps": 60},
}


@dataclass(frozen=True)
class Begun:
    """A run whose first bundle serves, and what a later night compares with."""

    run: Path
    url: str
    champion: str


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Begun:
    run = tmp_path_factory.mktemp("poisoned") / "run"
    simulate("mixed", "small", run / "data", train=2400, validation=50, test=50)
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
    outcome = night(run, redis_url)
    assert outcome.status == "done", outcome.reason
    return Begun(run, redis_url, champion(redis_url))


@pytest.fixture
def run(begun: Begun, tmp_path: Path) -> Path:
    """A copy of it, whose champion serves."""
    folder = tmp_path / "run"
    shutil.copytree(begun.run, folder)
    (bundle,) = (b for b in folder.glob("retrain/*/bundle") if file_digest(b / "manifest.json") == begun.champion)
    activate(bundle, begun.url)
    return folder


def night(run: Path, url: str) -> Outcome:
    settings = load_settings(None, QUICK)
    assert settings.gates == GatesConfig()
    return retrain(open_run(run, settings), redis_url=url, activate=True)


def champion(url: str) -> str:
    with redis.Redis.from_url(url) as client:
        plan = read_plan(client)
    assert plan is not None
    return plan.champion.manifest_sha256


def stopped_by(run: Path, begun: Begun, gate: str) -> str:
    """Let a night find the day; it must end at this gate, all others before it hold, and nothing else serve."""
    outcome = night(run, begun.url)
    assert outcome.status == "stopped"
    assert [g.name for g in outcome.gates if not g.passed] == [gate]
    assert champion(begun.url) == begun.champion
    return outcome.gates[-1].reason if gate != "drift" else next(g.reason for g in outcome.gates if g.name == gate)


@pytest.mark.parametrize("degrees", [0.0, 10.0], ids=["ordinary", "taste turned"])
def test_a_day_that_is_right_passes_every_gate(begun: Begun, run: Path, degrees: float) -> None:
    collect_day(run / "data", 1, REQUESTS, degrees=degrees)
    outcome = night(run, begun.url)
    assert outcome.status == "done", outcome.reason
    assert {g.name for g in outcome.gates} == {"data", "drift", "feedback", "evaluator", "value", "bundle"}
    assert champion(begun.url) != begun.champion


def test_half_the_rows_malformed_is_stopped_by_the_data_gate(begun: Begun, run: Path) -> None:
    file = collect_day(run / "data", 1, REQUESTS)
    table = pq.read_table(file)
    shown = table["shown_ids"].to_pylist()
    broken = [[*ids[:-1], ids[0]] if r % 2 else ids for r, ids in enumerate(shown)]
    rewrite(file, {"shown_ids": pa.array(broken, table["shown_ids"].type)})
    assert "50.0% of the rows rejected, at most 5.0% may be; mostly shown_twice" in stopped_by(run, begun, "data")


def test_a_zeroed_feature_is_stopped_by_the_drift_gate(begun: Begun, run: Path) -> None:
    collect_day(run / "data", 1, REQUESTS)
    file = run / "data" / "item_features.parquet"
    table = pq.read_table(file)
    moment = pa.array([START + timedelta(hours=23)] * table.num_rows, TIMESTAMP)
    zeroed = table
    for name, column in {
        "event_timestamp": moment,
        "created_timestamp": moment,
        "quality": pa.array(np.zeros(table.num_rows), table["quality"].type),
    }.items():
        zeroed = zeroed.set_column(zeroed.column_names.index(name), name, column)
    pq.write_table(pa.concat_tables([table, zeroed]), file)
    reason = stopped_by(run, begun, "drift")
    assert "item.quality has one value in all of the newest rows" in reason
    assert "item.price" not in reason


def test_flipped_labels_are_stopped_by_the_feedback_gate_and_would_be_by_the_evaluators(
    begun: Begun, run: Path
) -> None:
    file = collect_day(run / "data", 1, REQUESTS)
    table = pq.read_table(file)
    clicks = [{"click": [1.0 - y for y in row["click"]]} for row in table["feedback"].to_pylist()]
    rewrite(file, {"feedback": pa.array(clicks, table["feedback"].type)})
    assert "click: 3." in stopped_by(run, begun, "feedback")

    # where the rate alone would not tell, the champion's evaluator does
    made = next(p for p in run.glob("retrain/*/evaluator"))
    (poisoned,) = (p for p in run.glob("retrain/*/training_set") if p.parent != made.parent)
    newest = Period(poisoned, load_schema(run / "data"), round((START + timedelta(days=1)).timestamp() * 1e6))
    encoded = encode_period(newest, made.parent / "bundle" / "encoder.json", run / "newest")
    gate = evaluator_check(made, made, encoded, Settings())
    assert not gate.passed
    assert "the champion's evaluator has AUC 0." in gate.reason
    assert gate.figures["champion_rank_quality"] < 0.4
