"""kill -9 in the middle of training and of mining: started again, the result is that of an uninterrupted run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import crafted
import numpy as np
import pytest
from crafted import N

from degre_prod.config import EvaluatorConfig, GeneratorConfig, MiningConfig
from degre_prod.mining.mine import mine
from degre_prod.training import loop
from degre_prod.training.evaluator import train_evaluator
from degre_prod.training.generator import train_generator
from degre_prod.training.modules import save_module

# Runs a task and kills its own process at the n-th call of a function.
KILLED = """
import importlib, json, os, signal, sys

task, at, calls, config = sys.argv[1:]
module, name = at.rsplit(".", 1)
module = importlib.import_module(module)
original, count = getattr(module, name), [0]

def killing(*args, **kwargs):
    count[0] += 1
    if count[0] == int(calls):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)

setattr(module, name, killing)
module, name = task.rsplit(".", 1)
getattr(importlib.import_module(module), name)(json.loads(config))
"""


def killed(task: str, at: str, calls: int, config: dict[str, Any]) -> None:
    Path(config["folder"]).mkdir()
    process = subprocess.run(
        [sys.executable, "-c", KILLED, task, at, str(calls), json.dumps(config)], timeout=120, capture_output=True
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoded splits of 60 requests and a random evaluator."""
    folder = tmp_path_factory.mktemp("world")
    made = crafted.crafted(folder, counts=(N,) * 60, position_free=True)  # fresh permutations each epoch
    model = crafted.evaluator(made.encoder)
    (folder / "evaluator").mkdir()
    save_module(model, model.spec, folder / "evaluator", "evaluator")
    return folder


def test_a_killed_evaluator_training_goes_on_to_the_same_weights(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"width": 8, "epochs": 3, "attention_epochs": 2, "min_steps": 1, "batch_size": 16, "togo_steps": 12}
    settings = EvaluatorConfig(**sizes).model_dump()
    config = {"encoded": str(world), "evaluator": settings}
    whole, interrupted = config | {"folder": str(tmp_path / "whole")}, config | {"folder": str(tmp_path / "killed")}
    (tmp_path / "whole").mkdir()
    steps = count_steps(monkeypatch)
    train_evaluator(whole)
    trained = len(steps)
    # Four batches an epoch, and two, two and one epochs of the forms' first halves: two steps into the second epoch of the
    # fourth network.
    killed("degre_prod.training.evaluator.train_evaluator", "degre_prod.training.loop._backward", 26, interrupted)
    forms = [tmp_path / "killed" / f"evaluator_{form}.pt" for form in ("additive", "products", "attention")]
    assert set((tmp_path / "killed").glob("*.pt")) == {*forms, tmp_path / "killed" / "pointwise.pt"}
    steps.clear()
    train_evaluator(interrupted)
    assert len(steps) == trained - 24  # whole epochs are not trained again
    for name in ("evaluator.safetensors", "pointwise.safetensors", "curves.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one with each optimiser step."""
    steps: list[int] = []
    backward = loop._backward

    def counted(*args: Any) -> tuple[float, float]:
        steps.append(1)
        return backward(*args)

    monkeypatch.setattr(loop, "_backward", counted)
    return steps


def test_a_killed_mining_goes_on_and_computes_no_shard_again(world: Path, tmp_path: Path) -> None:
    settings = MiningConfig(requests=60, beam_width=4, keep=3, replan_width=2, shard_size=10, chunk_size=4)
    config = {"encoded": str(world), "evaluator": str(world / "evaluator"), "mining": settings.model_dump()}
    whole, interrupted = config | {"folder": str(tmp_path / "whole")}, config | {"folder": str(tmp_path / "killed")}
    (tmp_path / "whole").mkdir()
    mine(whole)
    names = [f"shard-{i:05d}.npz" for i in range(6)]
    # in the second chunk of the third shard, then, started again, while the fourth one is written
    killed("degre_prod.mining.mine.mine", "degre_prod.mining.mine.mine_requests", 8, interrupted)
    committed = {f.name: f.stat().st_mtime_ns for f in (tmp_path / "killed").glob("shard-*")}
    assert sorted(committed) == names[:2]
    mine_until_written = subprocess.run(
        [sys.executable, "-c", HALF_WRITTEN, json.dumps(interrupted)], timeout=120, capture_output=True
    )
    assert mine_until_written.returncode == -signal.SIGKILL, mine_until_written.stderr.decode()
    assert sorted(f.name for f in (tmp_path / "killed").glob("shard-*")) == names[:3]
    assert list((tmp_path / "killed").glob(".shard-00003*"))  # half written, and under another name
    mine(interrupted)
    for name in names:
        got, expected = (tmp_path / folder / name for folder in ("killed", "whole"))
        assert committed.get(name) in (None, got.stat().st_mtime_ns)
        with np.load(got, allow_pickle=False) as a, np.load(expected, allow_pickle=False) as b:
            assert set(a) == set(b)
            for key in a:
                np.testing.assert_array_equal(a[key], b[key])


# Mines, and dies in the middle of writing its second shard.
HALF_WRITTEN = """
import json, os, signal, sys
import numpy as np
from degre_prod.mining.mine import mine

original, count = np.savez, [0]

def half(stream, **arrays):
    count[0] += 1
    if count[0] == 2:
        stream.write(b"PK")
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    original(stream, **arrays)

np.savez = half
mine(json.loads(sys.argv[1]))
"""


def test_a_killed_generator_training_goes_on_to_the_same_weights(world: Path, tmp_path: Path) -> None:
    mined = tmp_path / "mined"
    mined.mkdir()
    mining = MiningConfig(requests=60, beam_width=4, keep=3, replan_width=2, shard_size=60, chunk_size=60)
    evaluator = str(world / "evaluator")
    mine({"encoded": str(world), "evaluator": evaluator, "folder": str(mined), "mining": mining.model_dump()})
    settings = GeneratorConfig(width=8, epochs=3, batch_size=16).model_dump()
    config = {"encoded": str(world), "mined": str(mined), "generator": settings}
    whole, interrupted = config | {"folder": str(tmp_path / "whole")}, config | {"folder": str(tmp_path / "killed")}
    (tmp_path / "whole").mkdir()
    train_generator(whole)
    killed("degre_prod.training.generator.train_generator", "degre_prod.training.loop._backward", 7, interrupted)
    assert (tmp_path / "killed" / "generator.pt").is_file()
    train_generator(interrupted)
    for name in ("generator.safetensors", "curves.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
