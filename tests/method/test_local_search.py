"""Local search over the slots of a mined list: whole lists compared, never a worse one, never one that breaks a rule."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import crafted
import numpy as np
import pytest
import torch
from crafted import Crafted, L, N, random_lists

from degre_prod.baselines.calls import Calls, CountingEvaluator
from degre_prod.config import MiningConfig
from degre_prod.constraints.mask import first_lists, obeyed
from degre_prod.constraints.rules import unconstrained
from degre_prod.mining.local_search import local_search
from degre_prod.mining.mine import mine_requests
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.models.prefix import exchanged
from degre_prod.training.data import TensorBatch, to_batch

COUNTS = (N, 5, N, 4, N, N, 3, N)


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module", params=[False, True], ids=["slots", "position_free"])
def world(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Crafted:
    return crafted.crafted(tmp_path_factory.mktemp("world"), counts=COUNTS, position_free=request.param)


@pytest.fixture(params=product(("additive", "products", "attention"), (1, 3)), ids=lambda p: f"{p[0]}-{p[1]}")
def model(world: Crafted, request: pytest.FixtureRequest) -> LookaheadEvaluator:
    form, members = request.param
    return crafted.evaluator(world.encoder, form, members=members, pessimism=1.5 * (members > 1))


@pytest.fixture
def batch(world: Crafted) -> TensorBatch:
    return to_batch(world.encoded, np.arange(len(world.encoded)))


def worth_of(model: LookaheadEvaluator, batch: TensorBatch, lists_BL: torch.Tensor) -> torch.Tensor:
    return model.utilities(batch, lists_BL)[:, -1]


def test_the_rests_of_many_lists_are_worth_what_the_whole_lists_are(
    model: LookaheadEvaluator, batch: TensorBatch
) -> None:
    lists = random_lists(batch)
    prepared = model.prepare(batch)
    beams = model.start(prepared)
    for t in range(L):
        items = torch.arange(N).expand(len(lists), N)
        found = model.completed(prepared, beams, lists[:, t:], items)
        rests = exchanged(lists[:, t:], items)
        for k in range(N):
            whole = torch.cat([lists[:, :t], rests[:, k]], 1)
            torch.testing.assert_close(found[:, k], worth_of(model, batch, whole), rtol=1e-4, atol=1e-5)
        beams = model.advance(prepared, beams, torch.zeros(len(lists), 1, dtype=torch.long), lists[:, t : t + 1])


def test_a_candidate_changes_places_with_what_stands_there() -> None:
    got = exchanged(torch.tensor([[1, 4, 3]]), torch.tensor([[0, 1, 3, 4]]))
    assert got.tolist() == [[[0, 4, 3], [1, 4, 3], [3, 4, 1], [4, 1, 3]]]


def by_hand(
    model: LookaheadEvaluator, batch: TensorBatch, b: int, order: list[int], sweeps: int, shortlist: int = N
) -> list[int]:
    one = {name: value[b : b + 1] for name, value in batch.items()}
    there = [c for c in range(N) if bool(batch["mask"][b, c])]
    shortlists: list[list[int]] = []
    for sweep, t in product(range(sweeps), range(L)):
        tried = []
        for c in there if sweep == 0 else {order[t], *shortlists[t]}:
            if c not in order[:t]:
                variant = [order[t] if x == c else x for x in order]
                variant[t] = c
                tried.append((float(worth_of(model, one, torch.tensor([variant]))), c, variant))
        tried.sort(reverse=True)
        if sweep == 0:
            shortlists.append([c for _, c, _ in tried[:shortlist]])
        order = tried[0][2]
    return order


@pytest.mark.parametrize(("sweeps", "shortlist"), [(1, None), (3, None), (3, 2)])
def test_every_slot_takes_the_item_that_makes_the_list_worth_most(
    model: LookaheadEvaluator, batch: TensorBatch, sweeps: int, shortlist: int | None
) -> None:
    lists = random_lists(batch)
    got = local_search(model, model.prepare(batch), batch["mask"], lists, sweeps, shortlist=shortlist)
    torch.testing.assert_close(got.utility[:, 0], worth_of(model, batch, got.lists[:, 0]), rtol=1e-4, atol=1e-5)
    for b in range(len(lists)):
        assert got.lists[b, 0].tolist() == by_hand(model, batch, b, lists[b].tolist(), sweeps, shortlist or N)


@pytest.mark.parametrize("shortlist", [None, 3])
def test_equal_lists_are_left_alone_and_the_rules_are_kept(
    world: Crafted, batch: TensorBatch, shortlist: int | None
) -> None:
    model = crafted.evaluator(world.encoder, "additive")
    free = unconstrained(batch["mask"].numpy(), L)
    rules = replace(free, gap_slots=2, gap_group_BC=np.tile(np.arange(N) % 2, (len(batch["mask"]), 1)))
    able = np.flatnonzero((first_lists(rules) >= 0).all(1))
    some = {name: value[able] for name, value in batch.items()}
    start = torch.from_numpy(first_lists(rules.of(able)))
    bound = local_search(model, model.prepare(some), some["mask"], start, 2, rules.of(able), shortlist)
    unbound = local_search(model, model.prepare(some), some["mask"], start, 2, None, shortlist)
    assert obeyed(rules.of(able), bound.lists.numpy()).all()
    assert not obeyed(rules.of(able), unbound.lists.numpy()).all()
    assert (bound.utility[:, 0] >= worth_of(model, some, start) - 1e-5).all()
    for parameter in model.parameters():
        parameter.zero_()
    same = local_search(model, model.prepare(some), some["mask"], start, 2, None, shortlist)
    assert torch.equal(same.lists[:, 0], start)


def test_mining_climbs_from_its_best_list_and_counts_what_it_asks(world: Crafted) -> None:
    model = crafted.evaluator(world.encoder, "products")
    full = np.flatnonzero(world.encoded.arrays["mask"].sum(1) == N)
    found, prices = {}, {}
    for sweeps, shortlist in ((0, None), (2, None), (2, 2)):
        calls = Calls()
        settings = MiningConfig(beam_width=1, beams="prefix", keep=2, sweeps=sweeps, shortlist=shortlist)
        found[sweeps, shortlist] = mine_requests(CountingEvaluator(model, calls), world.encoded, full, settings)
        prices[sweeps, shortlist] = calls.count
    beam = found.pop((0, None))
    for climbed in found.values():
        assert (climbed["utility"][:, 0] >= beam["utility"][:, 0] - 1e-6).all()
        assert (climbed["utility"][:, 0] > beam["utility"][:, 0] + 1e-3).any()
    every, few = (sum(tried * (L - t) + 1 for t in range(L)) for tried in (N, 3))
    assert prices[2, None] - prices[0, None] == len(full) * 2 * every
    assert prices[2, 2] - prices[0, None] == len(full) * (every + few)
