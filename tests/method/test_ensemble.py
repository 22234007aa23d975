"""Members of an evaluator: mean − κ·std over them behind the one interface, and how they are trained and kept."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import crafted
import numpy as np
import pytest
import torch
from crafted import Crafted, L, N, random_lists

from degre_prod.baselines.calls import Calls, CountingEvaluator
from degre_prod.config import EvaluatorConfig, MiningConfig
from degre_prod.mining.beam import union_search
from degre_prod.mining.mine import mine, mine_requests
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.training import evaluator as training
from degre_prod.training.data import TensorBatch, to_batch
from degre_prod.training.evaluator import FORMS, train_evaluator
from degre_prod.training.modules import load_evaluator, save_module

MEMBERS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("world")


@pytest.fixture(scope="module")
def world(folder: Path) -> Crafted:
    return crafted.crafted(folder, counts=(N,) * 40)


@pytest.fixture(scope="module")
def batch(world: Crafted) -> TensorBatch:
    return to_batch(world.encoded, np.arange(5))


def alone(model: LookaheadEvaluator) -> list[LookaheadEvaluator]:
    """Each member as an evaluator of its own."""
    out = []
    for member in model.each():
        one = LookaheadEvaluator(replace(model.spec, members=1))
        next(iter(one.each())).load_state_dict(member.state_dict())
        out.append(one.eval())
    return out


@torch.inference_mode()
@pytest.mark.parametrize("form", ["additive", "products", "attention"])
@pytest.mark.parametrize("pessimism", [0.0, 1.5])
def test_values_are_the_mean_less_the_deviation_of_the_members(
    world: Crafted, batch: TensorBatch, form: str, pessimism: float
) -> None:
    model = crafted.evaluator(world.encoder, form, members=MEMBERS, pessimism=pessimism)
    lists, each = random_lists(batch), alone(model)

    def agreed(values: list[torch.Tensor]) -> torch.Tensor:
        stacked = np.stack([v.numpy() for v in values])
        return torch.from_numpy(stacked.mean(0) - pessimism * stacked.std(0))

    torch.testing.assert_close(model.utilities(batch, lists), agreed([m.utilities(batch, lists) for m in each]))
    mean_steps = torch.stack([m.increments(batch, lists)[0] for m in each]).mean(0)
    torch.testing.assert_close(model.increments(batch, lists)[0], mean_steps)  # what is reported: whatever κ
    torch.testing.assert_close(model.to_go(batch, lists), torch.stack([m.to_go(batch, lists) for m in each]).mean(0))
    prepared, beams = model.prepare(batch), model.start(model.prepare(batch))
    for t in range(L):
        U, score = model.expand(prepared, beams, to_go=True)
        assert score is not None
        for c in range(N):
            longer = torch.cat([lists[:, :t], torch.full((len(lists), 1), c)], dim=1)
            worth = [m.utilities(batch, longer)[:, -1] for m in each]
            still = [w + m.to_go(batch, longer)[:, -1] for w, m in zip(worth, each, strict=True)]
            torch.testing.assert_close(U[:, 0, c], agreed(worth), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(score[:, 0, c], agreed(still), rtol=1e-4, atol=1e-5)
        beams = model.advance(prepared, beams, torch.zeros(len(lists), 1, dtype=torch.long), lists[:, t : t + 1])
        torch.testing.assert_close(beams.utility[:, 0], model.utilities(batch, lists)[:, t], rtol=1e-4, atol=1e-5)
    leaves = union_search(model, prepared, batch["mask"], width=2)
    torch.testing.assert_close(
        leaves.utility[:, 0], model.utilities(batch, leaves.lists[:, 0])[:, -1], rtol=1e-4, atol=1e-5
    )


def test_every_member_is_paid_for(world: Crafted) -> None:
    counts = []
    for members in (1, MEMBERS):
        calls, model = Calls(), crafted.evaluator(world.encoder, members=members, pessimism=0.5 * (members > 1))
        counted = CountingEvaluator(model, calls)
        assert counted.pessimism == model.pessimism
        mine_requests(counted, world.encoded, np.arange(4), MiningConfig(beam_width=3))
        counts.append(calls.count)
    assert counts[1] == MEMBERS * counts[0] > 0


@torch.inference_mode()
def test_one_member_disagrees_with_nobody(world: Crafted, batch: TensorBatch) -> None:
    lists = random_lists(batch)
    plain, pessimistic = (crafted.evaluator(world.encoder, pessimism=kappa).utilities(batch, lists) for kappa in (0, 5))
    assert torch.equal(plain, pessimistic)


@torch.inference_mode()
@pytest.mark.parametrize("head", ["count_markov", "continuation", "step"])
def test_an_evaluator_comes_back_from_disk_with_all_its_members(
    world: Crafted, batch: TensorBatch, tmp_path: Path, head: str
) -> None:
    model = crafted.evaluator(world.encoder, "attention", head=head, members=2)
    save_module(model, model.spec, tmp_path, "evaluator")
    again, lists = load_evaluator(tmp_path), random_lists(batch)
    assert again.spec == model.spec
    assert torch.equal(again.utilities(batch, lists), model.utilities(batch, lists))
    assert (load_evaluator(tmp_path, pessimism=1.0).utilities(batch, lists) < again.utilities(batch, lists)).all()


def test_mining_with_pessimism_keeps_other_lists(folder: Path, world: Crafted, tmp_path: Path) -> None:
    model = crafted.evaluator(world.encoder, members=MEMBERS)
    save_module(model, model.spec, tmp_path / "evaluator", "evaluator")
    kept = []
    for pessimism in (0.0, 3.0):
        out = tmp_path / f"mined-{pessimism}"
        out.mkdir()
        settings = MiningConfig(requests=20, pessimism=pessimism).model_dump()
        mine({"encoded": str(folder), "evaluator": str(tmp_path / "evaluator"), "folder": str(out), "mining": settings})
        with np.load(out / "shard-00000.npz") as arrays:
            kept.append((arrays["lists"][:, 0], arrays["utility"][:, 0]))
    assert (kept[0][0] != kept[1][0]).any()
    assert (kept[1][1] < kept[0][1]).all()


def trained(folder: Path, out: Path, **changes: Any) -> tuple[LookaheadEvaluator, dict[str, list[dict[str, float]]]]:
    settings = {"width": 8, "epochs": 4, "attention_epochs": 2, "min_steps": 1, "batch_size": 16, "togo_steps": 3}
    settings["members"] = 1
    settings = EvaluatorConfig(**(settings | changes)).model_dump()
    out.mkdir()
    train_evaluator({"encoded": str(folder), "folder": str(out), "evaluator": settings})
    return load_evaluator(out), json.loads((out / "curves.json").read_text())


def best(curve: list[dict[str, float]]) -> float:
    return min(point["validation"] for point in curve)


@pytest.mark.usefixtures("world")
def test_auto_keeps_the_form_with_the_lower_validation_loss(folder: Path, tmp_path: Path) -> None:
    """One epoch of some forms against twenty of the others: a longer one wins, whichever it is."""
    for longer, others in ((("additive", "products"), ("attention",)), (("attention",), ("additive", "products"))):
        epochs = {"epochs": 1 if "attention" in longer else 20, "attention_epochs": 20 if "attention" in longer else 1}
        model, curves = trained(folder, tmp_path / longer[0], **epochs)
        assert set(curves) == {*(f"evaluator {form}" for form in FORMS), "value to go", "pointwise"}
        lowest = {form: best(curves[f"evaluator {form}"]) for form in FORMS}
        assert max(lowest[form] for form in longer) < min(lowest[form] for form in others)
        assert model.spec.prefix_state == min(lowest, key=lambda form: lowest[form])
        assert len(curves[f"evaluator {model.spec.prefix_state}"]) == 20
        assert {len(curves[f"evaluator {form}"]) for form in longer} <= {10, 20}
        assert {len(curves[f"evaluator {form}"]) for form in others} == {1}


@pytest.mark.usefixtures("world")
def test_forms_that_are_behind_half_way_go_no_further(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {}
    for name, behind in (("all", np.inf), ("one", 1.0)):
        monkeypatch.setattr(training, "BEHIND", behind)
        told[name] = trained(folder, tmp_path / name)
    assert len(told["one"][1]["value to go"]) == len(told["all"][1]["value to go"])  # in two halves, and at once
    curves = {name: {form: each[f"evaluator {form}"] for form in FORMS} for name, (_, each) in told.items()}
    half = {form: best(curves["all"][form][: len(curves["all"][form]) // 2]) for form in FORMS}
    first = min(half, key=lambda form: half[form])
    assert told["one"][0].spec.prefix_state == first
    for form in FORMS:
        whole = 2 if form == "attention" else 4
        assert len(curves["all"][form]) == whole
        assert curves["one"][form] == curves["all"][form][: whole if form == first else whole // 2]


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("form", ["additive", "products", "attention"])
def test_a_form_that_is_named_is_the_only_one_trained(folder: Path, tmp_path: Path, form: str) -> None:
    model, curves = trained(folder, tmp_path / "out", prefix_state=form, head="continuation")
    assert set(curves) == {f"evaluator {form}", "value to go", "pointwise"}
    assert (model.spec.prefix_state, model.spec.head, model.spec.members) == (form, "continuation", 1)


@pytest.mark.usefixtures("world")
def test_a_small_log_is_trained_longer_in_every_form(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three batches an epoch: 12 steps are four epochs, and of half as many attention epochs half the steps."""
    monkeypatch.setattr(training, "BEHIND", np.inf)
    _, curves = trained(folder, tmp_path / "out", epochs=2, attention_epochs=1, min_steps=12)
    assert [len(curves[f"evaluator {form}"]) for form in FORMS] == [4, 4, 2]


@pytest.mark.usefixtures("world")
def test_members_have_weights_and_values_to_go_of_their_own(folder: Path, tmp_path: Path) -> None:
    model, curves = trained(folder, tmp_path / "two", members=2)
    chosen = model.spec.prefix_state
    first = {*(f"evaluator {form}" for form in FORMS), "value to go", "pointwise"}
    assert set(curves) == first | {f"evaluator {chosen} 2", "value to go 2"}  # the other forms are not tried again
    one, two = (dict(member.named_parameters()) for member in model.each())
    for part, name in product(("value", "togo"), ("fields.linear.item.weight", "token.qkv.weight")):
        assert not torch.allclose(one[f"{part}.{name}"], two[f"{part}.{name}"])
    single, _ = trained(folder, tmp_path / "one", members=1)
    for name, value in next(iter(single.each())).named_parameters():
        assert torch.equal(value, one[name]), name  # a second member changes nothing of the first
