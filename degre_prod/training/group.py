"""A worker's place in the group that trains and mines: how work is split by rank, and what workers tell each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from degre_prod.artefact import write_json
from degre_prod.training.memory import keep_freed_memory

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class Worker:
    """This worker's place in its group, or in a `team` that the group was divided into; `seat` is its rank in the whole group
    where that is another."""

    rank: int
    world: int
    team: torch.distributed.ProcessGroup | None = None
    seat: int | None = None

    def sum(self, tensor: Tensor) -> Tensor:
        """Element-wise sum over the group, in place."""
        if self.world > 1:
            torch.distributed.all_reduce(tensor, group=self.team)
        return tensor

    def divided(self, costs: Sequence[float]) -> tuple[Worker, list[int]]:
        """This worker's place in its part of the group, and which of the jobs with these `costs` that part does, in order.

        With fewer workers than jobs each works alone, the costly jobs given out first, to whom has least to do; with more of
        them each job has a team. Every worker of the group must ask at the same time.
        """
        if self.world == 1:
            return self, list(range(len(costs)))
        costly_first = sorted(range(len(costs)), key=lambda job: -costs[job])
        if self.world <= len(costs):
            jobs: list[list[int]] = [[] for _ in range(self.world)]
            for job in costly_first:
                min(jobs, key=lambda given: sum(costs[j] for j in given)).append(job)
            return Worker(0, 1, seat=self.rank), sorted(jobs[self.rank])
        members = [list(range(self.world))[place :: len(costs)] for place in range(len(costs))]
        teams = [torch.distributed.new_group(ranks) for ranks in members]
        place = self.rank % len(costs)
        return Worker(members[place].index(self.rank), len(members[place]), teams[place], self.rank), [
            costly_first[place]
        ]

    def gathered(self, mine: dict[K, V]) -> dict[K, V]:
        """What every worker of the whole group brings, each key from one of them. All wait for the last one."""
        if self.world == 1:
            return mine
        brought: list[dict[K, V]] = [{} for _ in range(self.world)]
        torch.distributed.all_gather_object(brought, mine)
        return {key: value for part in brought for key, value in part.items()}

    def wait(self) -> None:
        """Until every worker of the whole group is here."""
        if self.world > 1:
            torch.distributed.barrier()

    def rows(self, batch: np.ndarray) -> np.ndarray:
        """This worker's rows of a batch that the whole group works on."""
        return batch[self.rank :: self.world]

    def share(self, count: int) -> range:
        """The indices below `count` that are this worker's."""
        return range(self.rank, count, self.world)

    def progress(self, folder: Path, done: float, total: float, text: str, *, unit: str = "") -> None:
        """Leave word for the launcher's progress bar, which also shows how many of a `unit` a second are done."""
        told = {"done": done, "total": total, "text": text, "unit": unit}
        seat = self.rank if self.seat is None else self.seat
        write_json(folder / f"progress-{seat}.json", told)


def current_worker() -> Worker:
    """The worker this process is; a group of one outside any group. Sets one thread: same seed, same result. Freed memory
    stays with the process."""
    torch.set_num_threads(1)
    keep_freed_memory()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Worker(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return Worker(0, 1)
