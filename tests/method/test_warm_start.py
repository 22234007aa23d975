"""Training that goes on from weights that are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import crafted
import pytest
import torch
from crafted import N
from torch import nn

from degre_prod.config import EvaluatorConfig, GeneratorConfig, MiningConfig
from degre_prod.errors import MismatchError
from degre_prod.mining.mine import mine
from degre_prod.models.pointwise import PointwiseScorer
from degre_prod.training.evaluator import train_evaluator
from degre_prod.training.generator import train_generator
from degre_prod.training.modules import load_evaluator, load_generator, save_module
from degre_prod.training.warm_start import start_from

STILL = 1e-9  # a learning rate at which nothing moves


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoded splits of 24 requests, a random evaluator with its pointwise scorer, a random generator, mined lists."""
    folder = tmp_path_factory.mktemp("warm")
    made = crafted.crafted(folder, counts=(N,) * 24)
    model, generator = crafted.evaluator(made.encoder), crafted.generator(made.encoder, width=8)
    for name in ("evaluator", "generator", "mined"):
        (folder / name).mkdir()
    save_module(model, model.spec, folder / "evaluator", "evaluator")
    pointwise = PointwiseScorer(model.spec.layout, model.spec.width, made.encoder.schema.logged_length)
    save_module(pointwise, model.spec, folder / "evaluator", "pointwise")
    save_module(generator, generator.spec, folder / "generator", "generator")
    mining = MiningConfig(requests=24, beam_width=2, keep=2).model_dump()
    evaluator = str(folder / "evaluator")
    mine({"encoded": str(folder), "evaluator": evaluator, "folder": str(folder / "mined"), "mining": mining})
    return folder


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    return all(torch.allclose(a, b, atol=1e-6) for (_, a), (_, b) in pairs)


@pytest.mark.parametrize("warm", [False, True])
def test_an_evaluator_starts_from_the_weights_it_is_given(world: Path, tmp_path: Path, warm: bool) -> None:
    sizes: dict[str, Any] = {
        "width": 8,
        "epochs": 1,
        "min_steps": 1,
        "togo_steps": 1,
        "prefix_state": "additive",
        "members": 1,
    }
    settings = EvaluatorConfig(learning_rate=STILL, weight_decay=0, **sizes).model_dump()
    config: dict[str, Any] = {"encoded": str(world), "folder": str(tmp_path), "evaluator": settings}
    train_evaluator(config | ({"warm_start": str(world / "evaluator")} if warm else {}))
    given, trained = load_evaluator(world / "evaluator"), load_evaluator(tmp_path)
    assert same(given, trained) is warm
    assert trained.spec.mean_utility != given.spec.mean_utility  # of the new data
    weights = next(iter(trained.each())).weights_OL * trained.spec.mean_utility
    torch.testing.assert_close(weights, torch.tensor(trained.spec.weights_OL))


@pytest.mark.parametrize("warm", [False, True])
def test_a_generator_starts_from_the_weights_it_is_given(world: Path, tmp_path: Path, warm: bool) -> None:
    settings = GeneratorConfig(width=8, epochs=1, learning_rate=STILL, weight_decay=0).model_dump()
    config: dict[str, Any] = {"encoded": str(world), "mined": str(world / "mined"), "generator": settings}
    config["folder"] = str(tmp_path)
    train_generator(config | ({"warm_start": str(world / "generator")} if warm else {}))
    assert same(load_generator(world / "generator"), load_generator(tmp_path)) is warm


def test_other_shapes_are_named(world: Path) -> None:
    given = load_generator(world / "generator")
    wider = type(given)(type(given.spec)(given.spec.layout, 16, 1, "gru"))
    with pytest.raises(MismatchError, match="these differ: "):
        start_from(wider, given)
    with pytest.raises(MismatchError, match="bias"):
        start_from(nn.Linear(2, 2), nn.Linear(2, 2, bias=False))
