"""The baselines: what each one optimises, what it may spend, and that every answer is a list."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import crafted
import numpy as np
import pytest
import torch
from crafted import Crafted, L, N, random_lists

from degre_prod.baselines import policy as policies
from degre_prod.baselines.calls import Calls, CountingEvaluator
from degre_prod.baselines.click_to_top import clicked_first, decoded
from degre_prod.baselines.dpo import BETA, preference
from degre_prod.baselines.goalrank import TEMPERATURE, group_relative
from degre_prod.baselines.grpo import policy_gradient
from degre_prod.baselines.lambdarank import candidate_rows, shown_rows
from degre_prod.baselines.material import Material, utilities_of
from degre_prod.baselines.mmr import marginal_relevance
from degre_prod.baselines.nar import SlotMatcher, likelihood_and_unlikelihood
from degre_prod.baselines.policy import Graded, PointerPolicy, Policy, greedy_lists, within_budget
from degre_prod.baselines.registry import GRADED, METHODS
from degre_prod.config import GeneratorConfig, MiningConfig
from degre_prod.mining.beam import search, values_along
from degre_prod.mining.mine import mine_requests
from degre_prod.training.data import TensorBatch, to_batch

G = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Crafted:
    return crafted.crafted(tmp_path_factory.mktemp("world"), counts=(N,) * 40)


@pytest.fixture(scope="module")
def material(world: Crafted) -> Material:
    return Material(
        train=world.encoded,
        validation=world.encoded,
        layout=world.encoder.layout(),
        slots=L,
        evaluator=crafted.evaluator(world.encoder),
        requests=np.arange(40),
        budget=20_000,
        generator=GeneratorConfig(width=16),
        seed=0,
    )


@pytest.fixture(scope="module")
def batch(world: Crafted) -> TensorBatch:
    return to_batch(world.encoded, np.arange(6))


def policy(world: Crafted, kind: str) -> Policy:
    torch.manual_seed(3)
    if kind == "pointer":
        return PointerPolicy(crafted.generator(world.encoder, scale=0.6))
    matcher = SlotMatcher(world.encoder.layout(), 16, 1)
    with torch.no_grad():
        for parameter in matcher.parameters():
            parameter.normal_(0, 0.4)
    return matcher


# -- what a call costs -----------------------------------------------------------------------------------------------


def test_calls_of_known_lists_and_of_steps(world: Crafted, batch: TensorBatch) -> None:
    calls = Calls()
    model = CountingEvaluator(crafted.evaluator(world.encoder), calls)
    B = len(batch["mask"])
    lists = random_lists(batch)
    torch.testing.assert_close(model.utilities(batch, lists), crafted.evaluator(world.encoder).utilities(batch, lists))
    assert calls.count == B * L
    calls.count = 0
    model.to_go(batch, lists)
    assert calls.count == B * L
    calls.count = 0
    search(model, model.prepare(batch), batch["mask"], width=1, to_go=False)
    assert calls.count == B * L * (N + 1)  # every child of one prefix, and the chosen one again
    calls.count = 0
    search(model, model.prepare(batch), batch["mask"], width=2, to_go=True)
    two_networks = 2 * N + 2 * 2 * N * (L - 2) + 2 * N  # nothing is to go after the last slot
    assert calls.count == B * (two_networks + 2 * L)
    calls.count = 0
    values_along(model, model.prepare(batch), lists.unsqueeze(1).expand(-1, G, -1))
    assert calls.count == B * (N + G * N * (L - 1) + G * L)


def test_every_request_of_equal_size_costs_mining_the_same(world: Crafted, material: Material) -> None:
    counts = []
    for requests in (np.arange(3), np.arange(30)):
        calls = Calls()
        mine_requests(CountingEvaluator(material.evaluator, calls), world.encoded, requests, MiningConfig())
        counts.append(calls.count / len(requests))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("budget", [50, 1_000, 20_000])
def test_no_graded_method_spends_more_than_the_budget(material: Material, budget: int) -> None:
    for name in GRADED:
        calls = Calls()
        METHODS[name](replace(material, budget=budget), calls)
        assert 0 < calls.count <= max(budget, (policies.GROUP + 4) * L), name


def test_a_budget_becomes_whole_epochs() -> None:
    requests, an_epoch = np.arange(100), (100 * policies.GROUP + 10) * L
    assert within_budget(3 * an_epoch + 5, requests, 10, L)[0] == 3
    epochs, fewer = within_budget(an_epoch // 2, requests, 10, L)
    assert epochs == 1
    assert (len(fewer) * policies.GROUP + 10) * L <= an_epoch // 2 < ((len(fewer) + 1) * policies.GROUP + 10) * L


# -- policies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pointer", "slots"])
def test_samples_follow_the_policys_own_probabilities(world: Crafted, kind: str) -> None:
    model, one = policy(world, kind), to_batch(world.encoded, np.array([2]))
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        drawn = model.sample(one, 20_000, L, noise)[0].numpy()
        every = torch.tensor(list(permutations(range(N), L))).unsqueeze(0)
        logp = torch.log_softmax(model.logits(one, every), -1).gather(-1, every.unsqueeze(-1))[0, :, :, 0].sum(1)
    chance = logp.exp().numpy()
    assert chance.sum() == pytest.approx(1.0, abs=1e-4)
    code = every[0].numpy() @ N ** np.arange(L)
    counts = np.array([(drawn @ N ** np.arange(L) == c).mean() for c in code])
    z = ((counts - chance) / np.sqrt(chance / 20_000))[chance > 5e-4]
    assert len(z) > 20
    assert np.abs(z).max() < 5
    assert (z**2).mean() < 1.5
    uniform = (1 / len(chance) - chance) / np.sqrt(chance / 20_000)
    assert (uniform**2).mean() > 10  # another distribution would be noticed


@pytest.mark.parametrize("kind", ["pointer", "slots"])
def test_greedy_lists_take_the_best_free_item_at_each_step(world: Crafted, batch: TensorBatch, kind: str) -> None:
    model = policy(world, kind)
    with torch.no_grad():
        greedy = model.sample(batch, 1, L, None)
        assert torch.equal(model.logits(batch, greedy).argmax(-1), greedy)
    assert np.array_equal(greedy_lists(model, world.encoded, L)[:6], greedy[:, 0].numpy())
    if isinstance(model, PointerPolicy):
        assert np.array_equal(decoded(model.generator, world.encoded, L)[:6], greedy[:, 0].numpy())


def test_slots_do_not_see_each_other_but_see_the_candidates(world: Crafted, batch: TensorBatch) -> None:
    model = policy(world, "slots")
    assert isinstance(model, SlotMatcher)
    lists = torch.stack([random_lists(batch, seed=s) for s in (0, 1)], dim=1)
    with torch.no_grad():
        logits = model.logits(batch, lists)
        free = (logits > -1e8).all(1)
        torch.testing.assert_close(logits[:, 0][free], logits[:, 1][free])
        other = {**batch, "item_num": batch["item_num"].clone()}
        other["item_num"][0, 0] += 1
        assert not torch.equal(model.matches(other)[0], model.matches(batch)[0])
        torch.testing.assert_close(model.matches(crafted.padded(batch, 2))[..., :N], model.matches(batch))


# -- losses -----------------------------------------------------------------------------------------------------------


def graded(utility: list[list[float]], logp: list[list[list[float]]]) -> Graded:
    """Lists whose step log-probabilities can be moved; logits are flat."""
    steps = torch.tensor(logp, requires_grad=True)
    B, K, T = steps.shape
    return Graded(torch.zeros(B, K, T, dtype=torch.long), torch.tensor(utility), torch.zeros(B, K, T, 5), steps)


def wanted_direction(loss: torch.Tensor, of: Graded) -> torch.Tensor:
    loss.sum().backward()
    assert of.logp.grad is not None
    return -of.logp.grad.sum(-1)


def test_policy_gradient_moves_lists_by_their_advantage(batch: TensorBatch) -> None:
    of = graded([[1.0, 2.0, 6.0]], [[[-1.0, -1.0]] * 3])
    step = wanted_direction(policy_gradient(batch, of), of)[0]
    advantage = (np.array([1, 2, 6]) - 3) / (np.std([1, 2, 6]) + 1e-4)
    np.testing.assert_allclose(step.numpy(), advantage / 3, rtol=1e-5)


def test_equal_utilities_teach_nothing_but_variety(batch: TensorBatch) -> None:
    of = graded([[2.0, 2.0, 2.0]], [[[-1.0, -3.0]] * 3])
    assert wanted_direction(policy_gradient(batch, of), of).abs().max() == 0


def test_group_relative_loss_is_least_where_the_policy_matches_the_utilities(batch: TensorBatch) -> None:
    utility = [[0.5, 1.0, 3.0, 0.1]]
    z = (np.array(utility) - np.mean(utility)) / (np.std(utility) + 1e-4) / TEMPERATURE
    match = torch.log_softmax(torch.tensor(z, dtype=torch.float32), 1)
    of = graded(utility, (match.unsqueeze(-1) / 2).expand(-1, -1, 2).tolist())
    assert wanted_direction(group_relative(batch, of), of).abs().max() < 1e-5
    flat = graded(utility, [[[-1.0, -1.0]] * 4])
    step = wanted_direction(group_relative(batch, flat), flat)[0]
    assert step.argmax() == 2
    assert step.argmin() == 3


def test_preference_is_the_best_over_the_worst_against_the_reference(world: Crafted, batch: TensorBatch) -> None:
    reference = crafted.generator(world.encoder, seed=5)
    model = PointerPolicy(crafted.generator(world.encoder, seed=5))
    lists = torch.stack([random_lists(batch, seed=s) for s in range(G)], dim=1)
    utility = torch.randn(len(lists), G, generator=torch.Generator().manual_seed(1))
    logits = model.logits(batch, lists)
    logp = torch.log_softmax(logits, -1).gather(-1, lists.unsqueeze(-1)).squeeze(-1)
    logp.retain_grad()
    loss = preference(reference, batch, Graded(lists, utility, logits, logp))
    torch.testing.assert_close(loss, torch.full_like(loss, float(np.log(2))), rtol=1e-4, atol=1e-5)  # not moved yet
    loss.sum().backward()
    assert logp.grad is not None
    rows = torch.arange(len(lists))
    expected = torch.zeros(len(lists), G)
    expected[rows, utility.argmax(1)] = -BETA / 2
    expected[rows, utility.argmin(1)] = BETA / 2
    torch.testing.assert_close(logp.grad, expected.unsqueeze(-1).expand_as(logp), rtol=1e-4, atol=1e-5)


def test_lists_below_the_mean_are_made_unlikely(batch: TensorBatch) -> None:
    of = graded([[1.0, 2.0, 6.0]], [[[-1.0, -1.0]] * 3])
    step = wanted_direction(likelihood_and_unlikelihood(batch, of), of)[0]
    assert (step[:2] < 0).all()
    assert step[2] > 0


def test_clicked_items_go_first_and_padding_stays_last() -> None:
    shown = np.array([[4, 2, 0], [3, 1, -1]])
    clicks = np.array([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    assert clicked_first(shown, clicks).tolist() == [[2, 0, 4], [1, 3, -1]]


def test_marginal_relevance_trades_score_for_difference() -> None:
    scores = torch.tensor([[3.0, 2.9, 1.0, 9.0]])
    similar = torch.eye(4).unsqueeze(0)
    similar[0, 0, 1] = similar[0, 1, 0] = 1.0
    mask = torch.tensor([[True, True, True, False]])
    assert marginal_relevance(scores, similar, mask, 3, 1.0).tolist() == [[0, 1, 2]]
    assert marginal_relevance(scores, similar, mask, 3, 0.4).tolist() == [[0, 2, 1]]


def test_the_trees_see_the_same_columns_when_learning_and_when_ranking(world: Crafted) -> None:
    features, labels, sizes = shown_rows(world.encoded, 0)
    assert sizes.tolist() == [L] * 40
    rows = candidate_rows({n: t.numpy() for n, t in to_batch(world.encoded, np.arange(40)).items()})
    shown, clicked = world.encoded.arrays["shown"], world.encoded.arrays["feedback"].sum(1) > 0
    moved = 0
    for r in range(40):
        mine = features[r * L : (r + 1) * L]
        slots = [int(np.flatnonzero((rows[r, shown[r]] == row).all(1))[0]) for row in mine]
        assert sorted(slots) == list(range(L))
        np.testing.assert_array_equal(labels[r * L : (r + 1) * L], clicked[r, slots])
        moved += slots != list(range(L))
    assert moved > 10  # rows don't tell the slot


# -- whole methods ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_every_method_answers_with_lists_and_gives_the_same_twice(material: Material, name: str) -> None:
    small = replace(material, budget=2_000)
    first, second = (METHODS[name](small, Calls())(material.train) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.shape == (40, L)
    assert all(len(set(row)) == L and row.min() >= 0 and row.max() < N for row in first)


@pytest.mark.parametrize("name", GRADED)
def test_graded_methods_learn_what_the_evaluator_likes(material: Material, name: str) -> None:
    """From an untrained start most of the way from a random list's worth to the best list's."""
    worth = []
    requests = np.arange(len(material.train))
    for lists in (
        METHODS[name](replace(material, budget=60_000), Calls())(material.train),
        np.random.default_rng(0).permuted(np.tile(np.arange(N), (40, 1)), axis=1)[:, :L],
        METHODS["beam_evaluator"](material, Calls())(material.train),
    ):
        believed = utilities_of(material.evaluator, material.train, requests, torch.from_numpy(lists[:, None]))
        worth.append(float(believed.mean()))
    learnt, random, best = worth
    assert learnt > random + 0.5 * (best - random)


def test_short_requests_get_short_lists(tmp_path: Path, material: Material) -> None:
    short = crafted.crafted(tmp_path, counts=(N, 2, 4, 1))
    for name in ("input_order", "pointwise", "mmr", "click_to_top", "prm"):
        lists = METHODS[name](material, Calls())(short.encoded)
        assert [(row >= 0).sum() for row in lists] == [L, 2, L, 1], name
        assert all(set(row[row >= 0]) <= set(range(n)) for row, n in zip(lists, (N, 2, 4, 1), strict=True)), name
