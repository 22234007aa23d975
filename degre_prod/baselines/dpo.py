"""Preference pairs in the manner of GReF (2025): supervised start from logs, then DPO (Rafailov et al. 2023) on lists.

Taken: an autoregressive generator pretrained on logged lists, post-training by direct preference optimisation against the
frozen start, a pair being the best and the worst list of a group drawn from the policy. Different: the evaluator ranks
the lists instead of a user-feedback score of theirs, lists are drawn anew at every step (on-policy DPO), and the network is
the Online Generator with no ordered multi-token prediction, which serves speed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from degre_prod.baselines.calls import Calls
from degre_prod.baselines.click_to_top import train_click_to_top
from degre_prod.baselines.graded import Graded, Learning, train_policy
from degre_prod.baselines.material import Material, Ranker
from degre_prod.baselines.policy import PointerPolicy, step_logp
from degre_prod.models.generator import Generator


@dataclass(frozen=True)
class DpoConfig(Learning):
    """`beta`: how dear it is to leave the reference, the larger the dearer."""

    beta: float = 0.1


TRIALS: tuple[DpoConfig, ...] = (
    DpoConfig(),
    DpoConfig(beta=0.02),
    DpoConfig(learning_rate=3e-3),
    DpoConfig(learning_rate=3e-3, beta=0.02),
)


def dpo(material: Material, calls: Calls, config: DpoConfig = TRIALS[0]) -> Ranker:
    """Click-to-top, then preference pairs."""
    start = train_click_to_top(material)
    reference = copy.deepcopy(start).requires_grad_(False)
    policy = PointerPolicy(start)
    return train_policy(
        material,
        calls,
        policy,
        lambda graded: preference(reference, graded, config.beta),
        config,
        choose=best_and_worst,
    )


def best_and_worst(utility_BG: Tensor) -> Tensor:
    """index_B2 of the highest and the lowest utility."""
    return torch.stack([utility_BG.argmax(1), utility_BG.argmin(1)], dim=1)


def preference(reference: Generator, graded: Graded, beta: float) -> Tensor:
    """loss_B = −log σ(β · (how much more the policy prefers the first list to the second than the reference does))."""
    with torch.no_grad():
        base = step_logp(reference.teacher_forced(graded.batch, graded.lists), graded.lists)
    gain = (graded.logp - base).sum(-1)
    return -F.logsigmoid(beta * (gain[:, 0] - gain[:, 1]))
