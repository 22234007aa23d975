"""One training loop for every network: AdamW, one-cycle schedule, a checkpoint each epoch, resumable to the same result.

Each worker computes its slice of the same global batch; gradients of summed losses are added over the group and divided
by the global count, so that the number of workers does not change what is learned (but for rounding).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from degre_prod.artefact import written_aside
from degre_prod.errors import TrainingError
from degre_prod.training.data import Draws
from degre_prod.training.group import Worker

# (indices of the samples, random numbers for them) → (sum of losses, count)
Loss = Callable[[np.ndarray, Draws], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int


@dataclass(frozen=True)
class EpochRecord:
    """Mean losses of one epoch, one point of a learning curve."""

    epoch: int
    train: float
    validation: float


def fit(
    model: nn.Module,
    loss: Loss,
    *,
    train: np.ndarray,
    validation: np.ndarray,
    schedule: Schedule,
    worker: Worker,
    folder: Path,
    name: str,
    pause: int | None = None,
) -> list[EpochRecord]:
    """Train in place; afterwards the model has the weights of the epoch with the lowest validation loss.

    `train` and `validation` are sample indices given to `loss`. State lives in `folder/{name}.pt`. With `pause` only so many
    epochs of the schedule are trained, and told of; called again without, the rest of them, as if there had been no pause.
    Raises TrainingError on a loss that isn't finite or without samples.
    """
    if len(train) == 0 or len(validation) == 0:
        raise TrainingError(f"{name}: {len(train)} training and {len(validation)} validation samples; both are needed")
    steps = math.ceil(len(train) / schedule.batch_size)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=schedule.weight_decay, fused=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=schedule.learning_rate, total_steps=steps * schedule.epochs
    )
    file = folder / f"{name}.pt"
    state = _resume(file, model, optimiser, cycle)
    last = schedule.epochs if pause is None else pause
    for epoch in range(state["epoch"], last):
        order = np.random.default_rng([schedule.seed, epoch]).permutation(train)
        model.train()
        total, count = 0.0, 0.0
        for step in range(steps):
            batch = order[step * schedule.batch_size : (step + 1) * schedule.batch_size]
            random = _Rows(np.random.default_rng([schedule.seed, epoch, step, 0]), len(batch), worker)
            optimiser.zero_grad()
            added = _backward(loss, worker.rows(batch), random, parameters, worker)
            if not math.isfinite(added[0]):
                raise TrainingError(
                    f"{name}: the loss is {added[0]} at epoch {epoch}, step {step}; lower the learning rate"
                )
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            cycle.step()
            total, count = total + added[0], count + added[1]
        held_out = mean_loss(model, loss, validation, schedule, worker)
        if not math.isfinite(held_out):
            raise TrainingError(
                f"{name}: the validation loss is {held_out} after epoch {epoch}; lower the learning rate"
            )
        record = EpochRecord(epoch, total / max(count, 1), held_out)
        if not state["history"] or held_out < min(r["validation"] for r in state["history"]):
            state["best"] = {k: v.clone() for k, v in model.state_dict().items()}
        state["history"].append(vars(record))
        state["epoch"] = epoch + 1
        if worker.rank == 0:
            _save(file, state, model, optimiser, cycle)
        worker.progress(folder, epoch + 1, last, f"{name}: validation {held_out:.4f}")
    model.load_state_dict(state["best"])
    model.eval()
    return [EpochRecord(**r) for r in state["history"][:pause]]


def mean_loss(model: nn.Module, loss: Loss, samples: np.ndarray, schedule: Schedule, worker: Worker) -> float:
    """Mean loss over samples, the last partial batch included; the same randomness every time."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        for start in range(0, len(samples), schedule.batch_size):
            batch = samples[start : start + schedule.batch_size]
            if len(mine := worker.rows(batch)):
                random = _Rows(np.random.default_rng([schedule.seed, start, 0]), len(batch), worker)
                value, count = loss(mine, random)
                sums += torch.tensor([float(value), float(count)], dtype=torch.float64)
    worker.sum(sums)
    return float(sums[0] / sums[1].clamp(min=1))


def _backward(
    loss: Loss, batch: np.ndarray, random: Draws, parameters: list[nn.Parameter], worker: Worker
) -> tuple[float, float]:
    """Gradients of the global mean loss; returns the global (sum, count)."""
    value, count = torch.zeros(()), torch.zeros(())
    if len(batch):
        value, count = loss(batch, random)
        value.backward()
    flat = torch.cat([p.grad.reshape(-1) if p.grad is not None else p.new_zeros(p.numel()) for p in parameters])
    packed = worker.sum(torch.cat([flat, torch.stack([value.detach(), count]).to(flat)]))
    flat, total, counted = packed[:-2], float(packed[-2]), float(packed[-1])
    at = 0
    for p in parameters:
        p.grad = flat[at : at + p.numel()].view_as(p) / max(counted, 1.0)
        at += p.numel()
    return total, counted


@dataclass(frozen=True)
class _Rows:
    """A worker's rows of the random numbers of a global batch: a sample's do not depend on the number of workers."""

    generator: np.random.Generator
    samples: int
    worker: Worker

    def random(self, size: tuple[int, ...], /) -> np.ndarray:
        """See `Draws`."""
        return self.worker.rows(self.generator.random((self.samples, *size[1:])))


def _resume(file: Path, model: nn.Module, optimiser: torch.optim.Optimizer, cycle: Any) -> dict[str, Any]:
    if not file.exists():
        return {"epoch": 0, "history": [], "best": None}
    saved = torch.load(file, weights_only=True)
    model.load_state_dict(saved["model"])
    optimiser.load_state_dict(saved["optimiser"])
    cycle.load_state_dict(saved["cycle"])
    return {"epoch": saved["epoch"], "history": saved["history"], "best": saved["best"]}


def _save(file: Path, state: dict[str, Any], model: nn.Module, optimiser: torch.optim.Optimizer, cycle: Any) -> None:
    with written_aside(file) as aside:
        torch.save(
            {**state, "model": model.state_dict(), "optimiser": optimiser.state_dict(), "cycle": cycle.state_dict()},
            aside,
        )
