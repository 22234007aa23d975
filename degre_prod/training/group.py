"""The worker group: one launcher for the evaluator, mining and the generator, alone or one after another.

A task is a module-level function of one dictionary (JSON values), run by every worker; it works in a shared folder,
resumes from what it finds there, and may therefore be started again at any time. Workers split work by rank.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from degre_prod.artefact import finished, publish, write_json, write_text
from degre_prod.config import ScalingConfig
from degre_prod.errors import TrainingError
from degre_prod.training.memory import keep_freed_memory

K = TypeVar("K")
V = TypeVar("V")
Task = Callable[[dict[str, Any]], None]
FAILURE = "failure.txt"  # in the task's folder: all that Ray had to say
LOOK_S = 0.3  # between two looks at the workers' progress
LINE_S = 10.0  # between two lines of progress, where standard error is a log
WAIT_S = 7 * 86_400  # for a worker that has more to do; one that died is noticed by its closed connection, and by Ray


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


@dataclass(frozen=True)
class Job:
    """A task of the group and what it is given; `folder` is where it works and leaves its progress, `label` what people read.

    With `artefact`, the folder to publish and what that is made from, `folder` is the artefact's workplace.
    """

    label: str
    task: Task
    config: dict[str, Any]
    folder: Path
    artefact: tuple[Path, str] | None = None

    def done(self) -> bool:
        """Whether its artefact is published."""
        return self.artefact is not None and finished(*self.artefact)


def run_group(task: Task, config: dict[str, Any], *, folder: Path, scaling: ScalingConfig, label: str) -> None:
    """Run one task that publishes nothing, and wait; `folder` is where it works and leaves its progress. Raises TrainingError
    when a worker fails for good."""
    run_jobs([Job(label, task, config, folder)], scaling=scaling)


def run_jobs(jobs: Sequence[Job], *, scaling: ScalingConfig) -> dict[str, float]:
    """Run jobs one after another in one launch of the group, and wait; seconds by label, the start of the group in the first.

    A launch loads PyTorch into each of seven processes, so jobs that follow each other share one. With `scaling.num_workers` 0
    they run in this process. Raises TrainingError when a worker fails for good; what was published by then stays.
    """
    for job in jobs:
        _clear(job.folder)
    with _progress_bar(jobs) as seconds:
        if scaling.num_workers == 0:
            _in_order({"jobs": jobs})
        else:
            _run_on_ray(jobs, scaling)
    for job in jobs:
        _clear(job.folder)
    return seconds


def _in_order(config: dict[str, Any]) -> None:
    """What every worker does in a launch. A group that starts again goes on with the first job that is not done."""
    for job in config["jobs"]:
        if job.done():
            continue
        job.task(job.config)
        if job.artefact is not None:
            worker = current_worker()
            worker.wait()
            if worker.rank == 0:
                _clear(job.folder)
                publish(*job.artefact)
            worker.wait()


def _clear(folder: Path) -> None:
    """Remove what one launch left for people to see; of an interrupted one, too."""
    for file in (*folder.glob("progress-*.json"), folder / FAILURE):
        file.unlink(missing_ok=True)


def _run_on_ray(jobs: Sequence[Job], scaling: ScalingConfig) -> None:
    # Ray Train's watcher for announced preemptions asks for a checkpoint that no task here needs: each resumes from its
    # folder. Its process costs as much as loading PyTorch does, just when the workers begin.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # Ray's own bookkeeping of one launch; beside the folders, for those of artefacts are renamed while it goes on.
    storage = jobs[0].folder.parent / ".ray_train"
    left = scaling.max_failures
    try:
        while True:
            try:
                _trainer(jobs, storage, scaling).fit()
                return
            except Exception as error:  # Ray wraps whatever a worker raised in types that differ between versions
                if left and _lost_node(error):
                    left -= 1
                    continue
                failed = next((job for job in jobs if not job.done()), jobs[-1])
                write_text(failed.folder / FAILURE, f"{error}\n")
                reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
                raise TrainingError(
                    f"{failed.task.__module__}.{failed.task.__name__} failed on {scaling.num_workers} workers: {reason} "
                    f"(more in {failed.folder / FAILURE})"
                ) from error
    finally:
        shutil.rmtree(storage, ignore_errors=True)


def _trainer(jobs: Sequence[Job], storage: Path, scaling: ScalingConfig) -> Any:
    from ray.train import FailureConfig, RunConfig
    from ray.train import ScalingConfig as RayScaling
    from ray.train.torch import TorchConfig, TorchTrainer

    return TorchTrainer(
        _in_order,
        train_loop_config={"jobs": jobs},
        torch_config=TorchConfig(backend="gloo", timeout_s=WAIT_S),
        scaling_config=RayScaling(
            num_workers=scaling.num_workers,
            resources_per_worker={"CPU": scaling.cpus_per_worker},
            placement_strategy=scaling.placement.upper(),  # both give way where nodes are full or gone
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex[:8],
            storage_path=str(storage.resolve()),
            failure_config=FailureConfig(max_failures=scaling.max_failures),
        ),
    )


def _lost_node(error: Exception) -> bool:
    """Whether Ray Train itself lost an actor, as when a node dies while workers start: it starts anew after a worker's
    failure only."""
    from ray.exceptions import RayError

    return isinstance(getattr(error, "controller_failure", None), RayError)


@contextmanager
def _progress_bar(jobs: Sequence[Job]) -> Iterator[dict[str, float]]:
    """Show on stderr how far the first job is that is not done, as the sum of the workers' progress, while the block runs: a
    bar, or lines where nobody sees a bar move. Fills in the seconds each job took, by label."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    for job in jobs:
        job.folder.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    seconds: dict[str, float] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True) as bar:

        def follow() -> None:
            for job in jobs:
                started = time.monotonic()
                line = bar.add_task(job.label, total=None, text="starting workers" if job is jobs[0] else "")
                last, due, over = "", 0.0, False
                while not over:
                    over = stop.wait(LOOK_S) or job.done()
                    if not (reports := _reports(job.folder)):
                        continue
                    done, total = (sum(r[name] for r in reports) for name in ("done", "total"))
                    text = _told(reports, bar.tasks[0].speed)
                    bar.update(line, completed=done, total=total, text=text)
                    now = f"{job.label}: {done:,.0f} of {total:,.0f}, {text}"
                    if not console.is_terminal and now != last and (over or time.monotonic() >= due):
                        print(now, file=sys.stderr, flush=True)
                        last, due = now, time.monotonic() + LINE_S
                bar.remove_task(line)
                seconds[job.label] = round(time.monotonic() - started, 2)

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield seconds
        finally:
            stop.set()
            thread.join()


def _told(reports: list[dict[str, Any]], speed: float | None) -> str:
    """The reports' texts, and the speed where they have a unit; `speed` is the group's, a second, over the last half minute."""
    unit = reports[0]["unit"]
    rate = f"{speed:,.0f} {unit}/s" if unit and speed is not None else ""
    texts = " · ".join(dict.fromkeys(str(report["text"]) for report in reports))
    return ", ".join(part for part in (rate, texts) if part)


def _reports(folder: Path) -> list[dict[str, Any]]:
    """What every worker told last; nothing where the folder was published a moment ago."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.startswith("progress-"))
    except FileNotFoundError:
        return []
    return [report for name in names if (report := _read(folder / name))]


def _read(file: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        return None  # replaced at this moment; the next look sees it
