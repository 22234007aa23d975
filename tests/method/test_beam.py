"""Beam search: exhaustive at full width, greedy at width 1, deterministic, ties and dead ends settled (METHOD §3)."""

from __future__ import annotations

from itertools import product

import crafted
import numpy as np
import pytest
import torch
from crafted import Crafted, L, N

from degre_prod.mining.beam import best_children, ranking, search, union_search, values_along
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.training.data import TensorBatch, to_batch

ALL = N * (N - 1) * (N - 2)


@pytest.fixture(scope="module", autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Crafted:
    return crafted.crafted(tmp_path_factory.mktemp("world"), counts=(N, N, N, 4, 3, 2))


@pytest.fixture(scope="module")
def batch(world: Crafted) -> TensorBatch:
    return to_batch(world.encoded, np.arange(len(world.encoded)))


@pytest.fixture(scope="module", params=["additive", "products", "attention"])
def model(world: Crafted, request: pytest.FixtureRequest) -> LookaheadEvaluator:
    return crafted.evaluator(world.encoder, request.param)


@pytest.mark.parametrize("to_go", [False, True])
def test_full_width_is_exhaustive_enumeration(model: LookaheadEvaluator, batch: TensorBatch, to_go: bool) -> None:
    found = search(model, model.prepare(batch), batch["mask"], width=ALL, to_go=to_go)
    for r in range(3):
        lists, worth = crafted.of_all_lists(model, batch, r)
        assert {tuple(x) for x in found.lists[r].tolist()} == {tuple(x) for x in lists.tolist()}
        best = int(worth.argmax())
        assert found.lists[r, 0].tolist() == lists[best].tolist()
        torch.testing.assert_close(found.utility[r], worth.sort(descending=True).values, rtol=1e-5, atol=2e-6)


def test_width_one_is_greedy(model: LookaheadEvaluator, batch: TensorBatch) -> None:
    found = search(model, model.prepare(batch), batch["mask"], width=1, to_go=False)
    for r in range(5):
        one = {name: value[r : r + 1] for name, value in batch.items()}
        chosen: list[int] = []
        free = list(range(int(one["mask"].sum())))
        for _ in range(L):
            worth = {c: float(model.utilities(one, torch.tensor([[*chosen, c]]))[0, -1]) for c in free}
            chosen.append(max(free, key=lambda c: worth[c]))
            free.remove(chosen[-1])
        assert found.lists[r].tolist() == [chosen]


def test_a_wider_beam_is_never_worse_than_greedy_at_full_width_and_may_be_better(
    model: LookaheadEvaluator, batch: TensorBatch
) -> None:
    greedy = search(model, model.prepare(batch), batch["mask"], width=1, to_go=False).utility[:4, 0]
    full = search(model, model.prepare(batch), batch["mask"], width=ALL, to_go=False).utility[:4, 0]
    assert (full >= greedy - 1e-6).all()


def test_the_union_holds_both_beams(model: LookaheadEvaluator, batch: TensorBatch) -> None:
    prepared, mask = model.prepare(batch), batch["mask"]
    by_u, by_both = (search(model, prepared, mask, width=2, to_go=to_go) for to_go in (False, True))
    union = union_search(model, prepared, mask, width=2)
    assert torch.equal(union.lists, torch.cat([by_u.lists, by_both.lists], 1))
    assert torch.equal(union.utility, torch.cat([by_u.utility, by_both.utility], 1))
    assert not torch.equal(by_u.lists[:3], by_both.lists[:3])  # else the second beam would add nothing here
    for r, k in product(range(4), range(4)):  # leaves are ranked by U whatever led to them
        one = {name: value[r : r + 1] for name, value in batch.items()}
        worth = float(model.utilities(one, union.lists[r, k : k + 1])[0, -1])
        assert float(union.utility[r, k]) == pytest.approx(worth, rel=1e-5)


def test_ties_go_to_the_earlier_parent_then_to_the_smaller_prior_rank() -> None:
    score = torch.tensor([[[1.0, 2.0, 2.0 + 4e-7], [2.0, 2.0 - 4e-7, 0.5]]])
    parent, item, alive = best_children(score, torch.ones(1, 2, 3, dtype=torch.bool), 5)
    assert list(zip(parent[0].tolist(), item[0].tolist(), strict=True)) == [(0, 1), (0, 2), (1, 0), (1, 1), (0, 0)]
    assert alive.all()
    assert ranking(torch.tensor([[0.5, 1.0, 1.0, 2.0]]), torch.ones(1, 4, dtype=torch.bool)).tolist() == [[3, 1, 2, 0]]


def test_values_further_apart_than_the_tie_are_not_tied() -> None:
    score = torch.tensor([[[1.0, 1.0 + 3e-6]]])
    _, item, _ = best_children(score, torch.ones(1, 1, 2, dtype=torch.bool), 2)
    assert item.tolist() == [[1, 0]]


def test_when_everything_is_worth_the_same_the_upstream_order_wins(world: Crafted, batch: TensorBatch) -> None:
    model = crafted.zeroed(crafted.evaluator(world.encoder))
    for to_go in (False, True):
        found = search(model, model.prepare(batch), batch["mask"], width=4, to_go=to_go)
        assert (found.lists[:5, 0] == torch.arange(L)).all()


def test_prefixes_without_a_child_are_dropped(model: LookaheadEvaluator, batch: TensorBatch) -> None:
    found = search(model, model.prepare(batch), batch["mask"], width=8, to_go=True)
    alive = found.utility.isfinite()
    assert alive.sum(1).tolist() == [8, 8, 8, 8, 6, 0]  # 3 candidates fill 3 slots in 6 ways, 2 in none
    for r in range(len(alive)):
        n = int(batch["mask"][r].sum())
        lists = [tuple(x) for x in found.lists[r][alive[r]].tolist()]
        assert len(set(lists)) == len(lists)
        assert all(len(set(x)) == L and max(x) < n for x in lists)
        worth = found.utility[r][alive[r]]
        assert (worth[1:] <= worth[:-1] + 1e-6).all()
        assert alive[r].tolist() == sorted(alive[r].tolist(), reverse=True)  # dropped ones last


def test_a_search_from_a_prefix_stays_below_it(model: LookaheadEvaluator, batch: TensorBatch) -> None:
    full = {name: value[:3] for name, value in batch.items()}
    prepared = model.prepare(full)
    first = torch.tensor([[2], [0], [5]])
    start = model.advance(prepared, model.start(prepared), torch.zeros_like(first), first)
    found = search(model, prepared, full["mask"], width=ALL, to_go=False, start=start, prefix_BT=first)
    for r in range(3):
        lists, worth = crafted.of_all_lists(model, batch, r)
        below = lists[:, 0] == first[r, 0]
        best = int(torch.where(below, worth, -1e9).argmax())
        assert found.lists[r, 0].tolist() == lists[best].tolist()
        assert int(found.utility[r].isfinite().sum()) == int(below.sum()) == (N - 1) * (N - 2)


def test_values_along_are_the_values_of_all_children(model: LookaheadEvaluator, batch: TensorBatch) -> None:
    full = {name: value[:3] for name, value in batch.items()}
    lists = torch.stack([crafted.random_lists(full, seed=s) for s in (0, 1)], dim=1)
    D = values_along(model, model.prepare(full), lists)
    assert D.shape == (3, 2, L, N)
    for k, t, c in product(range(2), range(L), range(N)):
        child = torch.cat([lists[:, k, :t], torch.full((3, 1), c)], dim=1)
        torch.testing.assert_close(D[:, k, t, c], model.utilities(full, child)[:, -1], rtol=1e-5, atol=1e-6)


def test_the_same_search_twice_is_bit_equal(model: LookaheadEvaluator, batch: TensorBatch) -> None:
    one, two = (union_search(model, model.prepare(batch), batch["mask"], width=4) for _ in range(2))
    assert torch.equal(one.lists, two.lists)
    assert torch.equal(one.utility, two.utility)
