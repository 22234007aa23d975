"""GRPO (Shao et al. 2024): policy gradient on the evaluator's list utility, the group's mean as baseline.

One step a batch, so the policy ratio is 1 and nothing is clipped. A small entropy bonus keeps it exploring.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from degre_prod.baselines.calls import Calls
from degre_prod.baselines.material import Material, Ranker
from degre_prod.baselines.policy import Graded, PointerPolicy, standardised, train_policy
from degre_prod.models.generator import Generator, GeneratorSpec
from degre_prod.training.data import TensorBatch

ENTROPY = 0.01


def grpo(material: Material, calls: Calls) -> Ranker:
    """The Online Generator from scratch, by list reward alone."""
    torch.manual_seed(material.seed)
    settings = material.generator
    generator = Generator(GeneratorSpec(material.layout, settings.width, settings.encoder_layers))
    return train_policy(material, calls, PointerPolicy(generator), policy_gradient)


def policy_gradient(_: TensorBatch, graded: Graded) -> Tensor:
    """loss_B = −mean over the group of advantage · mean step log-probability, less the entropy bonus."""
    p, logp = F.softmax(graded.logits, dim=-1), F.log_softmax(graded.logits, dim=-1)
    entropy = -(p * logp.clamp(min=-50)).sum(-1).mean((1, 2))
    return -(standardised(graded.utility) * graded.logp.mean(-1)).mean(1) - ENTROPY * entropy
