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

from degre_prod.baselines.calls import Calls, CountingEvaluator
from degre_prod.baselines.click_to_top import clicked_first, decoded
from degre_prod.baselines.dpo import best_and_worst, preference
from degre_prod.baselines.goalrank import group_relative
from degre_prod.baselines.graded import CHECKPOINTS, Graded, Learned, Learning, within_budget
from degre_prod.baselines.grading import Grader
from degre_prod.baselines.grpo import GrpoConfig, advantage, grpo, policy_gradient
from degre_prod.baselines.lambdarank import candidate_rows, shown_rows
from degre_prod.baselines.material import Material, utilities_of
from degre_prod.baselines.mmr import marginal_relevance
from degre_prod.baselines.nar import SlotMatcher, likelihood_and_unlikelihood
from degre_prod.baselines.policy import PointerPolicy, Policy, greedy_lists, step_logp
from degre_prod.baselines.registry import GRADED, METHODS, TEACHERS, TRIALS
from degre_prod.config import GeneratorConfig, MiningConfig
from degre_prod.mining.beam import search, values_along
from degre_prod.mining.mine import mine_requests
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.models.generator import Generator
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
        evaluator=crafted.evaluator(world.encoder, seed=2),  # its lists differ by their items too, not by order alone
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
    if kind == "pointer attention":
        spec = crafted.generator(world.encoder).spec
        return PointerPolicy(Generator(replace(spec, decoder="attention")))
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


@pytest.mark.parametrize(("form", "members"), [("additive", 1), ("attention", 1), ("additive", 3), ("attention", 2)])
def test_grades_are_the_evaluators_own_and_cost_a_call_a_slot(world: Crafted, form: str, members: int) -> None:
    own = ensemble(world, form, members)
    requests, calls = np.array([7, 3, 30, 4, 5]), Calls()
    grader = Grader(own, world.encoded, np.array([3, 4, 5, 7, 30, 31]), calls)
    lists = torch.stack([random_lists(to_batch(world.encoded, requests), seed=s) for s in range(G)], dim=1)
    torch.testing.assert_close(grader(requests, lists), utilities_of(own, world.encoded, requests, lists))
    assert calls.count == grader.price(5 * G) == 5 * G * L * members


def ensemble(world: Crafted, form: str, members: int) -> LookaheadEvaluator:
    one = crafted.evaluator(world.encoder, form)
    model = LookaheadEvaluator(replace(one.spec, members=members), pessimism=0.7 if members > 1 else 0.0)
    for i, part in enumerate(model.each()):
        part.load_state_dict(next(crafted.evaluator(world.encoder, form, seed=i).each()).state_dict())
    return model.eval()


@pytest.mark.parametrize("budget", [60, 1_000, 20_000])
def test_no_graded_method_spends_more_than_the_budget(material: Material, budget: int) -> None:
    for name in GRADED:
        calls = Calls()
        learned = METHODS[name](replace(material, budget=budget), calls)
        assert isinstance(learned, Learned)
        assert 0.8 * budget < calls.count <= budget, name
        assert learned.curve[-1].calls == calls.count  # the last checkpoint is the end


def test_calls_are_those_of_the_lists_drawn_and_of_the_checkpoints(material: Material) -> None:
    calls, learning = Calls(), GrpoConfig(group=4, batch_size=6)
    learned = grpo(replace(material, budget=9_000), calls, learning)
    plan = within_budget(3_000, 36, 4, learning)
    assert calls.count == (plan.steps * plan.batch_size * 4 + plan.checkpoints * plan.held_out) * L
    assert [point.calls for point in learned.curve] == sorted({point.calls for point in learned.curve})
    assert len(learned.curve) == plan.checkpoints


def test_a_budget_becomes_steps_and_checkpoints() -> None:
    learning = Learning(group=16, batch_size=10)
    plan = within_budget(100_000, 100, 10, learning)
    assert (plan.batch_size, plan.checkpoints, plan.held_out) == (10, CHECKPOINTS, 10)
    assert plan.steps == (100_000 - CHECKPOINTS * 10) // 160
    short = within_budget(3_000, 100, 50, learning)
    assert short.checkpoints * short.held_out <= 150  # choosing takes a twentieth
    assert short.steps * short.batch_size * 16 + 150 <= 3_000
    least = within_budget(20, 100, 50, learning)
    assert least == (1, 1, 1, 1)


# -- policies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pointer", "slots"])
def test_samples_follow_the_policys_own_probabilities(world: Crafted, kind: str) -> None:
    model, one = policy(world, kind), to_batch(world.encoded, np.array([2]))
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        drawn = model.sample(one, 20_000, L, noise).lists[0].numpy()
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
        greedy = model.sample(batch, 1, L, None).lists
        assert torch.equal(model.logits(batch, greedy).argmax(-1), greedy)
    assert np.array_equal(greedy_lists(model, world.encoded, L)[:6], greedy[:, 0].numpy())
    if isinstance(model, PointerPolicy):
        assert np.array_equal(decoded(model.generator, world.encoded, L)[:6], greedy[:, 0].numpy())


@pytest.mark.parametrize("kind", ["pointer", "pointer attention", "slots"])
def test_drawing_gives_the_logits_of_the_lists_drawn_and_their_gradient(
    world: Crafted, batch: TensorBatch, kind: str
) -> None:
    """Drawing shares what lists have in common; the network is the same."""
    model = policy(world, kind)
    batch = crafted.padded(batch, 2)
    drawn = model.sample(batch, G, L, torch.Generator().manual_seed(1))
    again = model.logits(batch, drawn.lists)
    torch.testing.assert_close(drawn.logits, again, rtol=1e-4, atol=1e-5)
    gradients = []
    for logits in (drawn.logits, again):
        model.zero_grad()
        (step_logp(logits, drawn.lists).sum(-1) * torch.arange(G)).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


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


def graded(utility: list[list[float]], logp: list[list[list[float]]], old: torch.Tensor | None = None) -> Graded:
    """Lists whose step log-probabilities can be moved; logits are flat."""
    steps = torch.tensor(logp, requires_grad=True)
    B, K, T = steps.shape
    was = steps.detach() if old is None else old
    return Graded(
        {}, torch.zeros(B, K, T, dtype=torch.long), torch.tensor(utility), torch.zeros(B, K, T, 5), steps, was
    )


def wanted_direction(loss: torch.Tensor, of: Graded) -> torch.Tensor:
    loss.sum().backward()
    assert of.logp.grad is not None
    return -of.logp.grad.sum(-1)


def test_policy_gradient_moves_lists_by_their_advantage() -> None:
    of = graded([[1.0, 2.0, 6.0]], [[[-1.0, -1.0]] * 3])
    step = wanted_direction(policy_gradient(of, GrpoConfig()), of)[0]
    expected = (np.array([1, 2, 6]) - 3) / (np.std([1, 2, 6]) + 1e-4)
    np.testing.assert_allclose(step.numpy(), expected / 3, rtol=1e-3)


def test_advantages_are_scaled_by_their_group_or_by_the_batch() -> None:
    """By the batch a request with little to gain teaches little; by the group as much as any."""
    utility = torch.tensor([[1.0, 1.2], [1.0, 5.0]])
    by_group, by_batch = (advantage(utility, scale) for scale in ("group", "batch"))
    torch.testing.assert_close(by_group, torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]), rtol=2e-3, atol=0)
    spread = float(np.sqrt((0.1**2 + 2**2) / 2))
    torch.testing.assert_close(by_batch * spread, torch.tensor([[-0.1, 0.1], [-2.0, 2.0]]), rtol=1e-3, atol=0)


def test_a_policy_that_moved_far_already_is_not_pushed_further() -> None:
    utility, now = [[1.0, 2.0, 6.0]], [[[-1.0, -1.0]] * 3]
    moved = torch.tensor(now) + torch.tensor([0.5, 0.0, -0.5]).view(1, 3, 1)  # bad ones less likely now, good ones more
    of = graded(utility, now, old=moved)
    step = wanted_direction(policy_gradient(of, GrpoConfig(clip=0.2)), of)[0]
    assert step[0] == step[2] == 0
    assert step[1] != 0
    of = graded(utility, now, old=moved)
    free = wanted_direction(policy_gradient(of, GrpoConfig(clip=5.0)), of)[0]
    assert free[0] < 0 < free[2]


def test_the_entropy_bonus_fades_out() -> None:
    logits = torch.randn(1, 3, 2, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    pulls = []
    for progress in (0.0, 0.5, 1.0):
        of = graded([[2.0, 2.0, 2.0]], [[[-1.0, -3.0]] * 3])._replace(logits=logits, progress=progress)
        (pull,) = torch.autograd.grad(policy_gradient(of, GrpoConfig(entropy=0.1)).sum(), logits)
        pulls.append(float(pull.abs().sum()))
    assert pulls[0] == pytest.approx(2 * pulls[1])
    assert pulls[2] == 0


def test_equal_utilities_teach_nothing_but_variety() -> None:
    of = graded([[2.0, 2.0, 2.0]], [[[-1.0, -3.0]] * 3])
    assert wanted_direction(policy_gradient(of, GrpoConfig()), of).abs().max() == 0


def test_group_relative_loss_is_least_where_the_policy_matches_the_utilities() -> None:
    utility = [[0.5, 1.0, 3.0, 0.1]]
    z = (np.array(utility) - np.mean(utility)) / (np.std(utility) + 1e-4) / 0.5
    match = torch.log_softmax(torch.tensor(z, dtype=torch.float32), 1)
    of = graded(utility, (match.unsqueeze(-1) / 2).expand(-1, -1, 2).tolist())
    assert wanted_direction(group_relative(of, 0.5), of).abs().max() < 1e-5
    flat = graded(utility, [[[-1.0, -1.0]] * 4])
    step = wanted_direction(group_relative(flat, 0.5), flat)[0]
    assert step.argmax() == 2
    assert step.argmin() == 3


def test_preference_is_the_better_over_the_worse_against_the_reference(world: Crafted, batch: TensorBatch) -> None:
    reference = crafted.generator(world.encoder, seed=5)
    model = PointerPolicy(crafted.generator(world.encoder, seed=5))
    lists = torch.stack([random_lists(batch, seed=s) for s in range(2)], dim=1)
    logits = model.logits(batch, lists)
    logp = step_logp(logits, lists)
    logp.retain_grad()
    loss = preference(reference, Graded(batch, lists, torch.zeros(len(lists), 2), logits, logp, logp.detach()), 0.3)
    torch.testing.assert_close(loss, torch.full_like(loss, float(np.log(2))), rtol=1e-4, atol=1e-5)  # not moved yet
    loss.sum().backward()
    assert logp.grad is not None
    expected = torch.tensor([-0.15, 0.15]).view(1, 2, 1).expand_as(logp)
    torch.testing.assert_close(logp.grad, expected, rtol=1e-4, atol=1e-5)


def test_a_pair_is_the_best_and_the_worst_of_a_group() -> None:
    assert best_and_worst(torch.tensor([[1.0, 5.0, 0.0], [2.0, 3.0, 4.0]])).tolist() == [[1, 2], [2, 0]]


def test_lists_below_the_mean_are_made_unlikely() -> None:
    of = graded([[1.0, 2.0, 6.0]], [[[-1.0, -1.0]] * 3])
    step = wanted_direction(likelihood_and_unlikelihood(of, 1.0), of)[0]
    assert (step[:2] < 0).all()
    assert step[2] > 0
    of = graded([[1.0, 2.0, 6.0]], [[[-1.0, -1.0]] * 3])
    softer = wanted_direction(likelihood_and_unlikelihood(of, 0.3), of)[0]
    torch.testing.assert_close(softer, step * torch.tensor([0.3, 0.3, 1.0]))


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
        METHODS[name](replace(material, budget=120_000), Calls())(material.train),
        np.random.default_rng(0).permuted(np.tile(np.arange(N), (40, 1)), axis=1)[:, :L],
        METHODS["beam_evaluator"](material, Calls())(material.train),
    ):
        believed = utilities_of(material.evaluator, material.train, requests, torch.from_numpy(lists[:, None]))
        worth.append(float(believed.mean()))
    learnt, random, best = worth
    assert learnt > random + 0.5 * (best - random)


@pytest.mark.parametrize("config", [GrpoConfig(passes=3), GrpoConfig(scale="group")])
def test_grpo_learns_in_every_way_it_can_be_set(material: Material, config: GrpoConfig) -> None:
    learned = grpo(replace(material, budget=20_000), Calls(), config)
    assert isinstance(learned, Learned)
    assert learned.best.believed == max(point.believed for point in learned.curve)
    assert learned.best.believed > learned.curve[0].believed


def test_the_kept_policy_is_the_checkpoint_believed_in_most(material: Material) -> None:
    """A rate far too high ends worse than it was on the way; the end is not what is kept."""
    learned = grpo(replace(material, budget=20_000), Calls(), GrpoConfig(learning_rate=0.3))
    held_out = np.arange(0, 40, 10)
    lists = torch.from_numpy(learned(material.train)[held_out][:, None])
    believed = utilities_of(material.evaluator, material.train, held_out, lists).mean()
    assert float(believed) == pytest.approx(max(point.believed for point in learned.curve), rel=1e-5)


def test_every_tunable_method_has_as_many_trials_and_takes_them(material: Material) -> None:
    assert set(METHODS) - set(TRIALS) == {"input_order", *TEACHERS}
    for name, trials in TRIALS.items():
        assert len(trials) == len(set(trials)) == 4, name
    small = replace(material, budget=2_000)
    for name in ("pointwise", "prm", "goalrank"):
        trials = TRIALS[name]
        default, first, last = (
            METHODS[name](small, Calls(), *c)(material.train) for c in ((), trials[:1], trials[-1:])
        )
        assert np.array_equal(default, first), name
        assert last.shape == first.shape


def test_short_requests_get_short_lists(tmp_path: Path, material: Material) -> None:
    short = crafted.crafted(tmp_path, counts=(N, 2, 4, 1))
    for name in ("input_order", "pointwise", "mmr", "click_to_top", "prm"):
        lists = METHODS[name](material, Calls())(short.encoded)
        assert [(row >= 0).sum() for row in lists] == [L, 2, L, 1], name
        assert all(set(row[row >= 0]) <= set(range(n)) for row, n in zip(lists, (N, 2, 4, 1), strict=True)), name
