"""What another policy would have earned, estimated from logs with known propensities.

R logged requests. At list level a request has one reward (the list's), one target and one logging probability (of the
whole list). At slot level it has T of each: the slot's reward and the probabilities of its item given the items before
it; slot t is then weighed by the product of the ratios up to t, which is unbiased where feedback doesn't depend on later
slots and has less variance than weighing the whole list.

The estimand of all of them is the expected reward, over requests like the logged ones, of the list that the target policy
draws: E_x Σ_l π(l | x) E[reward | x, l], of as many slots as the log has. `difference` estimates the same less that of
another target, request by request. IPS is unbiased, SNIPS divides by the mean weight (biased by O(1/R), steadier), DR adds a
model of the reward and is unbiased whatever the model says, as long as it was not fitted on these requests. No weight is
ever cut off: a cut would change what is estimated.

Intervals are 95 %, normal, of SNIPS by the delta method. They hold the truth as often as they say where enough of what the
target would show has been seen, which `effective_samples` tells, (Σ w)² / Σ w² (Kish 1965) of the slot where it is least: with
few, the largest weights have not come up yet, and every estimate is too sure of itself. A list that was hardly ever possible
may have left no trace in the weights at all; where the chances of the target's own lists are known,
`degre_prod.evaluation.explored` counts those too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from degre_prod.errors import DataError
from degre_prod.evaluation.metrics import Z95


@dataclass(frozen=True)
class Estimate:
    """Expected reward of a request under the target policy, with its 95 % interval. `contribution_R` is what each request
    adds (the value is their mean), `weight_RT` how each slot was weighed."""

    value: float
    low: float
    high: float
    effective_samples: float
    contribution_R: np.ndarray | None = field(default=None, repr=False, compare=False)
    weight_RT: np.ndarray | None = field(default=None, repr=False, compare=False)


def difference(target: Estimate, other: Estimate) -> Estimate:
    """How much more the one target earns than the other, both estimated from the same requests.

    Effective samples are those of the weights' differences, (Σ |d|)² / Σ d², of the slot where they are least: requests for
    which both would show the same tell nothing about a difference. 0 where the targets never differ.
    """
    if target.contribution_R is None or other.contribution_R is None:
        raise DataError("a difference needs two estimates from the same log, with what each request contributed")
    assert target.weight_RT is not None
    assert other.weight_RT is not None
    return _estimate(target.contribution_R - other.contribution_R, np.abs(target.weight_RT - other.weight_RT))


def list_ips(reward_R: np.ndarray, target_R: np.ndarray, logging_R: np.ndarray) -> Estimate:
    """Inverse propensity score of whole lists."""
    return slot_ips(reward_R[:, None], target_R[:, None], logging_R[:, None])


def list_snips(reward_R: np.ndarray, target_R: np.ndarray, logging_R: np.ndarray) -> Estimate:
    """Self-normalised IPS of whole lists."""
    return slot_snips(reward_R[:, None], target_R[:, None], logging_R[:, None])


def list_dr(
    reward_R: np.ndarray,
    target_R: np.ndarray,
    logging_R: np.ndarray,
    model_R: np.ndarray,
    model_under_target_R: np.ndarray,
) -> Estimate:
    """Doubly robust. `model`: predicted reward of the logged list; `model_under_target`: its mean over the target's lists."""
    columns = (x[:, None] for x in (reward_R, target_R, logging_R, model_R, model_under_target_R))
    return slot_dr(*columns)


def slot_ips(reward_RT: np.ndarray, target_RT: np.ndarray, logging_RT: np.ndarray) -> Estimate:
    """Inverse propensity score, each slot weighed by its prefix."""
    weight_RT = prefix_weights(target_RT, logging_RT)
    return _estimate((weight_RT * reward_RT).sum(1), weight_RT)


def slot_snips(reward_RT: np.ndarray, target_RT: np.ndarray, logging_RT: np.ndarray) -> Estimate:
    """Self-normalised within each slot; interval by the delta method."""
    weight_RT = prefix_weights(target_RT, logging_RT)
    mean_T = weight_RT.mean(0)
    if (mean_T == 0).any():
        raise DataError("the target policy never chooses what was logged: nothing can be estimated", rule="support")
    value_T = (weight_RT * reward_RT).mean(0) / mean_T
    influence_R = (weight_RT * (reward_RT - value_T) / mean_T).sum(1)
    return _estimate(value_T.sum() + influence_R, weight_RT)


def slot_dr(
    reward_RT: np.ndarray,
    target_RT: np.ndarray,
    logging_RT: np.ndarray,
    model_RT: np.ndarray,
    model_under_target_RT: np.ndarray,
) -> Estimate:
    """Doubly robust from slot to slot.

    `model_RT`: predicted reward of slots t … T given the items up to and with t, later items chosen by the target;
    `model_under_target_RT`: the same with the item of slot t also chosen by the target (its mean given the items before t).
    """
    weight_RT = prefix_weights(target_RT, logging_RT)
    before_RT = np.concatenate([np.ones_like(weight_RT[:, :1]), weight_RT[:, :-1]], axis=1)
    corrections = weight_RT * (reward_RT - model_RT) + before_RT * model_under_target_RT
    return _estimate(corrections.sum(1), weight_RT)


def prefix_weights(target_RT: np.ndarray, logging_RT: np.ndarray) -> np.ndarray:
    """Π_{i≤t} target / logging, (R, T); raises DataError where a logged choice had no chance, or a probability isn't one."""
    for name, p in (("target", target_RT), ("logging", logging_RT)):
        if not ((p >= 0) & (p <= 1 + 1e-6)).all():
            raise DataError(f"a {name} probability outside 0 … 1", column="propensity", rule="probability")
    if (logging_RT <= 0).any():
        row = int((logging_RT <= 0).any(1).argmax())
        raise DataError("what was logged had propensity 0", row=row, column="propensity", rule="support")
    return np.cumprod(target_RT.astype(np.float64) / logging_RT.astype(np.float64), axis=1)


def plackett_luce(logits_RC: np.ndarray, lists_RT: np.ndarray) -> np.ndarray:
    """Probability of each item of given lists given the items before it, (R, T), when items are drawn one by one by
    softmax of the logits; −inf logits are never drawn. The product over T is the list's probability."""
    logits_RC = logits_RC.astype(np.float64)
    weight_RC = np.exp(logits_RC - logits_RC.max(axis=1, keepdims=True))
    out = np.empty(lists_RT.shape)
    rows = np.arange(len(lists_RT))
    for t in range(lists_RT.shape[1]):
        item_R = lists_RT[:, t]
        out[:, t] = weight_RC[rows, item_R] / weight_RC.sum(1)
        weight_RC[rows, item_R] = 0.0  # summed anew each time: subtracting leaves rounding where little is left
    return out


def _estimate(contribution_R: np.ndarray, weight_RT: np.ndarray) -> Estimate:
    value = float(contribution_R.mean())
    half = Z95 * float(contribution_R.std(ddof=1)) / len(contribution_R) ** 0.5
    squares_T = (weight_RT**2).sum(0)
    effective_T = np.divide(weight_RT.sum(0) ** 2, squares_T, out=np.zeros_like(squares_T), where=squares_T > 0)
    return Estimate(value, value - half, value + half, float(effective_T.min()), contribution_R, weight_RT)
