"""The training loop: the best epoch, every sample counted, honest errors, and the same result on two workers."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from degre_prod.errors import TrainingError
from degre_prod.training.group import Worker
from degre_prod.training.loop import EpochRecord, Loss, Schedule, fit, mean_loss

ALONE = Worker(0, 1)
SCHEDULE = Schedule(epochs=3, batch_size=4, learning_rate=0.05, weight_decay=0.0, seed=0)


def line() -> tuple[nn.Linear, Loss]:
    """Least squares on y = 2x, ten samples, a model of two weights."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    x = torch.linspace(-1, 1, 10).unsqueeze(1)

    def loss(samples: np.ndarray, _: np.random.Generator) -> tuple[Tensor, Tensor]:
        error = (model(x[samples]) - 2 * x[samples]).square()
        return error.sum(), torch.tensor(float(len(samples)))

    return model, loss


def run(folder: Path, model: nn.Module, loss: Loss, schedule: Schedule = SCHEDULE) -> list[EpochRecord]:
    return fit(
        model,
        loss,
        train=np.arange(10),
        validation=np.arange(10),
        schedule=schedule,
        worker=ALONE,
        folder=folder,
        name="line",
    )


def test_it_learns_and_says_how(tmp_path: Path) -> None:
    model, loss = line()
    records = run(tmp_path, model, loss, Schedule(30, 4, 0.2, 0.0, 0))
    assert [r.epoch for r in records] == list(range(30))
    assert records[-1].validation < 0.01 < records[0].validation
    assert model.weight.item() == pytest.approx(2, abs=0.2)


def test_the_last_partial_batch_is_trained_on_and_counted(tmp_path: Path) -> None:
    model, loss = line()
    seen: list[list[int]] = []

    def watched(samples: np.ndarray, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        seen.append(samples.tolist())
        return loss(samples, random)

    run(tmp_path, model, watched, Schedule(1, 4, 0.05, 0.0, 0))
    training, validation = seen[:3], seen[3:]
    assert [len(b) for b in training] == [len(b) for b in validation] == [4, 4, 2]
    assert sorted(chain(*training)) == sorted(chain(*validation)) == list(range(10))


def test_the_validation_loss_is_a_mean_over_samples_not_over_batches() -> None:
    model, _ = line()

    def loss(samples: np.ndarray, _: np.random.Generator) -> tuple[Tensor, Tensor]:
        return torch.tensor(float(samples.sum())), torch.tensor(float(len(samples)))

    assert mean_loss(model, loss, np.arange(10), SCHEDULE, ALONE) == 4.5


def test_batches_are_another_shuffle_each_epoch_and_the_same_each_run(tmp_path: Path) -> None:
    orders = []
    for attempt in ("a", "b"):
        model, loss = line()
        seen: list[int] = []

        def watched(samples: np.ndarray, random: np.random.Generator) -> tuple[Tensor, Tensor]:
            if model.training:  # noqa: B023 - used within the pass
                seen.extend(samples.tolist())  # noqa: B023
            return loss(samples, random)  # noqa: B023

        run(tmp_path / attempt, model, watched, Schedule(2, 4, 0.05, 0.0, 0))
        orders.append(seen)
    assert orders[0] == orders[1]
    assert orders[0][:10] != orders[0][10:]


def test_the_best_epoch_by_validation_is_kept(tmp_path: Path) -> None:
    model, loss = line()
    weights: list[Tensor] = []
    held_out = iter([3.0, 1.0, 2.0, 1.0])  # the earlier of equal epochs

    def judged(samples: np.ndarray, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        if model.training:
            return loss(samples, random)
        weights.append(model.weight.detach().clone())
        return torch.tensor(next(held_out)), torch.tensor(1.0)

    records = run(tmp_path, model, judged, Schedule(4, 10, 0.05, 0.0, 0))
    assert [r.validation for r in records] == [3.0, 1.0, 2.0, 1.0]
    assert torch.equal(model.weight, weights[1])
    assert not torch.equal(weights[1], weights[3])
    assert not model.training


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_training(tmp_path: Path, training: bool, value: float) -> None:
    model, loss = line()

    def broken(samples: np.ndarray, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        total, count = loss(samples, random)
        return (total * value if model.training == training else total), count

    with pytest.raises(TrainingError, match=r"line: the .*loss is (nan|inf).*lower the learning rate"):
        run(tmp_path, model, broken)


@pytest.mark.parametrize(("train", "validation"), [(0, 5), (5, 0)])
def test_no_samples_are_an_error(tmp_path: Path, train: int, validation: int) -> None:
    model, loss = line()
    with pytest.raises(TrainingError, match=f"{train} training and {validation} validation"):
        fit(
            model,
            loss,
            train=np.arange(train),
            validation=np.arange(validation),
            schedule=SCHEDULE,
            worker=ALONE,
            folder=tmp_path,
            name="line",
        )


def test_a_finished_network_is_taken_from_its_checkpoint(tmp_path: Path) -> None:
    model, loss = line()
    records = run(tmp_path, model, loss)
    again, _ = line()

    def never(_samples: np.ndarray, _random: np.random.Generator) -> tuple[Tensor, Tensor]:
        raise AssertionError

    assert run(tmp_path, again, never) == records
    assert torch.equal(again.weight, model.weight)


def test_frozen_parameters_do_not_move(tmp_path: Path) -> None:
    model, loss = line()
    model.bias.requires_grad_(False)
    before = model.bias.detach().clone()
    run(tmp_path, model, loss)
    assert torch.equal(model.bias, before)


TWO_WORKERS = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
from test_loop import line
from degre_prod.training import loop
from degre_prod.training.group import Worker
import numpy as np

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{{folder}}/store", rank=rank, world_size=2)
model, loss = line()
schedule = loop.Schedule(epochs=3, batch_size=4, learning_rate=0.05, weight_decay=0.01, seed=0)
loop.fit(model, loss, train=np.arange(9), validation=np.arange(9), schedule=schedule, worker=Worker(rank, 2),
         folder=folder, name="line")
torch.save(model.state_dict(), folder / f"{{rank}}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_workers_learn_what_one_learns(tmp_path: Path) -> None:
    """Nine samples in batches of four: the last batch has one sample, and one worker none of it."""
    script = TWO_WORKERS.format(tests=str(Path(__file__).parent))
    workers = [subprocess.Popen([sys.executable, "-c", script, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [w.wait(150) for w in workers] == [0, 0]
    model, loss = line()
    (tmp_path / "alone").mkdir()
    schedule = Schedule(epochs=3, batch_size=4, learning_rate=0.05, weight_decay=0.01, seed=0)
    fit(
        model,
        loss,
        train=np.arange(9),
        validation=np.arange(9),
        schedule=schedule,
        worker=ALONE,
        folder=tmp_path / "alone",
        name="line",
    )
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in model.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, rtol=1e-6, atol=1e-6)
