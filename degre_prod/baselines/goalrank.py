"""Group-relative training in the manner of GoalRank: match the distribution that the evaluator's utilities give a group.

Target: softmax of the group's standardised utilities; the policy's own: softmax of its list log-probabilities over the
group. Loss: cross-entropy between the two.
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

TEMPERATURE = 0.5


def goalrank(material: Material, calls: Calls) -> Ranker:
    """The Online Generator from scratch, by group-relative cross-entropy."""
    torch.manual_seed(material.seed)
    settings = material.generator
    generator = Generator(GeneratorSpec(material.layout, settings.width, settings.encoder_layers))
    return train_policy(material, calls, PointerPolicy(generator), group_relative)


def group_relative(_: TensorBatch, graded: Graded) -> Tensor:
    """loss_B = cross-entropy of the policy's distribution over the group against the evaluator's."""
    target = torch.softmax(standardised(graded.utility) / TEMPERATURE, dim=1)
    return -(target * F.log_softmax(graded.logp.sum(-1), dim=1)).sum(1)
