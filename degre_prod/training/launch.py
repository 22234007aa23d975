"""The worker group's launcher: one for the evaluator, mining and the generator, alone or one after another.

A task is a module-level function of one dictionary (JSON values), run by every worker; it works in a shared folder,
resumes from what it finds there, and may therefore be started again at any time. Workers split work by rank.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from degre_prod.artefact import finished, publish, write_text, written_aside
from degre_prod.config import ScalingConfig
from degre_prod.errors import TrainingError
from degre_prod.training.group import current_worker
from degre_prod.training.job_progress import LOOK_S, progress_bar

Task = Callable[[dict[str, Any]], None]
FAILURE = "failure.txt"  # in the task's folder: all that Ray had to say
ASK_S = 0.1  # between two looks of a worker for its jobs
WAIT_S = 7 * 86_400  # for a worker that has more to do; one that died is noticed by its closed connection, and by Ray


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


# Runs jobs one after another and waits; the seconds of each by label.
Launch = Callable[[Sequence[Job]], dict[str, float]]


def run_group(task: Task, config: dict[str, Any], *, folder: Path, scaling: ScalingConfig, label: str) -> None:
    """Run one task that publishes nothing, and wait; `folder` is where it works and leaves its progress. Raises TrainingError
    when a worker fails for good."""
    run_jobs([Job(label, task, config, folder)], scaling=scaling)


def run_jobs(jobs: Sequence[Job], *, scaling: ScalingConfig) -> dict[str, float]:
    """Run jobs one after another in one launch of the group, and wait; seconds by label, the start of the group in the first.

    A launch loads PyTorch into each of seven processes, so jobs that follow each other share one. With `scaling.num_workers` 0
    they run in this process. Raises TrainingError when a worker fails for good; what was published by then stays.
    """
    with started_group(jobs[0].folder.parent, scaling) as launch:
        return launch(jobs)


@contextmanager
def started_group(shared: Path, scaling: ScalingConfig) -> Iterator[Launch]:
    """A group that starts now, so that its processes load while the caller makes what they will work on. The jobs are given
    once, inside the block, and run as by `run_jobs`; when it ends without any, or fails, the workers go home. The block's end waits
    for the end of the group, which takes some seconds after the last job.

    `shared`: a folder that all workers see, for the jobs and for Ray's own bookkeeping; both are gone afterwards.
    """
    if scaling.num_workers == 0:
        yield _run_here
        return
    launch = _RayLaunch(shared / ".ray_train", scaling)
    launch.start()

    def run(jobs: Sequence[Job]) -> dict[str, float]:
        launch.give(jobs)
        with _clean(jobs), progress_bar(jobs) as seconds:
            while launch.is_alive() and not all(job.done() for job in jobs):
                launch.join(LOOK_S)
            launch.raise_for(jobs)
        return seconds

    try:
        yield run
        if not launch.given:
            launch.give([])
        launch.join()
    finally:  # where the block failed nobody waits for workers that still start: they find the folder gone
        shutil.rmtree(launch.storage, ignore_errors=True)


def _run_here(jobs: Sequence[Job]) -> dict[str, float]:
    with _clean(jobs), progress_bar(jobs) as seconds:
        _in_order(jobs)
    return seconds


def _in_order(jobs: Sequence[Job]) -> None:
    """What every worker does with its jobs. A group that starts again goes on with the first that is not done."""
    for job in jobs:
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


@contextmanager
def _clean(jobs: Sequence[Job]) -> Iterator[None]:
    """Without what other launches left for people to see, and without what this one did when it ends well."""
    for job in jobs:
        _clear(job.folder)
    yield
    for job in jobs:
        _clear(job.folder)


def _clear(folder: Path) -> None:
    for file in (*folder.glob("progress-*.json"), folder / FAILURE):
        file.unlink(missing_ok=True)


class _RayLaunch(threading.Thread):
    """One launch on Ray, in a thread of its own: Ray Train's `fit` returns when all is over. Until they are given their jobs, in a
    file, the workers wait."""

    def __init__(self, storage: Path, scaling: ScalingConfig) -> None:
        import ray.train.torch  # noqa: F401 - here, for two threads that import at once may see modules half made

        super().__init__(daemon=True)
        # Ray Train's watcher for announced preemptions asks for a checkpoint that no task here needs: each resumes from its
        # folder. Its process costs as much as loading PyTorch does, just when the workers begin.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        self.storage, self.scaling = storage.resolve(), scaling
        self.jobs_file = self.storage / uuid.uuid4().hex[:8] / "jobs"
        self.jobs_file.parent.mkdir(parents=True)
        self.error: Exception | None = None
        self.given = False

    def give(self, jobs: Sequence[Job]) -> None:
        """Tell the workers what to do; nothing more when there are no jobs."""
        from ray import cloudpickle

        with written_aside(self.jobs_file) as aside:
            aside.write_bytes(cloudpickle.dumps(list(jobs)))
        self.given = True

    def run(self) -> None:
        """The thread: launch, and launch anew where Ray lost a node meanwhile."""
        left = self.scaling.max_failures
        try:
            while True:
                try:
                    _trainer(self.jobs_file, self.storage, self.scaling).fit()
                    return
                except Exception as error:
                    if not left or not _lost_node(error):
                        raise
                    left -= 1
        except Exception as error:  # Ray wraps whatever a worker raised in types that differ between versions
            self.error = error

    def raise_for(self, jobs: Sequence[Job]) -> None:
        """Raise TrainingError where the launch failed, which is put down to the first job that is not done."""
        failed = next((job for job in jobs if not job.done()), None)
        if self.error is None or failed is None:
            return
        write_text(failed.folder / FAILURE, f"{self.error}\n")
        reason = (str(self.error).strip() or type(self.error).__name__).splitlines()[-1]
        raise TrainingError(
            f"{failed.task.__module__}.{failed.task.__name__} failed on {self.scaling.num_workers} workers: {reason} "
            f"(more in {failed.folder / FAILURE})"
        ) from self.error


def _ordered(config: dict[str, Any]) -> None:
    """What every worker does in a launch: wait for the jobs, then do them; go home when their folder is gone."""
    from ray import cloudpickle

    file = Path(config["jobs"])
    while not file.exists():
        if not file.parent.is_dir():
            return
        time.sleep(ASK_S)
    _in_order(cloudpickle.loads(file.read_bytes()))


def _trainer(jobs_file: Path, storage: Path, scaling: ScalingConfig) -> Any:
    from ray.train import FailureConfig, RunConfig
    from ray.train import ScalingConfig as RayScaling
    from ray.train.torch import TorchConfig, TorchTrainer

    return TorchTrainer(
        _ordered,
        train_loop_config={"jobs": str(jobs_file)},
        torch_config=TorchConfig(backend="gloo", timeout_s=WAIT_S),
        scaling_config=RayScaling(
            num_workers=scaling.num_workers,
            resources_per_worker={"CPU": scaling.cpus_per_worker},
            placement_strategy=scaling.placement.upper(),  # both give way where nodes are full or gone
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex[:8],
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=scaling.max_failures),
        ),
    )


def _lost_node(error: Exception) -> bool:
    """Whether Ray Train itself lost an actor, as when a node dies while workers start: it starts anew after a worker's
    failure only."""
    from ray.exceptions import RayError

    return isinstance(getattr(error, "controller_failure", None), RayError)
