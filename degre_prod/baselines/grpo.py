"""GRPO (Shao et al. 2024): policy gradient on the evaluator's list utility, the group's mean as baseline.

As in the paper: one advantage for all steps of a list, against its group's mean, and the clipped policy ratio a
step (one gradient step a draw by default, so that nothing is clipped). Not taken: the KL to a reference policy, for there
is no pretrained policy to stay near. Different: advantages are divided by the standard deviation of the whole batch (the
paper's group is a trial: it weighs requests with little to gain like those with much, and settles early on what suits the
many), and an entropy bonus that fades out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
class GrpoConfig(Learning):
    """`entropy`: weight of the bonus at the start; `clip`: of the ratio; `scale`: advantages are divided by the standard
    deviation of their group, as in the paper, or of the batch."""

    learning_rate: float = 3e-3
    entropy: float = 0.2
    clip: float = 0.2
    scale: Literal["group", "batch"] = "batch"


TRIALS: tuple[GrpoConfig, ...] = (
    GrpoConfig(),
    GrpoConfig(passes=2),
    GrpoConfig(learning_rate=1e-3, passes=2),
    GrpoConfig(learning_rate=1e-3, entropy=0.05, scale="group"),
)


def grpo(material: Material, calls: Calls, config: GrpoConfig = TRIALS[0]) -> Ranker:
    """The Online Generator from scratch, by list reward alone."""
    torch.manual_seed(material.seed)
    policy = PointerPolicy(Generator(generator_spec(material.layout, material.generator)))
    return train_policy(material, calls, policy, lambda graded: policy_gradient(graded, config), config)


def policy_gradient(graded: Graded, config: GrpoConfig) -> Tensor:
    """loss_B = −mean over lists and steps of min(ratio · A, clipped ratio · A), less the entropy bonus."""
    A = advantage(graded.utility, config.scale).unsqueeze(-1)
    ratio = torch.exp(graded.logp - graded.old)
    gain = torch.minimum(ratio * A, ratio.clamp(1 - config.clip, 1 + config.clip) * A)
    logp = F.log_softmax(graded.logits, dim=-1)
    entropy = -(logp.exp() * logp.clamp(min=-50)).sum(-1).mean((1, 2))
    return -gain.mean((1, 2)) - config.entropy * (1 - graded.progress) * entropy


def advantage(utility_BG: Tensor, scale: str) -> Tensor:
    """Utilities less their group's mean, over the group's or the batch's standard deviation."""
    if scale == "group":
        return standardised(utility_BG)
    above = utility_BG - utility_BG.mean(1, keepdim=True)
    return above / (above.square().mean().sqrt() + 1e-4)
