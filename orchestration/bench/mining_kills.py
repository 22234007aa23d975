"""`degre bench mining --kills N`: mining killed at random moments and started again gives the files of an unkilled run.

One job after the other is mined through the worker group of `degre mine`, by a driver process of its own; at a random moment
a worker or the whole driver gets SIGKILL. A worker's death is the group's to survive; a driver is started again. When a
job is done its shards are compared with those of an unkilled run, and each shard that was there at a kill must still be that
file: same inode, same time of change. A job that is done before all kills were made is followed by another one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from degre_prod.artefact import file_digest, write_text
from degre_prod.config import MiningConfig, RayConfig, ScalingConfig
from degre_prod.errors import TrainingError
from degre_prod.mining.mine import mine
from degre_prod.training.group import current_worker
from degre_prod.training.launch import run_group
from orchestration.bench.mining import make_bed
from serving.cluster import ray_cluster

_PATIENCE_S = 900.0
_DRIVER = "import json, sys; from orchestration.bench.mining_kills import drive; drive(json.loads(sys.argv[1]))"


@dataclass
class Job:
    """One mining job: where it works, and the shards that were whole at some kill, as (inode, time of change)."""

    config: dict[str, Any]
    committed: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where its shards appear."""
        return Path(self.config["folder"])

    def note_committed(self) -> None:
        """Remember the shards that are whole now."""
        for file in self.folder.glob("shard-*"):
            if file.name not in self.committed:
                self.committed[file.name] = _identity(file)

    def recomputed(self) -> int:
        """How many shards that were whole at a kill are another file now."""
        return sum(_identity(self.folder / name) != before for name, before in self.committed.items())


def bench_kills(
    folder: Path,
    kills: int,
    *,
    workers: int = 2,
    requests: int = 2000,
    shard_size: int = 20,
    size: str = "small",
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Kill `kills` times and return what was found; works in `folder` (new or empty).

    `workers`: of the Ray Train group; 0 mines in the driver's own process, and every kill is the driver's. Raises
    TrainingError when mining does not get on.
    """
    bed = make_bed(folder / "bed", requests, size=size)
    mining = MiningConfig(requests=requests, shard_size=shard_size)
    settings = {"encoded": str(bed.folder), "evaluator": str(bed.folder / "products"), "mining": mining.model_dump()}
    with ray_cluster(RayConfig()) if workers else nullcontext():
        scaling = {"scaling": ScalingConfig(num_workers=workers).model_dump(), "address": _address(workers)}
        say("unkilled")
        whole = Job(settings | {"folder": str(folder / "whole")})
        started = time.monotonic()
        _finish(_start(whole, scaling))
        seconds = time.monotonic() - started
        wanted = _digests(whole.folder)
        random = np.random.default_rng(seed)
        done: list[str] = []
        jobs: list[Job] = []
        while len(done) < kills:
            job = Job(settings | {"folder": str(folder / f"killed-{len(jobs)}")})
            jobs.append(job)
            done += _kill_through(job, scaling, kills - len(done), workers, random, say)
    shards = len(wanted)
    return {
        "kills": len(done),
        "of_a_worker": done.count("worker"),
        "of_the_driver": done.count("driver"),
        "workers": workers,
        "jobs": len(jobs),
        "shards_a_job": shards,
        "unkilled_seconds": seconds,
        "shards_whole_at_a_kill": sum(len(job.committed) for job in jobs),
        "shards_recomputed": sum(job.recomputed() for job in jobs),
        "files_equal": all(_digests(job.folder) == wanted for job in jobs),
    }


def _kill_through(
    job: Job, scaling: dict[str, Any], kills: int, workers: int, random: np.random.Generator, say: Callable[[str], None]
) -> list[str]:
    """Kill the job up to `kills` times while it runs, then let it finish; what was killed each time."""
    done: list[str] = []
    driver = _start(job, scaling)
    since = 0
    while len(done) < kills:
        pids = _await_workers(job.folder, driver, max(workers, 1), since)
        if pids is None:
            break  # finished first
        time.sleep(random.uniform(0.0, 2.0))
        if driver.poll() is not None:
            break
        victim = "worker" if workers and random.random() < 0.5 else "driver"
        say(f"{job.folder.name}: a {victim}")
        with suppress(ProcessLookupError):
            os.kill(int(random.choice(pids)) if victim == "worker" else driver.pid, signal.SIGKILL)
        done.append(victim)
        since = time.time_ns()
        if victim == "driver":
            driver.wait()
            _await_gone(pids)
            job.note_committed()
            driver = _start(job, scaling)
        else:
            job.note_committed()
    _finish(driver)
    return done


def drive(config: dict[str, Any]) -> None:
    """The driver process: mine through the worker group, on the cluster at `address` when there is one."""
    scaling, address = ScalingConfig(**config.pop("scaling")), config.pop("address")
    folder = Path(config["folder"])
    with ray_cluster(RayConfig(address=address)) if address else nullcontext():
        run_group(mine_leaving_pid, config, folder=folder, scaling=scaling, label="bench kills")


def mine_leaving_pid(config: dict[str, Any]) -> None:
    """`mine`, with this worker's process id beside the shards."""
    write_text(Path(config["folder"]) / f"pid-{current_worker().rank}", str(os.getpid()))
    mine(config)


def _start(job: Job, scaling: dict[str, Any]) -> subprocess.Popen[bytes]:
    job.folder.mkdir(exist_ok=True)
    config = json.dumps(job.config | scaling)
    with (job.folder / "driver.log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-c", _DRIVER, config], stdout=log, stderr=log)


def _finish(driver: subprocess.Popen[bytes]) -> None:
    try:
        driver.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        driver.kill()
        driver.wait()
    if driver.returncode != 0:
        raise TrainingError(f"the mining driver ended with {driver.returncode}; its driver.log says why")


def _await_workers(folder: Path, driver: subprocess.Popen[bytes], count: int, since_ns: int) -> list[int] | None:
    """Process ids of all workers that began after `since_ns`; None when the driver ended first."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        fresh = [file for file in folder.glob("pid-*") if file.stat().st_mtime_ns > since_ns]
        if len(fresh) == count:
            return [int(file.read_text()) for file in fresh]
        if driver.poll() is not None:
            return None
        time.sleep(0.02)
    raise TrainingError(f"{count} mining workers did not start within {_PATIENCE_S:g} s; {folder}/driver.log says why")


def _await_gone(pids: list[int]) -> None:
    """Ray ends the workers of a driver that died; until they are gone they may still finish a shard."""
    deadline = time.monotonic() + _PATIENCE_S
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            raise TrainingError(f"workers {pids} outlived their driver by {_PATIENCE_S:g} s")
        time.sleep(0.05)


def _address(workers: int) -> str | None:
    if not workers:
        return None
    import ray

    return str(ray.get_runtime_context().gcs_address)


def _identity(file: Path) -> tuple[int, int]:
    try:
        state = file.stat()
    except FileNotFoundError:
        return (-1, -1)
    return state.st_ino, state.st_mtime_ns


def _digests(folder: Path) -> dict[str, str]:
    return {file.name: file_digest(file) for file in sorted(folder.glob("shard-*"))}
