"""Learning from lists of one's own that the evaluator grades: what GRPO, GoalRank, GReF and NAR4Rec share.

Each step draws G lists of every request of a batch from the policy, asks the evaluator for each list's utility (L calls a
list) and takes gradient steps on the method's loss. At `CHECKPOINTS` points of the budget the policy's greedy lists of
held-out requests are graded, which counts as well; the policy kept is the one valued most.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from degre_prod.baselines.calls import Calls
from degre_prod.baselines.grading import Grader
from degre_prod.baselines.material import HELD_OUT, Material
from degre_prod.baselines.policy import Drawn, Policy, greedy_lists, step_logp
from degre_prod.encoding.store import EncodedSet
from degre_prod.errors import TrainingError
from degre_prod.training.data import TensorBatch, to_batch

CHECKPOINTS = 20
CHOOSING = 0.05  # of the budget at most goes into grading checkpoints


@dataclass(frozen=True)
class Learning:
    """`group`: lists drawn of a request at a time; `batch_size`: requests a step; AdamW with a one-cycle schedule up to
    `learning_rate`; `passes`: gradient steps on the lists of one step."""

    group: int = 16
    batch_size: int = 64
    learning_rate: float = 1e-3
    passes: int = 1


class Graded(NamedTuple):
    """Lists drawn for a batch: lists_BGL, utility_BG in units of Ū, logits_BGLC and logp_BGL of each step with gradient,
    old_BGL: logp when the lists were drawn; `progress`: the share of the steps done."""

    batch: TensorBatch
    lists: Tensor
    utility: Tensor
    logits: Tensor
    logp: Tensor
    old: Tensor
    progress: float = 0.0


GradedLoss = Callable[[Graded], Tensor]  # loss_B
Choice = Callable[[Tensor], Tensor]  # utility_BG → index_BP of the lists to learn from


@dataclass(frozen=True)
class Checkpoint:
    """The policy after so many calls, and what the evaluator believes its held-out lists are worth, in units of Ū."""

    calls: int
    believed: float
    policy: Policy


@dataclass(frozen=True)
class Learned:
    """A ranker: the greedy lists of the checkpoint the evaluator believed in most. `curve`: all of them."""

    curve: tuple[Checkpoint, ...]
    length: int

    @property
    def best(self) -> Checkpoint:
        """The first of the highest belief."""
        return max(self.curve, key=lambda point: point.believed)

    def __call__(self, encoded: EncodedSet) -> np.ndarray:
        """Lists (R, L)."""
        return greedy_lists(self.best.policy, encoded, self.length)


class Budget(NamedTuple):
    """How a budget of calls is spent."""

    steps: int
    batch_size: int
    checkpoints: int
    held_out: int


def train_policy(
    material: Material,
    calls: Calls,
    policy: Policy,
    loss_of: GradedLoss,
    learning: Learning,
    *,
    choose: Choice | None = None,
) -> Learned:
    """Spend the budget. With `choose` only the chosen lists of a group are learnt from.

    Raises TrainingError when there are too few requests, or on a loss that isn't finite.
    """
    L, spent = material.layout.list_length, calls.count
    at = np.arange(len(material.requests)) % HELD_OUT != 0
    train, held_out = material.requests[at], material.requests[~at]
    if not len(train) or not len(held_out):
        raise TrainingError(f"{len(material.requests)} requests to learn from; at least 2 are needed")
    grader = Grader(material.evaluator, material.train, material.requests, calls)
    budget = within_budget(material.budget // grader.price(1), len(train), len(held_out), learning)
    held_out = held_out[: budget.held_out]
    policy.train()
    optimiser = torch.optim.AdamW(
        policy.parameters(), lr=learning.learning_rate, weight_decay=material.generator.weight_decay
    )
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=learning.learning_rate, total_steps=budget.steps * learning.passes
    )
    noise = torch.Generator().manual_seed(material.seed)
    due = {math.ceil(budget.steps * (i + 1) / budget.checkpoints) for i in range(budget.checkpoints)}
    curve = []
    for step, requests in enumerate(request_order(train, budget, material.seed)):
        batch = to_batch(material.train, requests)
        with torch.set_grad_enabled(choose is None):
            drawn = policy.sample(batch, learning.group, L, noise)
        utility = grader(requests, drawn.lists)
        if choose is not None:
            index = choose(utility)
            utility = utility.gather(1, index)
            lists = drawn.lists.gather(1, index.unsqueeze(-1).expand(-1, -1, L))
            drawn = Drawn(lists, policy.logits(batch, lists))
        old = None
        for turn in range(learning.passes):
            logits = policy.logits(batch, drawn.lists) if turn else drawn.logits
            logp = step_logp(logits, drawn.lists)
            old = logp.detach() if old is None else old
            loss = loss_of(Graded(batch, drawn.lists, utility, logits, logp, old, step / budget.steps)).mean()
            if not torch.isfinite(loss.detach()):
                raise TrainingError(f"the loss is {float(loss.detach())} at step {step}; lower the learning rate")
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimiser.step()
            cycle.step()
        if step + 1 in due:
            believed = believed_value(policy, material, grader, held_out)
            curve.append(Checkpoint(calls.count - spent, believed, copy.deepcopy(policy).eval()))
    return Learned(tuple(curve), L)


def within_budget(lists: int, train: int, held_out: int, learning: Learning) -> Budget:
    """Steps and checkpoints that cost at most `lists` graded lists, at least one of each; checkpoints take `CHOOSING`."""
    held_out = max(1, min(held_out, int(lists * CHOOSING)))
    checkpoints = max(1, min(CHECKPOINTS, int(lists * CHOOSING) // held_out))
    left = lists - checkpoints * held_out
    batch_size = max(1, min(learning.batch_size, train, left // learning.group))
    steps = max(1, left // (batch_size * learning.group))
    return Budget(steps, batch_size, min(checkpoints, steps), held_out)


def request_order(train: np.ndarray, budget: Budget, seed: int) -> np.ndarray:
    """Requests of every step, (steps, B): one random order of all after another."""
    needed = budget.steps * budget.batch_size
    rng = np.random.default_rng(seed)
    order = [rng.permutation(train) for _ in range(math.ceil(needed / len(train)))]
    return np.concatenate(order)[:needed].reshape(budget.steps, budget.batch_size)


def believed_value(policy: Policy, material: Material, grader: Grader, requests: np.ndarray) -> float:
    """Mean utility of the greedy lists, in units of Ū."""
    policy.eval()
    with torch.no_grad():
        drawn = policy.sample(to_batch(material.train, requests), 1, material.layout.list_length, None)
    policy.train()
    return float(grader(requests, drawn.lists).mean())


def standardised(utility_BG: Tensor) -> Tensor:
    """Utilities less their group's mean, over its standard deviation."""
    spread = utility_BG.std(1, keepdim=True, correction=0)
    return (utility_BG - utility_BG.mean(1, keepdim=True)) / (spread + 1e-4)
