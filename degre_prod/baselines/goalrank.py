"""Group-relative training in the manner of GoalRank (2025): match the distribution that utilities give a group of lists.

Taken: one large generator instead of generator and evaluator at request time, trained so that its list probabilities over a
group follow the softmax of the reward model's standardised utilities (cross-entropy). Different: the group is drawn from
the policy itself, where the paper also uses lists of other rankers, and the network has the Online Generator's size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from degre_prod.baselines.calls import Calls
from degre_prod.baselines.graded import Graded, Learning, standardised, train_policy
from degre_prod.baselines.material import Material, Ranker
from degre_prod.baselines.policy import PointerPolicy
from degre_prod.models.generator import Generator
from degre_prod.training.generator import generator_spec


@dataclass(frozen=True)
class GoalRankConfig(Learning):
    """`temperature`: of the target, in standard deviations of a group's utilities."""

    temperature: float = 0.5


TRIALS: tuple[GoalRankConfig, ...] = (
    GoalRankConfig(),
    GoalRankConfig(temperature=0.25),
    GoalRankConfig(learning_rate=3e-3),
    GoalRankConfig(group=32, batch_size=32),
)


def goalrank(material: Material, calls: Calls, config: GoalRankConfig = TRIALS[0]) -> Ranker:
    """The Online Generator from scratch, by group-relative cross-entropy."""
    torch.manual_seed(material.seed)
    policy = PointerPolicy(Generator(generator_spec(material.layout, material.generator)))
    return train_policy(material, calls, policy, lambda graded: group_relative(graded, config.temperature), config)


def group_relative(graded: Graded, temperature: float) -> Tensor:
    """loss_B = cross-entropy of the policy's distribution over the group against the evaluator's."""
    target = torch.softmax(standardised(graded.utility) / temperature, dim=1)
    return -(target * F.log_softmax(graded.logp.sum(-1), dim=1)).sum(1)
