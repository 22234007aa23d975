"""On-policy rounds: the generator's own lists, mined like logged ones, and training that goes on with them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import crafted
import numpy as np
import pytest
import torch
from crafted import Crafted, L, N

from degre_prod.config import GeneratorConfig, MiningConfig
from degre_prod.constraints.mask import feasible_along, obeyed
from degre_prod.constraints.rules import Rules, unconstrained
from degre_prod.distill.dataset import DenseTargets
from degre_prod.errors import TrainingError
from degre_prod.mining.beam import Leaves
from degre_prod.mining.mine import mine
from degre_prod.training.data import to_batch
from degre_prod.training.generator import epochs_by_round, train_generator
from degre_prod.training.modules import save_module
from degre_prod.training.own_lists import added, own_lists

R = 40
MINING = MiningConfig(requests=R, beam_width=4, keep=2, replan_width=3, shard_size=16, chunk_size=8)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Crafted:
    counts = [int(n) for n in np.random.default_rng(0).integers(L, N + 1, R)]
    return crafted.crafted(tmp_path_factory.mktemp("world") / "encoded", counts=counts)


def own(world: Crafted, rules: Rules | None = None) -> tuple[dict[str, np.ndarray], Leaves]:
    kept = Leaves(torch.arange(L).expand(R, 1, L), torch.full((R, 1), -9.0))
    evaluator, generator = crafted.evaluator(world.encoder), crafted.generator(world.encoder)
    return own_lists(generator, evaluator, world.encoded, np.arange(R), kept, MINING, rules), kept


def test_own_lists_are_the_greedy_ones_and_their_labels_the_best_of_the_re_plan(world: Crafted) -> None:
    got, _ = own(world)
    batch = to_batch(world.encoded, np.arange(R))
    with torch.inference_mode():
        order, _ = crafted.generator(world.encoder).decode(batch, L)
    assert (got["lists"] == order.numpy()).all()
    feasible = feasible_along(unconstrained(batch["mask"].numpy(), L), got["lists"][:, None].astype(np.int64))[:, 0]
    assert (~np.isnan(got["one_step"]) == feasible).all()
    assert np.take_along_axis(feasible, got["label"][:, :, None].astype(np.int64), 2).all()
    best = np.nanmax(got["backed_up"], axis=2)
    at_label = np.take_along_axis(got["backed_up"], got["label"][:, :, None].astype(np.int64), 2)[:, :, 0]
    np.testing.assert_allclose(at_label, best, atol=1e-5)
    np.testing.assert_allclose(
        np.nanmax(got["one_step"][:, -1], axis=1), best[:, -1], atol=1e-4
    )  # nothing left to plan
    assert (got["label"] != got["lists"]).any()


def test_own_lists_and_their_labels_obey_the_rules(world: Crafted) -> None:
    free = unconstrained(np.array(world.encoded.arrays["mask"]), L)
    group = np.tile(np.arange(N) % 2, (R, 1))
    rules = replace(free, gap_slots=2, gap_group_BC=group)
    unbound, _ = own(world)
    assert not obeyed(rules, unbound["lists"][:, None].astype(np.int64)).all()
    got, _ = own(world, rules)
    lists = got["lists"].astype(np.int64)
    assert obeyed(rules, lists[:, None]).all()
    feasible = feasible_along(rules, lists[:, None])[:, 0]
    assert (~np.isnan(got["one_step"]) == feasible).all()
    assert np.take_along_axis(feasible, got["label"][:, :, None].astype(np.int64), 2).all()


@pytest.mark.parametrize("restricted", [False, True])
def test_they_are_added_as_one_list_more_of_weight_one(world: Crafted, restricted: bool) -> None:
    got, _ = own(world)
    lists = np.tile(np.arange(L), (R, 2, 1))
    shape = (R, 2, L, N)
    before = DenseTargets(
        request=np.arange(R),
        inputs=lists,
        labels=lists,
        soft=np.full(shape, 1 / N, np.float32),
        weight=np.full((R, 2), 0.5, np.float32),
        feasible=np.ones(shape, bool) if restricted else None,
    )
    after = added(before, got, GeneratorConfig())
    assert (after.inputs[:, 2] == got["lists"]).all()
    assert (after.labels[:, 2] == got["label"]).all()
    assert (after.weight[:, 2] == 1).all()
    choice = (~np.isnan(got["one_step"])).sum(-1) > 1
    np.testing.assert_allclose(after.soft[:, 2].sum(-1), choice, atol=1e-5)
    for name in ("inputs", "labels", "soft", "weight"):
        assert (getattr(after, name)[:, :2] == getattr(before, name)).all()
    assert (after.feasible is not None) == restricted
    if after.feasible is not None:
        assert (after.feasible[:, 2] == ~np.isnan(got["one_step"])).all()


@pytest.mark.parametrize(("epochs", "rounds", "parts"), [(16, 0, [16]), (16, 1, [8, 8]), (7, 2, [3, 2, 2])])
def test_rounds_share_the_epochs(epochs: int, rounds: int, parts: list[int]) -> None:
    assert epochs_by_round(GeneratorConfig(epochs=epochs, on_policy_rounds=rounds)) == parts


def test_more_rounds_than_epochs_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"on_policy_rounds 2 needs 3 epochs at least, generator\.epochs is 2"):
        epochs_by_round(GeneratorConfig(epochs=2, on_policy_rounds=2))


def test_training_goes_on_with_its_own_lists_and_an_interrupted_one_ends_the_same(
    world: Crafted, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    encoded, evaluator, mined = world_folder(world), tmp_path / "evaluator", tmp_path / "mined"
    for folder in (evaluator, mined):
        folder.mkdir()
    model = crafted.evaluator(world.encoder)
    save_module(model, model.spec, evaluator, "evaluator")
    paths = {"encoded": str(encoded), "evaluator": str(evaluator), "mined": str(mined), "mining": MINING.model_dump()}
    mine(paths | {"folder": str(mined)})

    def trained(name: str, rounds: int) -> dict[str, Any]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        settings = GeneratorConfig(width=8, epochs=4, batch_size=16, on_policy_rounds=rounds)
        train_generator(paths | {"folder": str(folder), "generator": settings.model_dump()})
        curve = json.loads((folder / "curves.json").read_text())["generator"]
        assert [record["epoch"] for record in curve] == [0, 1, 2, 3]
        return {"weights": (folder / "generator.safetensors").read_bytes(), "curve": curve}

    whole = trained("whole", 1)
    assert sorted(f.name for f in (tmp_path / "whole").glob("own-1-*.npz")) == [f"own-1-{i:05d}.npz" for i in range(3)]
    assert whole["weights"] != trained("without", 0)["weights"]
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for name in ("generator-1.pt", "own-1-00002.npz", "generator.safetensors", "curves.json"):
        (tmp_path / "killed" / name).unlink()
    assert trained("killed", 1) == whole


def world_folder(world: Crafted) -> Path:
    """Where the crafted world lies: the folder above its train split."""
    return Path(world.encoded.arrays["mask"].filename).parent.parent  # type: ignore[attr-defined]
