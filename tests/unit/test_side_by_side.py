"""Networks side by side: who trains which, and that all of them get what one worker would have learnt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from degre_prod.training.group import Worker
from degre_prod.training.loop import Loss, Schedule
from degre_prod.training.side_by_side import Network, Trained, train_side_by_side

SAMPLES = np.arange(9)  # in batches of four: the last batch has one sample, and one worker of a team none of it
SCHEDULE = Schedule(epochs=3, batch_size=4, learning_rate=0.05, weight_decay=0.01, seed=0)


def line() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"slope": nn.Linear(1, 1, bias=False), "shift": nn.Linear(1, 1)})


def squares(of: float) -> object:
    """Least squares on y = `of` · x + 1."""

    def loss_of(model: nn.ModuleDict) -> Loss:
        x = torch.linspace(-1, 1, len(SAMPLES)).unsqueeze(1)

        def loss(samples: np.ndarray, _: object) -> tuple[Tensor, Tensor]:
            error = model["slope"](x[samples]) + model["shift"](0 * x[samples]) - of * x[samples] - 1
            return error.square().sum(), torch.tensor(float(len(samples)))

        return loss

    return loss_of


def networks() -> list[Network]:
    return [
        Network("slope", line, squares(2.0), ("slope",), SCHEDULE, 1.0),
        Network("both", line, squares(3.0), ("",), SCHEDULE, 2.0),
    ]


def train(worker: Worker, folder: Path) -> dict[str, Trained]:
    return train_side_by_side(networks(), train=SAMPLES, validation=SAMPLES, worker=worker, folder=folder)


def test_only_the_parts_move_and_they_are_the_result(tmp_path: Path) -> None:
    trained = train(Worker(0, 1), tmp_path)
    assert list(trained) == ["slope", "both"]
    assert set(trained["slope"].weights) == {"slope.weight"}
    assert set(trained["both"].weights) == {"slope.weight", "shift.weight", "shift.bias"}
    for result in trained.values():
        assert not torch.equal(result.weights["slope.weight"], line().state_dict()["slope.weight"])
        assert result.lowest == min(record.validation for record in result.curve) < result.curve[0].validation


def test_two_halves_are_the_whole(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "halves").mkdir()
    whole = train(Worker(0, 1), tmp_path / "whole")

    def part(networks: list[Network]) -> dict[str, Trained]:
        return train_side_by_side(
            networks, train=SAMPLES, validation=SAMPLES, worker=Worker(0, 1), folder=tmp_path / "halves"
        )

    first = part([network.first_half() for network in networks()])
    assert {name: result.curve for name, result in first.items()} == {n: r.curve[:2] for n, r in whole.items()}
    second = part([network.second_half() for network in networks()])
    again = part([network.first_half() for network in networks()])  # as after a crash: told of the same epochs
    for name, result in whole.items():
        assert second[name].curve == result.curve
        assert again[name].curve == first[name].curve
        for key, value in result.weights.items():
            assert torch.equal(second[name].weights[key], value)
    assert all(n.first_half().cost + n.second_half().cost == n.cost for n in networks())


@pytest.mark.parametrize(
    ("costs", "world", "jobs"),
    [
        ([1.0, 2.0], 1, [[0, 1]]),
        ([3.0, 3.5, 3.4, 1.8], 2, [[1, 3], [0, 2]]),  # 5.3 and 6.4
        ([1.0, 1.0, 5.0], 3, [[2], [0], [1]]),
    ],
)
def test_the_costly_jobs_are_given_out_first(costs: list[float], world: int, jobs: list[list[int]]) -> None:
    parts = [Worker(rank, world).divided(costs) for rank in range(world)]
    assert [mine for _, mine in parts] == jobs
    assert all((part.rank, part.world) == (0, 1) for part, _ in parts)


def test_a_worker_on_its_own_leaves_word_at_its_seat(tmp_path: Path) -> None:
    for rank in range(2):
        alone, _ = Worker(rank, 2).divided([1.0, 1.0])
        alone.progress(tmp_path, 1, 2, "half")
    assert {file.name for file in tmp_path.iterdir()} == {"progress-0.json", "progress-1.json"}


MEMBER = """
import sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
from test_side_by_side import train
from degre_prod.training.group import Worker

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{{folder}}/store", rank=rank, world_size=world)
torch.save({{name: result.weights for name, result in train(Worker(rank, world), folder).items()}}, folder / f"got-{{rank}}.pt")
torch.distributed.destroy_process_group()
"""


def test_all_workers_get_what_one_would_have_learnt(tmp_path: Path) -> None:
    """Two of three share the costly network. (tests/integration/test_workers.py has two with more networks than that.)"""
    world = 3
    script = MEMBER.format(tests=str(Path(__file__).parent))
    arguments = [[sys.executable, "-c", script, str(rank), str(world), str(tmp_path)] for rank in range(world)]
    workers = [subprocess.Popen(command) for command in arguments]
    assert [worker.wait(150) for worker in workers] == [0] * world
    (tmp_path / "alone").mkdir()
    expected = train(Worker(0, 1), tmp_path / "alone")
    for rank in range(world):
        got = torch.load(tmp_path / f"got-{rank}.pt", weights_only=True)
        assert set(got) == set(expected)
        for name, result in expected.items():
            for part, value in result.weights.items():
                torch.testing.assert_close(got[name][part], value, rtol=1e-6, atol=1e-6)
