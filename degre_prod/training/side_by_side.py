"""Networks that do not need each other, trained side by side by the workers of one group.

A worker alone with a network takes whole batches: no gradients to add up after each step, and nobody to wait for. What a
network learns does not depend on who trains it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from degre_prod.training.group import Worker
from degre_prod.training.loop import EpochRecord, Loss, Schedule, fit


@dataclass(frozen=True)
class Network:
    """A network to train. Every worker may `make` it, the same weights each time; the parameters whose names begin with one of
    `parts` are trained, and they alone are the result. `cost`: of its training beside the others'. `pause`: see `fit`."""

    name: str
    make: Callable[[], Any]
    loss: Callable[[Any], Loss]
    parts: tuple[str, ...]
    schedule: Schedule
    cost: float
    pause: int | None = None

    def first_half(self) -> Network:
        """The same network, half trained."""
        return replace(self, pause=(self.schedule.epochs + 1) // 2, cost=self.cost / 2)

    def second_half(self) -> Network:
        """The same network, whose first half is trained already."""
        return replace(self, cost=self.cost / 2)


@dataclass(frozen=True)
class Trained:
    """The trained parts of a network by name, and its learning curve."""

    weights: dict[str, Tensor]
    curve: list[EpochRecord]

    @property
    def lowest(self) -> float:
        """The lowest validation loss, whose weights these are."""
        return min(record.validation for record in self.curve)


def train_side_by_side(
    networks: Sequence[Network], *, train: np.ndarray, validation: np.ndarray, worker: Worker, folder: Path
) -> dict[str, Trained]:
    """Train every network with `fit`, the work divided over the group; by name, all of them on all workers. What is trained
    already is read from `folder`."""
    alone, jobs = worker.divided([network.cost for network in networks])
    mine = {networks[job].name: _train(networks[job], train, validation, alone, folder) for job in jobs}
    everything = worker.gathered(mine if alone.rank == 0 else {})
    return {network.name: everything[network.name] for network in networks}


def _train(network: Network, train: np.ndarray, validation: np.ndarray, worker: Worker, folder: Path) -> Trained:
    model = network.make()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(network.parts))
    curve = fit(
        model,
        network.loss(model),
        train=train,
        validation=validation,
        schedule=network.schedule,
        worker=worker,
        folder=folder,
        name=network.name.replace(" ", "_"),
        pause=network.pause,
    )
    return Trained({n: w for n, w in model.state_dict().items() if n.startswith(network.parts)}, curve)
