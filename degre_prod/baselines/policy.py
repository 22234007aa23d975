"""Learning from lists of one's own that the evaluator grades: what GRPO, GoalRank, GReF and NAR4Rec share.

Each step samples G lists of every request of a batch from the policy, asks the evaluator for each list's utility
(L calls a list) and takes one gradient step on the method's loss. The epoch whose greedy lists the evaluator values most
on held-out requests is kept; asking for that counts as well.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from degre_prod.baselines.calls import Calls, CountingEvaluator
from degre_prod.baselines.material import HELD_OUT, Material, Ranker, batches, cut, learn, utilities_of
from degre_prod.encoding.store import EncodedSet
from degre_prod.models.fields import gather
from degre_prod.models.generator import NEVER, Generator
from degre_prod.training.data import TensorBatch, to_batch
from degre_prod.training.loop import Schedule

GROUP, BATCH = 16, 64
LEARNING_RATE = 1e-3


class Policy(nn.Module, ABC):
    """A distribution over lists, one item after another."""

    @abstractmethod
    def logits(self, batch: TensorBatch, lists_BGL: Tensor) -> Tensor:
        """logits_BGLC of every step of given lists; used items and padding are masked."""

    @abstractmethod
    def sample(self, batch: TensorBatch, groups: int, length: int, noise: torch.Generator | None) -> Tensor:
        """lists_BGL drawn from the policy; the greedy list where there is no noise."""


class Graded(NamedTuple):
    """Lists drawn for a batch: lists_BGL, the evaluator's utility_BG in units of Ū, logits_BGLC and logp_BGL with gradient."""

    lists: Tensor
    utility: Tensor
    logits: Tensor
    logp: Tensor


GradedLoss = Callable[[TensorBatch, Graded], Tensor]  # loss_B


class PointerPolicy(Policy):
    """The Online Generator as a policy."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def logits(self, batch: TensorBatch, lists_BGL: Tensor) -> Tensor:
        """See `Policy`."""
        return self.generator.teacher_forced(batch, lists_BGL)

    def sample(self, batch: TensorBatch, groups: int, length: int, noise: torch.Generator | None) -> Tensor:
        """See `Policy`."""
        model = self.generator
        z, x, h = model.encode(batch)
        B, _, D = z.shape
        keys = model.key(z).transpose(1, 2)
        x, h = x.repeat_interleave(groups, 0), h.repeat_interleave(groups, 0)
        free = batch["mask"].unsqueeze(1).repeat(1, groups, 1)
        chosen = []
        for _ in range(length):
            h = model.cell(x, h)
            logits = model.query(h).view(B, groups, D) @ keys / D**0.5
            item = draw(logits, free, noise)
            chosen.append(item)
            free = free.scatter(2, item.unsqueeze(-1), False)
            x = gather(z, item).view(B * groups, D)
        return torch.stack(chosen, dim=-1)


def draw(logits_BGC: Tensor, free_BGC: Tensor, noise: torch.Generator | None) -> Tensor:
    """One free item a row, item_BG: by the logits' softmax with noise (Gumbel), the best one without."""
    if noise is not None:
        uniform = torch.rand(logits_BGC.shape, generator=noise).clamp(min=1e-12)
        logits_BGC = logits_BGC - torch.log((-torch.log(uniform)).clamp(min=1e-12))
    return logits_BGC.masked_fill(~free_BGC, NEVER).argmax(-1)


def train_policy(material: Material, calls: Calls, policy: Policy, loss_of: GradedLoss) -> Ranker:
    """Spend the budget on graded lists; returns the policy's greedy decoding."""
    evaluator = CountingEvaluator(material.evaluator, calls)
    L = material.layout.list_length
    train = material.requests[np.arange(len(material.requests)) % HELD_OUT != 0]
    held_out = material.requests[np.arange(len(material.requests)) % HELD_OUT == 0]
    epochs, train = within_budget(material.budget, train, len(held_out), L)

    def loss(samples: np.ndarray, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        batch = to_batch(material.train, samples)
        learning = torch.is_grad_enabled()
        noise = torch.Generator().manual_seed(int(random.integers(1 << 62))) if learning else None
        with torch.no_grad():
            lists = policy.sample(batch, GROUP if learning else 1, L, noise)
        utility = utilities_of(evaluator, material.train, samples, lists)
        count = torch.tensor(float(len(samples)))
        if not learning:
            return -utility.sum(), count
        logits = policy.logits(batch, lists)
        logp = F.log_softmax(logits, dim=-1).gather(-1, lists.unsqueeze(-1)).squeeze(-1)
        return loss_of(batch, Graded(lists, utility, logits, logp)).sum(), count

    schedule = Schedule(epochs, BATCH, LEARNING_RATE, material.generator.weight_decay, material.seed)
    learn(policy, loss, train, held_out, schedule)
    return lambda encoded: greedy_lists(policy, encoded, L)


def within_budget(budget: int, train: np.ndarray, held_out: int, length: int) -> tuple[int, np.ndarray]:
    """Epochs, and the requests to learn from, so that learning and choosing an epoch stay within the budget."""
    an_epoch = (len(train) * GROUP + held_out) * length
    if budget >= an_epoch:
        return budget // an_epoch, train
    affordable = (budget // length - held_out) // GROUP
    return 1, train[: max(1, affordable)]


def greedy_lists(policy: Policy, encoded: EncodedSet, length: int) -> np.ndarray:
    """The policy's best item at every step: (R, L)."""
    with torch.inference_mode():
        return cut(np.concatenate([policy.sample(b, 1, length, None)[:, 0].numpy() for b in batches(encoded)]), encoded)


def standardised(utility_BG: Tensor) -> Tensor:
    """Utilities less their group's mean, over its standard deviation."""
    spread = utility_BG.std(1, keepdim=True, correction=0)
    return (utility_BG - utility_BG.mean(1, keepdim=True)) / (spread + 1e-4)
