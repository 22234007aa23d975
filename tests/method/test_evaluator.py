"""The evaluator: count distributions, causality, invariances, and cached steps against whole lists (METHOD §2)."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import crafted
import numpy as np
import pytest
import torch
from crafted import Crafted, L, N, random_lists
from torch.nn import functional as F

from degre_prod.models.count_head import CountHead, make_head
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.models.fields import listed
from degre_prod.models.member import Member
from degre_prod.training.data import TensorBatch, to_batch
from degre_prod.training.evaluator import count_loss, to_go_loss

CLOSE = {"rtol": 1e-5, "atol": 1e-6}


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Crafted:
    return crafted.crafted(tmp_path_factory.mktemp("world"), counts=(N, N, 5, 4, N, 3))


@pytest.fixture(scope="module")
def batch(world: Crafted) -> TensorBatch:
    return to_batch(world.encoded, np.arange(len(world.encoded)))


HEADS = ("count_markov", "continuation", "step")


@pytest.fixture(params=product(("additive", "products", "attention"), HEADS), ids="-".join)
def model(world: Crafted, request: pytest.FixtureRequest) -> LookaheadEvaluator:
    form, head = request.param
    return crafted.evaluator(world.encoder, form, head=head)


def only(model: LookaheadEvaluator) -> Member:
    """The one member of an evaluator."""
    (member,) = model.each()
    return member


def test_the_count_distribution_and_the_increments_tell_the_same_story(
    model: LookaheadEvaluator, batch: TensorBatch
) -> None:
    lists = random_lists(batch)
    for t in range(1, L + 1):
        m_BLO, P = model.increments(batch, lists[:, :t])
        tail = P.flip(-1).cumsum(-1).flip(-1)[..., 1:]  # P(V ≥ k) for k = 1 … t
        assert tail.shape[-1] == t  # k > t has no place at all
        torch.testing.assert_close(P.sum(-1), torch.ones_like(P[..., 0]), **CLOSE)
        torch.testing.assert_close(tail.sum(-1), m_BLO.sum(1), **CLOSE)
        torch.testing.assert_close((P * torch.arange(t + 1)).sum(-1), m_BLO.sum(1), **CLOSE)
        assert (tail[..., 1:] <= tail[..., :-1] + 1e-6).all()
        assert (tail[:, 1, 1:].abs() < 1e-6).all()  # the second objective is earned once at most
        if t > 1:
            assert (tail[:, 0, 1:] > 0).all()


def test_the_count_distribution_is_the_heads_formula(model: LookaheadEvaluator, batch: TensorBatch) -> None:
    """All feedback paths for the heads that go step by step, the product of thresholds for the continuation."""
    lists = random_lists(batch)
    logits = only(model).logits(batch, lists).double()
    m, P = model.increments(batch, lists)
    by_hand = by_thresholds if model.spec.head == "continuation" else by_paths
    for r, o in product(range(len(lists)), range(2)):
        chance, mean = by_hand(logits[r, :, o].tolist(), once=o == 1)
        assert P[r, o].tolist() == pytest.approx(chance, abs=1e-6)
        assert m[r, :, o].tolist() == pytest.approx(mean, abs=1e-6)


def by_paths(logits: list[list[float]], once: bool) -> tuple[list[float], list[float]]:
    """The distribution of the count after L slots and the increments, over every path of feedback."""
    chance, mean = [0.0] * (L + 1), [0.0] * L
    for path in product((0, 1), repeat=L):
        p = 1.0
        for t, y in enumerate(path):
            k = sum(path[:t])
            a, b = (*logits[t], 0.0)[:2]
            rate = 0.0 if once and k else sigmoid(a + b * math.log(1 + k))
            p *= rate if y else 1 - rate
        chance[sum(path)] += p
        for t, y in enumerate(path):
            mean[t] += p * y
    return chance, mean


def by_thresholds(logits: list[list[float]], once: bool) -> tuple[list[float], list[float]]:
    """The same from P(V_t ≥ k) = Π_{j≤k} σ(f_j(h_t))."""
    tails = [[math.prod(map(sigmoid, f[:k])) for k in range(1, t + 1)] for t, f in enumerate(logits, start=1)]
    if once:
        tails = [[tail[0], *[0.0] * (len(tail) - 1)] for tail in tails]
    expected = [0.0, *map(sum, tails)]
    last = [1.0, *tails[-1], 0.0]
    return [last[k] - last[k + 1] for k in range(L + 1)], [expected[t] - expected[t - 1] for t in range(1, L + 1)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_a_step_forgets_what_was_earned_and_the_others_do_not(world: Crafted, batch: TensorBatch) -> None:
    """The chance of the last slot's feedback given the count before it, of the objective earned any number of times."""
    lists = random_lists(batch)
    for head in ("count_markov", "step"):
        member = only(crafted.evaluator(world.encoder, head=head))
        logits = member.logits(batch, lists)[:, -1]
        rates = [member.head.increments(logits, torch.eye(L)[k].expand(len(lists), 2, L))[:, 0] for k in range(L)]
        assert torch.equal(rates[0], rates[2]) == (head == "step")


def test_utility_weighs_increments_by_objective_and_slot(model: LookaheadEvaluator, batch: TensorBatch) -> None:
    lists = random_lists(batch)
    m, _ = model.increments(batch, lists)
    U = model.utilities(batch, lists)
    for r, t in product(range(len(lists)), range(L)):
        worth = sum(float(m[r, i, 0]) / (i + 1) + 3 * float(m[r, i, 1]) / (i + 1) for i in range(t + 1))
        assert float(U[r, t]) == pytest.approx(worth / 0.7, rel=1e-5)


@pytest.mark.parametrize("t", [1, 2])
def test_later_items_leave_earlier_outputs_bit_equal(model: LookaheadEvaluator, batch: TensorBatch, t: int) -> None:
    full = {name: value[[0, 1, 4]] for name, value in batch.items()}
    lists = random_lists(full)
    others = lists.clone()
    for r in range(len(lists)):
        left = [c for c in range(N) if c not in lists[r].tolist()]
        others[r, t:] = torch.tensor(left[: L - t])
    before, after = (only(model).logits(full, of) for of in (lists, others))
    assert torch.equal(before[:, :t], after[:, :t])
    assert not torch.equal(before[:, t:], after[:, t:])
    assert torch.equal(model.to_go(full, lists)[:, :t], model.to_go(full, others)[:, :t])


def test_the_order_of_the_candidates_does_not_matter(model: LookaheadEvaluator, batch: TensorBatch) -> None:
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    place = order.argsort()
    lists = random_lists(batch)
    moved = crafted.permuted(batch, order)
    torch.testing.assert_close(model.utilities(moved, place[lists]), model.utilities(batch, lists), **CLOSE)
    torch.testing.assert_close(model.to_go(moved, place[lists]), model.to_go(batch, lists), **CLOSE)


def test_padding_does_not_matter(model: LookaheadEvaluator, batch: TensorBatch) -> None:
    lists, wider = random_lists(batch), crafted.padded(batch, 3)
    torch.testing.assert_close(model.utilities(wider, lists), model.utilities(batch, lists), **CLOSE)
    torch.testing.assert_close(model.to_go(wider, lists), model.to_go(batch, lists), **CLOSE)
    beams, padded_beams = model.start(model.prepare(batch)), model.start(model.prepare(wider))
    _, score = model.expand(model.prepare(batch), beams, to_go=True)
    _, padded_score = model.expand(model.prepare(wider), padded_beams, to_go=True)
    assert score is not None
    assert padded_score is not None
    torch.testing.assert_close(padded_score[..., :N], score, **CLOSE)


def test_the_pool_of_candidates_does_matter_to_what_is_still_to_come(
    model: LookaheadEvaluator, batch: TensorBatch
) -> None:
    lists = random_lists(batch)
    other = dict(batch)
    outside = next(c for c in range(N) if c not in lists[0].tolist())
    other["item_num"] = batch["item_num"].clone()
    other["item_num"][0, outside] += 1
    assert not torch.equal(model.to_go(other, lists)[0, :-1], model.to_go(batch, lists)[0, :-1])


def test_cached_steps_equal_whole_lists(model: LookaheadEvaluator, batch: TensorBatch) -> None:
    """Every child of every prefix on the way, parents chosen out of order and twice."""
    prepared = model.prepare(batch)
    beams, B = model.start(prepared), len(batch["mask"])
    lists = torch.zeros(B, 1, 0, dtype=torch.long)
    rng = np.random.default_rng(4)
    for t in range(L):
        K = lists.shape[1]
        U, score = model.expand(prepared, beams, to_go=True)
        assert score is not None
        for k, c in product(range(K), range(N)):
            whole = torch.cat([lists[:, k], torch.full((B, 1), c)], dim=1)
            torch.testing.assert_close(U[:, k, c], model.utilities(batch, whole)[:, -1], **CLOSE)
            torch.testing.assert_close((score - U)[:, k, c], model.to_go(batch, whole)[:, -1], **CLOSE)
        parent = torch.from_numpy(rng.integers(0, K, (B, 4)))
        item = torch.from_numpy(rng.integers(0, N, (B, 4)))
        beams = model.advance(prepared, beams, parent, item)
        lists = torch.cat([lists.gather(1, parent.unsqueeze(-1).expand(-1, -1, t)), item.unsqueeze(-1)], dim=-1)
        for k in range(4):
            torch.testing.assert_close(beams.utility[:, k], model.utilities(batch, lists[:, k])[:, -1], **CLOSE)
            _, P = model.increments(batch, lists[:, k])
            torch.testing.assert_close(beams.members[0].counts[:, k], P, **CLOSE)
    assert beams.length == L


def test_nothing_is_to_come_after_the_last_slot(model: LookaheadEvaluator, batch: TensorBatch) -> None:
    G = model.to_go(batch, random_lists(batch))
    assert (G[:, -1] == 0).all()
    assert (G[:, :-1] != 0).all()
    prepared = model.prepare(batch)
    beams = model.start(prepared)
    one = torch.zeros(len(batch["mask"]), 1, dtype=torch.long)
    for c in range(L - 1):
        beams = model.advance(prepared, beams, one, one + c)
    U, score = model.expand(prepared, beams, to_go=True)
    assert score is not None
    assert torch.equal(U, score)


@pytest.mark.parametrize("columns", ["item features", "every kind of column"])
def test_what_is_embedded_early_or_folded_is_what_the_fields_give(tmp_path: Path, columns: str) -> None:
    """The value to go embeds listed items alone, and a pool of all candidates without their fields."""
    changes = {} if columns == "item features" else crafted.rich()
    world = crafted.crafted(tmp_path, counts=(N, 4, N), **changes)
    member = only(crafted.evaluator(world.encoder))
    batch = to_batch(world.encoded, np.arange(3))
    fields, lists = member.togo.fields(batch), torch.tensor([[2, 0, 5], [3, 1, -1], [0, 1, 2]])
    for early, late in zip(member.togo.fields(listed(batch, lists)), fields.at(lists), strict=True):
        torch.testing.assert_close(early, late, **CLOSE)
    gated = F.gelu(member.pool(fields.item + fields.prior))
    mean = [gated[r, :n].mean(0) for r, n in enumerate((N, 4, N))]
    torch.testing.assert_close(member.pooled(batch), torch.stack(mean), **CLOSE)


@pytest.mark.parametrize("form", ["additive", "products", "attention"])
@pytest.mark.parametrize("position_free", [True, False])
def test_position_free_means_that_no_slot_is_known(tmp_path: Path, form: str, position_free: bool) -> None:
    world = crafted.crafted(tmp_path, position_free=position_free)
    member = only(crafted.evaluator(world.encoder, form))
    batch = to_batch(world.encoded, np.arange(2))
    hidden, added = [], []
    for network in (member.value, member.togo):
        table = network.table(network.fields(batch), L)
        state, first = network.state.start(table), torch.zeros(2, 1, dtype=torch.long)
        for t in range(L):
            hidden.append(network.state.hidden(state, table, t))
            added.append(network.state.advance(state, table, first, first, t)[1][-1])
    for first in (0, L):
        for t in (1, 2):
            assert torch.equal(hidden[first], hidden[first + t]) == position_free
            assert torch.equal(added[first], added[first + t]) == position_free


@pytest.mark.parametrize("form", ["count_markov", "step"])
def test_the_count_loss_is_the_cross_entropy_at_the_observed_count(form: str) -> None:
    head, logits, feedback, carries = a_log(form)
    value, count = head.loss(logits, feedback, carries)
    slow, slots = 0.0, 0
    for o, t in product(range(2), range(3)):
        k = int(feedback[0, o, :t].sum())
        if o == 1 and k:
            continue  # certain: nothing to learn
        a, b = (*logits[0, t, o].tolist(), 0.0)[:2]
        p = sigmoid(a + b * math.log(1 + k))
        slow -= math.log(p if feedback[0, o, t] else 1 - p)
        slots += 1
    assert (float(value), int(count)) == (pytest.approx(slow), slots)


def test_the_continuation_loss_is_the_cross_entropy_of_every_threshold() -> None:
    head, logits, feedback, carries = a_log("continuation")
    value, count = head.loss(logits, feedback, carries)
    slow, thresholds = 0.0, 0
    for o, t in product(range(2), range(3)):
        for k in range(1, (1 if o == 1 else t + 1) + 1):
            p = math.prod(map(sigmoid, logits[0, t, o, :k].tolist()))
            slow -= math.log(p if feedback[0, o, : t + 1].sum() >= k else 1 - p)
            thresholds += 1
    assert (float(value), int(count)) == (pytest.approx(slow), thresholds)


@pytest.mark.parametrize("form", HEADS)
def test_no_loss_is_infinite_and_no_gradient_missing_where_a_head_is_sure(form: str) -> None:
    with torch.inference_mode(False):
        head, logits, feedback, carries = (x.clone() if isinstance(x, torch.Tensor) else x for x in a_log(form))
        for sure in (200.0, -200.0):
            certain = torch.full_like(logits, sure).requires_grad_()
            value, _ = head.loss(certain, feedback, carries)
            value.backward()
            assert certain.grad is not None
            assert certain.grad.isfinite().all()
            assert value.isfinite()


def a_log(form: str) -> tuple[CountHead, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A head, its logits, feedback and carries of one list of four, tracking of the last slot lost."""
    head = make_head(form, 4, 4, (False, True))
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 4, 2, head.outputs)))
    feedback = torch.tensor([[[1.0, 0, 1, 0], [0, 1, 0, 0]]]).double()
    return head, logits, feedback, torch.tensor([[True, True, True, False]])


def sets(folder: Path, feedback: list[list[float]], shown: list[int], length: int) -> Crafted:
    """One request whose log shows these candidates; NaN feedback was lost."""
    world = crafted.crafted(folder, counts=(N,))
    arrays = dict(world.encoded.arrays)
    arrays["shown"] = np.array([shown + [-1] * (length - len(shown))])
    given = np.full((1, len(feedback), length), 0.0, np.float32)
    given[0, :, : len(shown)] = feedback
    arrays["feedback"] = np.nan_to_num(given)
    carries = ~np.isnan(given).any(1)
    carries[0, len(shown) :] = False
    arrays["carries"] = carries
    return Crafted(world.rows, world.encoder, type(world.encoded)(arrays, world.encoded.request_ids))


def losses(folder: Path, clicks: list[float], shown: tuple[int, ...] = (4, 2, 0)) -> dict[str, tuple[float, float]]:
    world = sets(folder, [clicks, [0.0] * len(clicks)], list(shown), L)
    model = only(crafted.evaluator(world.encoder))
    both = (world.encoded, world.encoded)
    random = np.random.default_rng(0)
    out = {}
    for name, loss in (("count", count_loss(model, both)), ("to go", to_go_loss(model, both))):
        value, count = loss(np.array([0]), random)
        out[name] = (float(value), float(count))
    return out


def test_a_slot_never_reached_carries_loss(tmp_path: Path) -> None:
    left, stayed = losses(tmp_path / "a", [1, 0, 0]), losses(tmp_path / "b", [1, 0, 1])
    assert left["count"][1] == stayed["count"][1] == 6  # both objectives, all slots
    assert left["count"][0] != stayed["count"][0]
    assert left["to go"][1] == 2
    assert left["to go"][0] != stayed["to go"][0]


def test_a_lost_slot_carries_none_and_neither_does_what_hangs_on_it(tmp_path: Path) -> None:
    nan = float("nan")
    lost_last = losses(tmp_path / "a", [1, 0, nan])
    assert lost_last["count"][1] == 4
    assert lost_last["to go"][1] == 0  # what came after either slot is not known
    lost_first = losses(tmp_path / "b", [nan, 1, 0])
    assert lost_first["count"][1] == 0  # the count before the later slots is not known
    assert lost_first["to go"][1] == 1  # after slot 2 everything is


def test_padding_of_a_short_list_carries_none_but_its_end_is_known(tmp_path: Path) -> None:
    short = losses(tmp_path, [0, 1], shown=(4, 2))
    assert short["count"][1] == 4
    assert short["to go"][1] == 2
