"""Off-policy estimates against the truth of a small world, and against formulas worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import pytest

from degre_prod.errors import DataError
from degre_prod.evaluation.enumeration import true_increments
from degre_prod.evaluation.off_policy import (
    Estimate,
    difference,
    list_dr,
    list_ips,
    list_snips,
    plackett_luce,
    prefix_weights,
    slot_dr,
    slot_ips,
    slot_snips,
)
from degre_prod.worlds.simulate import Log, draw_log
from degre_prod.worlds.spec import LOGGING_TEMPERATURE
from degre_prod.worlds.truth import World, make_world

REQUESTS, LOGS = 1500, 40
TARGET_TEMPERATURE = 0.8  # logged at 0.5


@dataclass(frozen=True)
class Logged:
    """A log under the world's policy, the target's probabilities of it, and what the target would really earn."""

    log: Log
    world: World
    target_RT: np.ndarray
    logging_RT: np.ndarray
    truth: float


@pytest.fixture(scope="module")
def logs() -> list[Logged]:
    world = make_world("mixed", "small", 3)
    return [_logged(world, seed) for seed in range(LOGS)]


def _logged(world: World, seed: int) -> Logged:
    log = draw_log(world, REQUESTS, np.random.default_rng([7, seed]))
    logits = log.upstream_BC.astype(np.float64)
    target = plackett_luce(logits / TARGET_TEMPERATURE, log.shown_BL)
    logging = plackett_luce(logits / LOGGING_TEMPERATURE, log.shown_BL)
    return Logged(log, world, target, logging, _truth(world, log))


def _truth(world: World, log: Log, sampled: int = 40) -> float:
    """Mean true value of the target's lists, over a few requests' exact expectation: every list by its probability."""
    lists = np.array(list(permutations(range(8), 4)))
    rows = np.arange(sampled)
    every = np.broadcast_to(lists, (sampled, *lists.shape))
    values = world.true_values(log.user_ids_B[rows], log.candidate_ids_BC[rows], every)
    logits = log.upstream_BC[rows].astype(np.float64) / TARGET_TEMPERATURE
    chance = np.stack([plackett_luce(np.repeat(logits[r : r + 1], len(lists), 0), lists).prod(1) for r in rows])
    assert chance.sum(1) == pytest.approx(1.0)
    return float((chance * values).sum(1).mean())


def estimates(logged: Logged, model: float = 1.0) -> dict[str, Estimate]:
    """All six; the reward model is the truth times `model`, so `model` ≠ 1 is a wrong one."""
    clicks = logged.log.click_BL.astype(np.float64)
    target, logging = logged.target_RT, logged.logging_RT
    whole = (clicks.sum(1), target.prod(1), logged.log.list_propensity_B)
    q_list, v_list, q_slot, v_slot = reward_model(logged)
    return {
        "list IPS": list_ips(*whole),
        "list SNIPS": list_snips(*whole),
        "list DR": list_dr(*whole, model * q_list, model * v_list),
        "slot IPS": slot_ips(clicks, target, logging),
        "slot SNIPS": slot_snips(clicks, target, logging),
        "slot DR": slot_dr(clicks, target, logging, model * q_slot, model * v_slot),
    }


def reward_model(logged: Logged) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A crude model that sums items' own click chances: of the logged list, of the target's lists, and by slot."""
    log, T = logged.log, logged.log.shown_BL.shape[1]
    own = 1 / (1 + np.exp(-log.upstream_BC.astype(np.float64)))
    item_RT = np.take_along_axis(own, log.shown_BL, axis=1)
    free = np.ones_like(own)
    chance = np.exp(log.upstream_BC / TARGET_TEMPERATURE)
    mean_RT = np.empty_like(item_RT)  # expected own chance of the target's next item, given the items before
    for t in range(T):
        p = chance * free / (chance * free).sum(1, keepdims=True)
        mean_RT[:, t] = (p * own).sum(1)
        np.put_along_axis(free, log.shown_BL[:, t : t + 1], 0.0, axis=1)
    # later slots are left out of the model: DR stays unbiased whatever the model, if v is the mean of its q
    return item_RT[:, 0], mean_RT[:, 0], item_RT, mean_RT


def test_estimates_have_no_bias(logs: list[Logged]) -> None:
    """Over many logs the mean estimate is the truth, within the error that many logs leave."""
    truth = float(np.mean([one.truth for one in logs]))
    noise = float(np.std([one.truth for one in logs]) / LOGS**0.5)
    for name in estimates(logs[0]):
        values = np.array([estimates(one)[name].value for one in logs])
        error = (values.std(ddof=1) ** 2 / LOGS + noise**2) ** 0.5
        assert abs(values.mean() - truth) < 3 * error, name
        assert error < 0.04 * truth, name  # or the line above says nothing


def test_a_wrong_reward_model_costs_precision_never_bias(logs: list[Logged]) -> None:
    truth = float(np.mean([one.truth for one in logs]))
    for name in ("list DR", "slot DR"):
        values = np.array([estimates(one, model=-3.0)[name].value for one in logs])
        assert abs(values.mean() - truth) < 3 * values.std(ddof=1) / LOGS**0.5 + 0.01, name


def test_intervals_hold_the_truth_as_often_as_they_say(logs: list[Logged]) -> None:
    truth = float(np.mean([one.truth for one in logs]))
    for name in estimates(logs[0]):
        held = [e.low <= truth <= e.high for e in (estimates(one)[name] for one in logs)]
        assert np.mean(held) > 0.85, name


def test_slots_and_models_make_estimates_steadier(logs: list[Logged]) -> None:
    spread = {n: np.std([estimates(one)[n].value for one in logs]) for n in estimates(logs[0])}
    width = {n: np.mean([e.high - e.low for e in (estimates(o)[n] for o in logs)]) for n in spread}
    assert width["slot IPS"] < width["list IPS"]
    assert width["slot SNIPS"] < width["slot IPS"]
    assert width["slot DR"] < width["slot IPS"]
    for name, half in ((n, width[n] / 2) for n in spread):
        assert 1.3 < half / spread[name] < 2.9, name  # 1.96 standard errors, roughly


def test_without_a_change_of_policy_the_estimate_is_the_logged_mean(logs: list[Logged]) -> None:
    clicks = logs[0].log.click_BL.astype(np.float64)
    same = logs[0].logging_RT
    for estimate in (slot_ips(clicks, same, same), slot_snips(clicks, same, same)):
        assert estimate.value == pytest.approx(clicks.sum(1).mean())
        assert estimate.effective_samples == pytest.approx(REQUESTS)


def test_formulas_by_hand() -> None:
    reward = np.array([[1.0, 0.0], [0.0, 2.0]])
    target, logging = np.array([[0.5, 0.2], [0.1, 0.9]]), np.array([[0.25, 0.4], [0.5, 0.3]])
    # prefix weights: (2, 1) and (.2, .6)
    assert slot_ips(reward, target, logging).value == pytest.approx((2 * 1 + 0.6 * 2) / 2)
    assert slot_snips(reward, target, logging).value == pytest.approx(2 / 2.2 + 1.2 / 1.6)
    assert list_ips(reward.sum(1), target.prod(1), logging.prod(1)).value == pytest.approx((1 * 1 + 0.6 * 2) / 2)
    q, v = np.array([[0.5, 0.1], [0.3, 1.0]]), np.array([[0.4, 0.2], [0.6, 0.8]])
    first = (2 * (1 - 0.5) + 0.4) + (1 * (0 - 0.1) + 2 * 0.2)
    second = (0.2 * (0 - 0.3) + 0.6) + (0.6 * (2 - 1.0) + 0.2 * 0.8)
    assert slot_dr(reward, target, logging, q, v).value == pytest.approx((first + second) / 2)
    effective = min(2.2**2 / (4 + 0.04), 1.6**2 / (1 + 0.36))  # of the slot that is known least
    assert slot_ips(reward, target, logging).effective_samples == pytest.approx(effective)


def test_a_difference_is_paired_and_knows_what_it_rests_on() -> None:
    reward = np.array([[1.0], [0.0], [1.0], [1.0]])
    logging = np.full((4, 1), 0.5)
    one, other = (slot_ips(reward, np.array(t)[:, None], logging) for t in ([1.0, 0, 1, 1], [1.0, 1, 0, 1]))
    found = difference(one, other)
    assert found.value == pytest.approx((2 * 1 + 2 * 1 + 2 - 2 - 0 - 2) / 4)
    assert found.effective_samples == pytest.approx(2.0)  # two requests of the same weight differ
    same = difference(one, one)
    assert (same.value, same.low, same.high, same.effective_samples) == (0.0, 0.0, 0.0, 0.0)
    with pytest.raises(DataError, match="contributed"):
        difference(one, Estimate(0.0, 0.0, 0.0, 1.0))


def test_the_logs_propensity_is_the_plackett_luce_product(logs: list[Logged]) -> None:
    np.testing.assert_allclose(logs[0].logging_RT.prod(1), logs[0].log.list_propensity_B, rtol=1e-6)


def test_true_increments_add_up_to_the_clicks_users_make(logs: list[Logged]) -> None:
    clicks = np.concatenate([one.log.click_BL for one in logs])
    expected = np.concatenate(
        [
            true_increments(one.world, one.log.user_ids_B, one.log.candidate_ids_BC, one.log.shown_BL[:, None])[:, 0]
            for one in logs
        ]
    )
    np.testing.assert_allclose(expected.mean(0), clicks.mean(0), atol=4 * 0.5 / len(clicks) ** 0.5)


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.5, float("nan")])
def test_a_propensity_that_is_none_is_refused(bad: float) -> None:
    logging = np.array([[0.5], [bad]])
    with pytest.raises(DataError, match="propensity"):
        prefix_weights(np.full((2, 1), 0.5), logging)


def test_a_target_without_support_is_refused_where_it_cannot_be_estimated() -> None:
    nothing = np.zeros((2, 1))
    with pytest.raises(DataError, match="nothing can be estimated"):
        slot_snips(np.ones((2, 1)), nothing, np.full((2, 1), 0.5))
    assert slot_ips(np.ones((2, 1)), nothing, np.full((2, 1), 0.5)).effective_samples == 0
