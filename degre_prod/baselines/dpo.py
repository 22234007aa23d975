"""Preference pairs in the manner of GReF: supervised start from logs, then DPO (Rafailov et al. 2023) on lists.

A pair is the best and the worst of a group by the evaluator; the reference policy is the supervised start.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from degre_prod.baselines.calls import Calls
from degre_prod.baselines.click_to_top import train_click_to_top
from degre_prod.baselines.material import Material, Ranker
from degre_prod.baselines.policy import Graded, PointerPolicy, train_policy
from degre_prod.models.generator import Generator
from degre_prod.training.data import TensorBatch

BETA = 0.1


def dpo(material: Material, calls: Calls) -> Ranker:
    """Click-to-top, then preference pairs."""
    start = train_click_to_top(material)
    reference = copy.deepcopy(start).requires_grad_(False)
    return train_policy(
        material, calls, PointerPolicy(start), lambda batch, graded: preference(reference, batch, graded)
    )


def preference(reference: Generator, batch: TensorBatch, graded: Graded) -> Tensor:
    """loss_B = −log σ(β · (how much more the policy prefers the better list than the reference does))."""
    pair = torch.stack([graded.utility.argmax(1), graded.utility.argmin(1)], dim=1)
    lists = graded.lists.gather(1, pair.unsqueeze(-1).expand(-1, -1, graded.lists.shape[-1]))
    with torch.no_grad():
        logits = reference.teacher_forced(batch, lists)
        base = F.log_softmax(logits, dim=-1).gather(-1, lists.unsqueeze(-1)).squeeze(-1).sum(-1)
    gain = graded.logp.sum(-1).gather(1, pair) - base
    return -F.logsigmoid(BETA * (gain[:, 0] - gain[:, 1]))
