"""Standing constraints, the trust region and the choice of beams in mining, targets and training."""

from __future__ import annotations

import json
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import crafted
import numpy as np
import pytest
import torch
from crafted import Crafted, L, N

from degre_prod.config import GeneratorConfig, MiningConfig
from degre_prod.constraints import mask as masks
from degre_prod.constraints.check import check_list
from degre_prod.constraints.mask import feasible_along, first_lists
from degre_prod.constraints.rules import Rules
from degre_prod.constraints.spec import GapRule, QuotaRule, StandingConstraints
from degre_prod.distill.dataset import dense_targets, load_targets
from degre_prod.errors import ConfigurationError, ConstraintError, TrainingError
from degre_prod.mining import beam
from degre_prod.mining import mine as mining
from degre_prod.mining.mine import mine, mine_requests
from degre_prod.mining.record import MiningRecord, mining_rules, read_record
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.models.generator import NEVER, Generator
from degre_prod.training.data import logged_lists, to_batch
from degre_prod.training.generator import dense_loss
from degre_prod.training.modules import save_module

STANDING = StandingConstraints(
    gap=GapRule(by="group", slots=2), quotas=(QuotaRule(by="group", value="a", min=1, max=1),)
)
COUNTS = (N, 5, N, 3, 2, N, 4, N, N, 1, N, N, 5, N)
SETTINGS = MiningConfig(requests=100, beam_width=4, keep=3, replan_width=3, shard_size=5, chunk_size=3)


def crafted_on_disk(folder: Path, **changes: Any) -> Crafted:
    """An encoded split and a random evaluator, as the stages leave them."""
    world = crafted.crafted(folder, counts=COUNTS, **changes)
    model = crafted.evaluator(world.encoder)
    (folder / "evaluator").mkdir()
    save_module(model, model.spec, folder / "evaluator", "evaluator")
    return world


def mined(folder: Path, world: Path, settings: MiningConfig) -> Path:
    """Mine in this process; the folder of shards."""
    folder.mkdir()
    config = {"encoded": str(world), "evaluator": str(world / "evaluator"), "folder": str(folder)}
    mine(config | {"mining": settings.model_dump()})
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("constrained")


@pytest.fixture(scope="module")
def world(place: Path) -> Crafted:
    return crafted_on_disk(place / "world", constraints=STANDING)


@pytest.fixture(scope="module")
def model(world: Crafted) -> LookaheadEvaluator:
    return crafted.evaluator(world.encoder)


@pytest.fixture(scope="module")
def feasible(world: Crafted) -> tuple[np.ndarray, Rules]:
    newest = np.flatnonzero(np.array(COUNTS) >= L)
    requests, rules = mining_rules(world.encoder.spec, world.encoded, newest, SETTINGS)
    assert rules is not None
    assert 5 <= len(requests) < len(newest)  # some have no such list, else the test would show too little
    return requests, rules


@pytest.fixture(scope="module")
def arrays(world: Crafted, model: LookaheadEvaluator, feasible: tuple[np.ndarray, Rules]) -> dict[str, np.ndarray]:
    return mine_requests(model, world.encoded, feasible[0], SETTINGS, feasible[1])


def lists_that_obey(world: Crafted, r: int) -> list[tuple[int, ...]]:
    """By the raw groups, spelt out."""
    request, _, items = world.rows[r]
    groups, n = list(items.values["group"]), len(request.candidate_ids)
    return [
        order
        for order in product(range(n), repeat=L)
        if len(set(order)) == L
        and all(groups[a] != groups[b] for a, b in pairwise(order))
        and [groups[i] for i in order].count("a") == 1
    ]


def test_mined_lists_are_the_best_that_obey(
    world: Crafted, model: LookaheadEvaluator, feasible: tuple[np.ndarray, Rules]
) -> None:
    requests, rules = feasible
    wide = SETTINGS.model_copy(update={"beam_width": 200, "keep": 5})
    found = mine_requests(model, world.encoded, requests, wide, rules)
    batch = to_batch(world.encoded, requests)
    for b, r in enumerate(requests):
        one = {name: value[b : b + 1] for name, value in batch.items()}
        good = lists_that_obey(world, int(r))
        worth = torch.cat([model.utilities(one, torch.tensor([order]))[:, -1] for order in good])
        expected = worth.sort(descending=True).values[:5].detach().numpy()
        np.testing.assert_allclose(found["utility"][b, : len(expected)], expected, rtol=1e-5)
        assert all(
            tuple(x) in good
            for x, u in zip(found["lists"][b].tolist(), found["utility"][b], strict=True)
            if u > -np.inf
        )


def test_narrow_beams_keep_to_the_rules_too(arrays: dict[str, np.ndarray], feasible: tuple[np.ndarray, Rules]) -> None:
    for b in range(len(feasible[0])):
        assert np.isfinite(arrays["utility"][b, 0])
        for order in arrays["lists"][b][np.isfinite(arrays["utility"][b])]:
            check_list(feasible[1], order, b)


def test_values_stand_only_where_the_mask_does(
    arrays: dict[str, np.ndarray], feasible: tuple[np.ndarray, Rules]
) -> None:
    mask = feasible_along(feasible[1], arrays["lists"])
    np.testing.assert_array_equal(~np.isnan(arrays["one_step"]), mask)
    assert not (~np.isnan(arrays["backed_up"]) & ~mask).any()


def test_logged_lists_and_the_upstream_order_are_leaves_only_where_they_obey(
    world: Crafted, model: LookaheadEvaluator, feasible: tuple[np.ndarray, Rules]
) -> None:
    requests, rules = feasible
    everything = SETTINGS.model_copy(update={"keep": 40, "beam_width": 2})
    found = mine_requests(model, world.encoded, requests, everything, rules)
    shown, _, _ = logged_lists(world.encoded, requests, L, None)
    upstream, obeyed = first_lists(rules), 0
    for b, r in enumerate(requests):
        good = lists_that_obey(world, int(r))
        kept = [tuple(x) for x, u in zip(found["lists"][b].tolist(), found["utility"][b], strict=True) if u > -np.inf]
        assert tuple(upstream[b].tolist()) == min(good)  # the first in the order of prior ranks
        assert min(good) in kept
        logged = tuple(shown[b].tolist())
        assert (logged in kept) == (logged in good)
        obeyed += logged in good
    assert 0 < obeyed < len(requests)


def test_requests_without_a_list_are_left_out_and_counted(world: Crafted, place: Path) -> None:
    folder = mined(place / "mined", place / "world", SETTINGS)
    record = read_record(folder)
    there = np.concatenate([np.load(file)["request"] for file in sorted(folder.glob("shard-*.npz"))])
    expected = [r for r, n in enumerate(COUNTS) if n >= L and lists_that_obey(world, r)]
    assert there.tolist() == expected
    assert record == MiningRecord(
        constraints=STANDING,
        mined=len(expected),
        infeasible=sum(n >= L for n in COUNTS) - len(expected),
    )
    assert record.restricted


def test_when_no_request_has_a_list_mining_says_why(tmp_path: Path) -> None:
    crafted_on_disk(tmp_path / "world", constraints=StandingConstraints(gap=GapRule(by="group", slots=2)))
    text = json.loads((tmp_path / "world" / "encoder.json").read_text())
    text["data_schema"]["constraints"]["quotas"] = [{"by": "group", "value": "a", "min": 3}]
    (tmp_path / "world" / "encoder.json").write_text(json.dumps(text))
    with pytest.raises(TrainingError, match="none of 12 training requests has a list that obeys"):
        mined(tmp_path / "mined", tmp_path / "world", SETTINGS)
    text["data_schema"]["constraints"]["quotas"] = [{"by": "group", "value": "z", "min": 1}]
    (tmp_path / "world" / "encoder.json").write_text(json.dumps(text))
    with pytest.raises(ConstraintError, match="does not know this value"):
        mined(tmp_path / "again", tmp_path / "world", SETTINGS)


# -- targets and training ------------------------------------------------------------------------------------------------


def test_soft_labels_have_no_mass_where_the_rules_forbid(
    arrays: dict[str, np.ndarray], feasible: tuple[np.ndarray, Rules]
) -> None:
    for form in ("backed_up", "one_step"):
        targets = dense_targets(arrays, GeneratorConfig(targets=form), restricted=True)
        mask = feasible_along(feasible[1], arrays["lists"])
        assert (targets.soft[~mask] == 0).all()
        assert (targets.soft[mask] > 0).any()
        np.testing.assert_array_equal(targets.feasible, mask)
        assert dense_targets(arrays, GeneratorConfig(targets=form)).feasible is None


def test_the_generator_is_trained_under_the_same_mask(world: Crafted, place: Path) -> None:
    targets = load_targets(mined(place / "for_training", place / "world", SETTINGS), GeneratorConfig())
    assert targets.feasible is not None
    network = crafted.generator(world.encoder)
    samples = np.arange(len(targets.request))
    batch = to_batch(world.encoded, targets.request)
    fed = torch.from_numpy(targets.inputs)
    logits = network.teacher_forced(batch, fed, torch.from_numpy(targets.feasible))
    assert (logits[~torch.from_numpy(targets.feasible)] == NEVER).all()
    masked, _ = dense_loss(network, world.encoded, targets, 0.5)(samples, np.random.default_rng(0))
    # Learning moves no weight to make what the rules forbid anyway less likely.
    bare = type(targets)(**{**vars(targets), "feasible": None})
    unmasked, _ = dense_loss(network, world.encoded, bare, 0.5)(samples, np.random.default_rng(0))
    assert torch.isfinite(masked)
    assert masked < unmasked
    masked.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_without_rules_mining_and_training_never_ask_the_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the mask was asked")

    for module in (masks, beam):
        monkeypatch.setattr(module, "feasible_next", refuse)
    fed: list[object] = []
    forced = Generator.teacher_forced
    monkeypatch.setattr(
        Generator,
        "teacher_forced",
        lambda self, batch, lists, mask=None: fed.append(mask) or forced(self, batch, lists),
    )
    world = crafted_on_disk(tmp_path / "world")
    folder = mined(tmp_path / "mined", tmp_path / "world", SETTINGS)
    assert read_record(folder) == MiningRecord(mined=12)
    assert not read_record(folder).restricted
    targets = load_targets(folder, GeneratorConfig())
    dense_loss(crafted.generator(world.encoder), world.encoded, targets, 0.5)(np.arange(3), np.random.default_rng(0))
    assert fed == [None]


# -- trust region and beams ----------------------------------------------------------------------------------------------


def test_a_trust_region_holds_in_mining_targets_and_training(tmp_path: Path) -> None:
    crafted_on_disk(tmp_path / "world")
    lists = {}
    for region in (None, 4):
        settings = SETTINGS.model_copy(update={"trust_region": region})
        folder = mined(tmp_path / f"mined-{region}", tmp_path / "world", settings)
        targets = load_targets(folder, GeneratorConfig())
        lists[region] = targets.inputs[:, :-1]
        assert read_record(folder).trust_region == region
        assert (targets.feasible is None) == (region is None)
        assert (targets.soft[..., 4:] > 0).any() == (region is None)
    assert (lists[None] >= 4).any()
    assert (lists[4] < 4).all()


def test_a_trust_region_shorter_than_the_list_is_refused(world: Crafted) -> None:
    settings = SETTINGS.model_copy(update={"trust_region": L - 1})
    with pytest.raises(ConfigurationError, match="trust_region 2 leaves fewer candidates than the 3 slots"):
        mining_rules(world.encoder.spec, world.encoded, np.arange(3), settings)


def test_prefix_beams_leave_out_the_value_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = crafted.crafted(tmp_path, counts=(N,) * 6)
    model = crafted.evaluator(world.encoder)
    asked: list[bool] = []
    search = beam.search

    def spy(*args: Any, to_go: bool, **kwargs: Any) -> beam.Leaves:
        asked.append(to_go)
        return search(*args, to_go=to_go, **kwargs)

    for module in (beam, mining):
        monkeypatch.setattr(module, "search", spy)
    found = {}
    for beams in ("union", "prefix"):
        asked.clear()
        settings = SETTINGS.model_copy(update={"beams": beams, "beam_width": 2})
        found[beams] = mine_requests(model, world.encoded, np.arange(6), settings)
        assert any(asked) == (beams == "union")
        assert len(asked) == (3 if beams == "union" else 2)  # greedy, beams
    assert (found["union"]["utility"][:, 0] >= found["prefix"]["utility"][:, 0] - 1e-6).all()
