"""`degre retrain` on a small world: whole nights, nights that die at each step, nights that a gate stops."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
import yaml
from collected_day import collect_day, rewrite

from degre_prod.bundle.load import load_bundle
from degre_prod.bundle.manifest import read_manifest
from degre_prod.config import load_settings
from degre_prod.schema import load_schema
from degre_prod.worlds.simulate import simulate
from orchestration.bench.dying import children
from orchestration.registry import open_registry
from orchestration.retrain.champion import Champion, find_champion
from orchestration.retrain.outcome import Outcome
from orchestration.retrain.pipeline import retrain
from orchestration.retrain.state import State
from orchestration.retrain.warm import decide_start
from orchestration.rollout import activate
from orchestration.run import open_run
from serving.plan_store import read_plan

SMALL: dict[str, Any] = {
    "scaling": {"num_workers": 0},
    "evaluator": {"width": 8, "epochs": 2, "min_steps": 1, "togo_steps": 2, "prefix_state": "additive"},
    "mining": {"requests": 60, "beam_width": 2, "keep": 2, "shard_size": 20},
    "generator": {"width": 8, "epochs": 2},
    "judge": {"width": 8, "epochs": 1, "min_steps": 1},
    # networks this small say little: what gates let through is tested where they are
    "gates": {
        "min_requests": 100,
        "max_calibration_error": 1.0,
        "min_rank_quality": 0.0,
        "min_champion_rank_quality": 0.0,
        "max_value_loss": 9.0,
        "max_latency_ratio": 99.0,
        "min_coverage_ratio": 0.0,
        "min_diversity_ratio": 0.0,
    },
}
STEPS = (
    *("data gate", "validate", "training set", "drift gates", "encode", "evaluator", "evaluator gate", "mine"),
    *("generator", "bundle", "judge", "value gate", "bundle gate", "register", "activate"),
)


def night(run: Path, url: str | None, **changes: Any) -> Outcome:
    settings = load_settings(None, SMALL | changes)
    return retrain(open_run(run, settings), redis_url=url, activate=url is not None)


@dataclass(frozen=True)
class First:
    """A run after its first night, which began with nothing but the data set's own log."""

    run: Path
    url: str
    outcome: Outcome


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> First:
    run = tmp_path_factory.mktemp("loop") / "run"
    simulate("mixed", "small", run / "data", train=700, validation=50, test=50)
    empty(redis_url)
    return First(run, redis_url, night(run, redis_url))


@pytest.fixture
def run(first: First, tmp_path: Path) -> Path:
    """A copy of the run of `first`, whose champion serves."""
    return copied(first, tmp_path / "run")


def copied(first: First, run: Path) -> Path:
    shutil.copytree(first.run, run)
    empty(first.url)
    activate(run / "retrain" / str(first.outcome.id) / "bundle", first.url)
    return run


def empty(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.flushdb()


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file."""
    files = (f for f in folder.rglob("*") if f.is_file())
    return {str(f.relative_to(folder)): (f.stat().st_size, f.stat().st_mtime_ns) for f in files}


def test_the_first_night_needs_no_champion(first: First) -> None:
    outcome = first.outcome
    assert (outcome.status, outcome.activated, outcome.champion) == ("done", True, None), outcome.reason
    assert outcome.history["requests"] == outcome.history["new"] == 800
    assert [g.name for g in outcome.gates] == ["data", "evaluator", "value", "bundle"]  # nothing to have drifted from
    assert set(outcome.steps) == {"collect", *STEPS} - {"drift gates"}
    assert outcome.bundle is not None
    loaded = load_bundle(outcome.bundle)
    with redis.Redis.from_url(first.url) as client:
        plan = read_plan(client)
    assert plan is not None
    assert plan.champion.manifest_sha256 == loaded.manifest_sha256
    registry = open_registry(first.run / "mlflow.db", loaded.manifest.dataset)
    champion = registry.alias("champion")
    assert champion is not None
    assert champion.manifest_sha256 == loaded.manifest_sha256
    assert champion.lineage["parent_bundle"] == "none"
    assert set(json.loads(champion.lineage["data_files"])) >= {"impressions.parquet", "item_features.parquet"}
    assert registry.alias("challenger") is None
    page = (outcome.bundle.parent / "report.html").read_text()
    assert all(f"{gate.name}: holds" in page for gate in outcome.gates)
    assert "everything from nothing" in page
    timeline = json.loads((outcome.bundle.parent / "timeline.json").read_text())
    assert [entry["step"] for entry in timeline] == ["collect", *(s for s in STEPS if s != "drift gates")]


def test_nothing_new_is_known_in_seconds_and_changes_nothing(run: Path, first: First, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(SMALL))
    command = [Path(sys.executable).with_name("degre"), "retrain", run, "--redis", first.url, "--activate", "--json"]
    before = contents(run)
    before_s = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, "--config", tmp_path / "settings.yaml"], capture_output=True, text=True, timeout=60
    )
    after_s = resource.getrusage(resource.RUSAGE_CHILDREN)  # work, not waiting: the machine may be busy
    assert after_s.ru_utime + after_s.ru_stime - before_s.ru_utime - before_s.ru_stime < 10
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout.splitlines()[-1])
    assert (document["status"], document["id"]) == ("nothing_new", first.outcome.id)
    after = contents(run)
    for name in ("retrain/lock", "retrain/digests.json", "data/collected/.lock"):  # locks, and a cache
        before.pop(name, None)
        after.pop(name, None)
    assert after == before


def test_a_night_goes_on_from_the_champion_and_survives_kill_9_at_each_step(
    run: Path, first: First, tmp_path: Path
) -> None:
    collect_day(run / "data", 1, 260, unconfirmed=60, degrees=10)
    champion = find_champion(run, State(run / "retrain"), first.url, "simulated_small")
    assert champion is not None
    earlier = contents(champion.bundle.parent)
    whole = night(run, first.url)
    assert (whole.status, whole.activated, whole.champion) == ("done", True, champion.manifest_sha256), whole.reason
    assert (whole.history["requests"], whole.history["new"], whole.history["unconfirmed"]) == (1000, 200, 60)
    assert [g.name for g in whole.gates] == ["data", "drift", "feedback", "evaluator", "value", "bundle"]
    assert whole.bundle is not None
    assert contents(champion.bundle.parent) == earlier
    manifest = read_manifest(whole.bundle)
    assert manifest.parent == champion.manifest_sha256
    assert "the evaluator starts from the champion’s weights" in (whole.bundle.parent / "report.html").read_text()
    parts = (whole.bundle.parent / "training_set").glob("part-*.parquet")
    ids = [i for part in parts for i in pq.read_table(part, columns=["request_id"])["request_id"].to_pylist()]
    assert len(set(ids)) == 1000
    assert not {f"d1-{r}" for r in range(200, 260)} & set(ids)  # unconfirmed
    version = open_registry(run / "mlflow.db", manifest.dataset).alias("champion")
    assert version is not None
    assert version.lineage["parent_manifest_sha256"] == champion.manifest_sha256

    run = copied(first, tmp_path / "killed")
    collect_day(run / "data", 1, 260, unconfirmed=60, degrees=10)
    for step in (*STEPS, "crown"):
        child = children().Process(target=killed_after, args=(step, run, first.url))
        child.start()
        child.join(120)
        assert child.exitcode == -signal.SIGKILL, step
    resumed = night(run, first.url)
    assert (resumed.status, resumed.id, resumed.activated) == ("done", whole.id, True)
    assert resumed.training_rows == whole.training_rows
    assert resumed.bundle is not None
    assert read_manifest(resumed.bundle).made_from == manifest.made_from
    assert [v.version for v in open_registry(run / "mlflow.db", manifest.dataset).versions()] == [1, 2]
    with redis.Redis.from_url(first.url) as client:
        plan = read_plan(client)
    assert plan is not None
    assert plan.version == 2  # published once
    assert night(run, first.url).status == "nothing_new"


def killed_after(step: str, run: Path, url: str) -> None:
    """A night that dies when `step` is done and not yet recorded."""
    from orchestration.retrain import journal, state

    write = journal.write_json

    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def record(path: Path, document: Any) -> None:
        if path.parent.name == "steps" and path.stem == step:
            die()
        write(path, document)

    journal.write_json = record
    if step == "crown":
        state.State.crown = die  # type: ignore[method-assign]
    night(run, url)


def test_a_gate_that_does_not_hold_leaves_the_champion(run: Path, first: First) -> None:
    collect_day(run / "data", 1, 200)
    demanding = {"gates": {**SMALL["gates"], "min_rank_quality": 1.0}}
    stopped = night(run, first.url, **demanding)
    assert stopped.status == "stopped"
    assert "gate evaluator: AUC" in stopped.reason
    assert [g.passed for g in stopped.gates] == [True, True, True, False]
    assert stopped.bundle is None
    assert not stopped.activated
    folder = run / "retrain" / str(stopped.id)
    assert "A gate did not hold".lower() in (folder / "report.html").read_text()
    with redis.Redis.from_url(first.url) as client:
        plan = read_plan(client)
    assert plan is not None
    assert first.outcome.bundle is not None
    assert plan.champion.manifest_sha256 == load_bundle(first.outcome.bundle).manifest_sha256
    again = night(run, first.url, **demanding)
    assert again.status == "nothing_new"
    assert stopped.reason in again.reason
    trained = contents(folder / "evaluator")
    done = night(run, first.url)  # with the gate as before: it goes on where it stopped
    assert (done.status, done.id) == ("done", stopped.id)
    assert contents(folder / "evaluator") == trained


def test_half_the_rows_malformed(run: Path, first: First) -> None:
    file = collect_day(run / "data", 1, 200)
    shown = pq.read_table(file)["shown_ids"]
    broken = [None if r % 2 else ids for r, ids in enumerate(shown.to_pylist())]
    rewrite(file, {"shown_ids": pa.array(broken, shown.type)})
    stopped = night(run, first.url)
    assert stopped.status == "stopped"
    assert stopped.reason.startswith("gate data: 50.0% of the rows rejected")
    assert list(stopped.steps) == ["collect", "data gate"]
    # A day that is left out is as if it had not been.
    assert night(run, first.url, retrain={"leave_out_days": ["2026-01-02"]}).history["requests"] == 800


def test_what_a_night_starts_from(first: First, run: Path) -> None:
    assert first.outcome.bundle is not None
    champion = Champion(first.outcome.bundle.resolve(), "sha")
    schema, settings = load_schema(run / "data"), load_settings(None, SMALL)
    warm = decide_start(champion, schema, settings, cold=False)
    assert warm.encoder == champion.encoder
    assert warm.evaluator == champion.bundle.parent / "evaluator"
    assert warm.generator == champion.bundle
    assert warm.settings.evaluator.epochs == 1  # 0.4 of 2
    assert warm.settings.generator.learning_rate == settings.generator.learning_rate / 2
    full = load_settings(None, SMALL | {"retrain": {"warm_epochs_share": 1, "warm_learning_rate_share": 1}})
    long = decide_start(champion, schema, full, cold=False).settings
    assert (long.evaluator.epochs, long.generator) == (full.evaluator.epochs, full.generator)
    for cold in (
        decide_start(None, schema, settings, cold=False),
        decide_start(champion, schema, settings, cold=True),
        decide_start(champion, schema.model_copy(update={"scores": ()}), settings, cold=False),
    ):
        assert (cold.encoder, cold.evaluator, cold.generator) == (None, None, None)
        assert cold.settings == settings
        assert cold.reasons[0].startswith("everything from nothing")
    wider = load_settings(None, SMALL | {"evaluator": {**SMALL["evaluator"], "width": 16}})
    mixed = decide_start(champion, schema, wider, cold=False)
    assert (mixed.encoder, mixed.evaluator, mixed.generator) == (champion.encoder, None, champion.bundle)
    assert mixed.settings.evaluator == wider.evaluator
    assert "evaluator.width is 16, the champion's 8" in mixed.reasons[1]
