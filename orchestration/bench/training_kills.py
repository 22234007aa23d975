"""Killing a worker of the Ray Train group: the group survives it, goes on at the last whole epoch, learns the same."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from degre_prod.artefact import file_digest, write_text
from degre_prod.config import EvaluatorConfig, RayConfig, ScalingConfig
from degre_prod.training.group import current_worker
from degre_prod.training.launch import run_group
from orchestration.bench.mining import make_bed
from serving.cluster import ray_cluster

WEIGHTS = "evaluator.safetensors"
Kill = tuple[int, float, dict[str, tuple[int, int]]]  # rank, seconds until then, and what was finished then
_SIZES = {"prefix_state": "additive", "epochs": 6, "min_steps": 60, "togo_steps": 40, "batch_size": 128}


def kill_training(
    folder: Path, kills: int, workers: int, random: np.random.Generator, say: Callable[[str], None]
) -> dict[str, Any]:
    """Train an evaluator `kills` times, each time killing one worker at a random moment; compare the weights' bytes.

    `resumed`: no network that had been finished before a kill was trained again.
    """
    bed = make_bed(folder / "bed", 3000, size="small")
    with ray_cluster(RayConfig()):
        wanted = _train(bed.folder, folder / "whole", workers, None)
        seconds = _seconds(folder / "whole")
        same = resumed = True
        done = finished = 0
        for n in range(4 * kills):  # one that was done before its worker died is no kill
            if done == kills:
                break
            delay, rank = float(random.uniform(0, seconds)), int(random.integers(workers))
            place = folder / f"killed-{n}"
            there: dict[str, tuple[int, int]] = {}
            found = _train(bed.folder, place, workers, (rank, delay, there))
            if (place / "killed").exists():
                done, finished = done + 1, finished + len(there)
                same = same and found == wanted
                resumed = resumed and all(_state(place / name) == state for name, state in there.items())
                say(f"training: worker {rank} after {delay:.1f} s, {len(there)} networks were done")
    return {
        "kills": done,
        "same": same and done == kills,
        "resumed": resumed,
        "networks_done_at_a_kill": finished,
        "weights_sha256": wanted,
        "unkilled_seconds": seconds,
    }


def _train(encoded: Path, folder: Path, workers: int, kill: Kill | None) -> str:
    folder.mkdir()
    settings = EvaluatorConfig(**_SIZES).model_dump()
    config = {"encoded": str(encoded.absolute()), "folder": str(folder.absolute()), "evaluator": settings}
    stop = threading.Event()
    killer = threading.Thread(target=_kill, args=(folder, kill, stop))
    killer.start()
    try:
        scaling = ScalingConfig(num_workers=workers, max_failures=2)
        run_group(train_leaving_pid, config, folder=folder, scaling=scaling, label="training kills")
    finally:
        stop.set()
        killer.join()
    return file_digest(folder / WEIGHTS)


def train_leaving_pid(config: dict[str, Any]) -> None:
    """`train_evaluator`, with this worker's process id beside the weights."""
    from degre_prod.training.evaluator import train_evaluator

    write_text(Path(config["folder"]) / f"pid-{current_worker().rank}", str(os.getpid()))
    train_evaluator(config)


def _kill(folder: Path, kill: Kill | None, stop: threading.Event) -> None:
    if kill is None:
        return
    rank, delay_s, there = kill
    while not (folder / f"pid-{rank}").exists():
        if stop.wait(0.02):
            return
    if not stop.wait(delay_s):
        with suppress(ProcessLookupError):
            os.kill(int((folder / f"pid-{rank}").read_text()), signal.SIGKILL)
            (folder / "killed").touch()
        checkpoints = sorted(folder.glob("*.pt"), key=lambda file: file.stat().st_mtime_ns)
        there.update({file.name: _state(file) for file in checkpoints[:-1]})  # the last one may be under way


def _seconds(folder: Path) -> float:
    """From the first worker's start to the weights."""
    return (folder / WEIGHTS).stat().st_mtime - (folder / "pid-0").stat().st_mtime


def _state(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_ino, status.st_mtime_ns
