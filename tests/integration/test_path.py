"""The offline path on a tiny world, training set to bundle through the stages: in one process, and on Ray Train workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import sent_by_value
from safetensors.numpy import load_file

from degre_prod.artefact import made_from
from degre_prod.bundle import load_bundle
from degre_prod.config import EvaluatorConfig, GeneratorConfig, MiningConfig, ScalingConfig, Settings
from degre_prod.encoding.splits import split_rows
from degre_prod.errors import MismatchError, TrainingError
from degre_prod.schema import load_schema
from degre_prod.training import generator, launch
from degre_prod.training.group import current_worker
from degre_prod.training.launch import Job, run_group, run_jobs
from degre_prod.worlds.simulate import simulate
from orchestration import stages
from orchestration.evaluate import evaluate
from orchestration.run import Run, create_run

MINED = 60
SHARDS = [f"shard-{i:05d}.npz" for i in range(3)]


def settings(workers: int) -> Settings:
    return Settings(
        scaling=ScalingConfig(num_workers=workers, cpus_per_worker=0.5),
        evaluator=EvaluatorConfig(width=8, epochs=2, min_steps=1, batch_size=64, togo_steps=6),
        mining=MiningConfig(requests=MINED, beam_width=4, keep=2, replan_width=2, shard_size=20, chunk_size=20),
        generator=GeneratorConfig(width=8, epochs=2, batch_size=16),
    )


def dies_once(config: dict[str, Any]) -> None:
    """The generator's task, but the second worker is killed in its second epoch the first time."""
    worker = current_worker()
    marker = Path(config["marker"])
    if worker.rank == 1 and not marker.exists():
        from degre_prod.training import loop

        original, count = loop._backward, 0

        def killing(*args: Any) -> tuple[float, float]:
            nonlocal count
            count += 1
            if count == 6:  # four batches an epoch
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args)

        loop._backward = killing
    train_generator({name: value for name, value in config.items() if name != "marker"})


train_generator = generator.train_generator


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "data"
    simulate("mixed", "small", folder, train=200, validation=30, test=30)
    return folder


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The whole path in this process, without Ray."""
    run = create_run(tmp_path_factory.mktemp("alone"), world, settings(workers=0))
    stages.build_training_rows(run)
    for stage in (stages.encode, stages.train_evaluator, stages.mine, stages.train_generator, stages.build_bundle):
        stage(run)
    return run


@pytest.mark.usefixtures("ray_cluster")
def test_two_ray_workers_take_the_same_path_and_survive_a_crash(
    alone: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the evaluator on, in one launch; the crash is in the generator's training, when the lists are mined."""
    run = create_run(tmp_path / "run", alone.dataset, settings(workers=2))
    run.folder.mkdir(exist_ok=True)
    for name in ("training_set", "encoded", "evaluator"):
        (run.folder / name).symlink_to(getattr(alone, name))
    marker, launches = tmp_path / "died", []
    monkeypatch.setattr(generator, "train_generator", dies_once)

    def launched(jobs: Sequence[Job], **rest: Any) -> dict[str, float]:
        launches.append([job.label for job in jobs])
        return run_jobs([replace(job, config=job.config | {"marker": str(marker)}) for job in jobs], **rest)

    monkeypatch.setattr(launch, "run_jobs", launched)
    with stages.ray_cluster(run):
        with sent_by_value(__name__):
            seconds = stages.learn(run)
        assert marker.exists()
        assert launches == [["mining", "generator"]]
        assert seconds["evaluator"] == 0.0 < min(seconds["mining"], seconds["generator"])
        assert [f.name for f in sorted(run.mined.iterdir())] == ["made_from.json", "mining.json", *SHARDS]
        for name in SHARDS:
            with np.load(run.mined / name) as ours, np.load(alone.mined / name) as theirs:
                for key in theirs:
                    np.testing.assert_array_equal(ours[key], theirs[key])
        stages.build_bundle(run)
    ours, theirs = (load_file(r.generator / "generator.safetensors") for r in (run, alone))
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        # A bias of the keys changes no attention: its gradient is rounding alone, which AdamW makes as large as any other.
        counts = np.r_[0 : len(value) // 3, 2 * len(value) // 3 : len(value)] if name.endswith("qkv.bias") else ...
        np.testing.assert_allclose(ours[name][counts], value[counts], rtol=1e-3, atol=1e-4, err_msg=name)
    assert load_bundle(run.bundle).manifest.mined_made_from == made_from(run.mined) == made_from(alone.mined)
    assert not [p for p in run.folder.rglob("*") if p.name.startswith((".", "progress", "ray_train", "failure"))]


def test_a_launch_that_fails_for_good_says_why_on_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train import TrainingFailedError
    from ray.train.torch import TorchTrainer

    def fit(_trainer: TorchTrainer) -> None:
        raise TrainingFailedError("Training failed due to worker errors:\nTraceback\n  File\nValueError: a reason\n")

    monkeypatch.setattr(TorchTrainer, "fit", fit)
    with pytest.raises(TrainingError, match="failed on 2 workers: ValueError: a reason") as caught:
        run_group(dies_once, {}, folder=tmp_path / "work", scaling=settings(2).scaling, label="fails")
    assert "\n" not in str(caught.value)
    assert [f.name for f in (tmp_path / "work").iterdir()] == ["failure.txt"]
    assert "Traceback" in (tmp_path / "work" / "failure.txt").read_text()


def test_what_is_done_is_not_done_again(alone: Run) -> None:
    def times() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in sorted(alone.folder.rglob("*")) if p.is_file()}

    before = times()
    stages.build_training_rows(alone)
    for stage in (stages.encode, stages.train_evaluator, stages.mine, stages.train_generator, stages.build_bundle):
        stage(alone)
    assert stages.learn(alone) == {"evaluator": 0.0, "mining": 0.0, "generator": 0.0}
    changed = {name for name, time in times().items() if before.get(name) != time}
    assert {Path(name).name for name in changed} <= {"registry.db"}


def test_other_settings_make_the_later_stages_anew_and_those_alone(alone: Run) -> None:
    other = Run(alone.folder, alone.dataset, alone.settings.model_copy(update={"mining": MiningConfig(requests=7)}))
    with pytest.raises(MismatchError, match="degre mine"):
        stages.train_generator(other)
    assert made_from(alone.mined)


def test_the_bundle_is_evaluated_against_the_truth(alone: Run) -> None:
    document = evaluate(alone)
    assert document["requests"] == 30
    assert document["reference"] == "optimum"
    shares = document["measures"]["true_value"]
    assert set(shares) == {"input_order", "pointwise", "generator", "beam"}
    assert all(0 < v["low"] <= v["mean"] <= v["high"] and v["mean"] <= 1 for v in shares.values())
    assert evaluate(alone) == document
    bundle = load_bundle(alone.bundle)
    rows = list(split_rows(alone.training_set, load_schema(alone.dataset), "validation"))
    assert bundle.manifest.training_window[1] < bundle.manifest.created
    assert len(bundle.answer(rows[0].request, rows[0].user, rows[0].items, 4)) == 4
