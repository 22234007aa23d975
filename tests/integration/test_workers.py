"""Two workers learn what one learns, though one of them is killed in the middle of an epoch."""

from __future__ import annotations

import json
import os
import signal
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import crafted
import pytest
from crafted import N
from helpers import sent_by_value

from degre_prod.config import EvaluatorConfig, ScalingConfig
from degre_prod.errors import TrainingError
from degre_prod.training.group import current_worker
from degre_prod.training.launch import Job, run_group, started_group
from degre_prod.training.loop import EpochRecord

SIZES = {"width": 8, "epochs": 3, "attention_epochs": 2, "min_steps": 1, "batch_size": 16, "togo_steps": 12}
STEPS = 4  # an epoch: 61 requests, so that the last batch has 13


def train(config: dict[str, Any]) -> None:
    """The evaluator's task; until there is a marker the second worker dies, two steps into the fifth epoch it works on."""
    from degre_prod.training import loop
    from degre_prod.training.evaluator import train_evaluator

    marker = Path(config.pop("marker"))
    if current_worker().rank == 1 and not marker.exists():
        original, calls = loop._backward, []

        def killing(*args: Any) -> tuple[float, float]:
            calls.append(1)
            if len(calls) == STEPS * 4 + 2:
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args)

        loop._backward = killing
    train_evaluator(config)


def curves(folder: Path) -> dict[str, list[EpochRecord]]:
    return {
        name: [EpochRecord(**record) for record in records]
        for name, records in json.loads((folder / "curves.json").read_text()).items()
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lists without position, so that every epoch permutes them anew: the randomness must not depend on the workers."""
    folder = tmp_path_factory.mktemp("world")
    crafted.crafted(folder, counts=(N,) * 61, position_free=True)
    return folder


def trained(world: Path, folder: Path, *, workers: int) -> Path:
    marker = folder.with_name(folder.name + "-died")
    config = {"encoded": str(world), "folder": str(folder), "evaluator": EvaluatorConfig(**SIZES).model_dump()}
    scaling = ScalingConfig(num_workers=workers, cpus_per_worker=0.5)
    with sent_by_value(__name__):
        run_group(train, config | {"marker": str(marker)}, folder=folder, scaling=scaling, label="evaluator")
    assert marker.exists() is (workers == 2)
    return folder


@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_have_the_learning_curves_of_one(world: Path, tmp_path: Path) -> None:
    theirs = curves(trained(world, tmp_path / "one", workers=0))
    ours = curves(trained(world, tmp_path / "two", workers=2))
    assert {name: len(records) for name, records in ours.items()} == {name: len(r) for name, r in theirs.items()}
    for name, records in theirs.items():
        assert len({record.train for record in records}) == len(records)  # a curve that moves
        assert ours[name] == records, name  # each network has a worker to itself


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("lost", "launches"), [(0, 1), (2, 3), (3, 3)])
def test_a_launch_that_loses_a_node_is_launched_again(
    lost: int, launches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.exceptions import ActorUnavailableError
    from ray.train import ControllerError
    from ray.train.torch import TorchTrainer

    launched: list[str] = []

    def fit(trainer: TorchTrainer) -> None:
        launched.append(trainer.run_config.name)
        if len(launched) <= lost:
            raise ControllerError(ActorUnavailableError("Socket closed", b"1" * 16))

    monkeypatch.setattr(TorchTrainer, "fit", fit)
    scaling = ScalingConfig(num_workers=2, max_failures=2)
    if lost > scaling.max_failures:
        with pytest.raises(TrainingError, match="Socket closed"):
            run_group(train, {}, folder=tmp_path / "work", scaling=scaling, label="lost")
    else:
        run_group(train, {}, folder=tmp_path / "work", scaling=scaling, label="lost")
    assert len(set(launched)) == len(launched) == launches


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("placement", ["spread", "pack"])
def test_workers_are_placed_as_configured_and_other_failures_are_not_launched_again(
    placement: Literal["spread", "pack"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.train import ControllerError
    from ray.train.torch import TorchTrainer

    strategies: list[str] = []

    def fit(trainer: TorchTrainer) -> None:
        strategies.append(str(trainer.scaling_config.placement_strategy))
        raise ControllerError(ValueError("a reason"))

    monkeypatch.setattr(TorchTrainer, "fit", fit)
    scaling = ScalingConfig(num_workers=2, placement=placement)
    with pytest.raises(TrainingError, match="a reason"):
        run_group(train, {}, folder=tmp_path / "work", scaling=scaling, label="placed")
    assert strategies == [placement.upper()]


def copy(config: dict[str, Any]) -> None:
    Path(config["folder"], f"copy-{current_worker().rank}").write_text(Path(config["original"]).read_text())


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_group_that_started_ahead_works_on_what_is_made_meanwhile(workers: int, tmp_path: Path) -> None:
    scaling = ScalingConfig(num_workers=workers, cpus_per_worker=0.5)
    config = {"original": str(tmp_path / "made"), "folder": str(tmp_path / "work")}
    with sent_by_value(__name__), started_group(tmp_path, scaling) as launch:
        (tmp_path / "made").write_text("meanwhile")
        seconds = launch([Job("copy", copy, config, tmp_path / "work")])
    assert list(seconds) == ["copy"]
    assert [file.read_text() for file in (tmp_path / "work").iterdir()] == ["meanwhile"] * max(workers, 1)
    assert {path.name for path in tmp_path.iterdir()} == {"made", "work"}


@pytest.mark.parametrize("fails", [False, True])
def test_a_group_without_work_goes_home(fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train.torch import TorchTrainer

    home = threading.Event()

    def fit(trainer: TorchTrainer) -> None:
        trainer.train_loop_per_worker(trainer.train_loop_config)
        home.set()

    monkeypatch.setattr(TorchTrainer, "fit", fit)
    with (
        pytest.raises(ValueError, match="nothing made") if fails else nullcontext(),
        started_group(tmp_path, ScalingConfig()),
    ):
        assert not home.is_set()
        if fails:
            raise ValueError("nothing made")
    assert home.wait(20 if fails else 0)
    assert list(tmp_path.iterdir()) == []
