"""Seeds side by side: the same work is done whatever the number of processes, and an error is not lost."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestration.bench.quality_jobs import Say, run_side_by_side


@dataclass(frozen=True)
class Errand:
    folder: Path
    seed: int


def run_errand(errand: Errand, say: Say) -> None:
    say(f"seed {errand.seed}: think")
    if errand.seed == 9:
        raise ValueError("nine is too much")
    say(f"seed {errand.seed}: write")
    (errand.folder / str(errand.seed)).write_text(str(os.getpid()))


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_seed_is_done_in_as_many_processes_as_asked_for(tmp_path: Path, jobs: int) -> None:
    run_side_by_side(run_errand, [Errand(tmp_path, seed) for seed in range(3)], jobs=jobs, steps=2)
    processes = {file.read_text() for file in tmp_path.iterdir()}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0", "1", "2"]
    assert (str(os.getpid()) in processes) is (jobs == 1)
    assert len(processes) <= jobs
    with pytest.raises(ValueError, match="nine"):
        run_side_by_side(run_errand, [Errand(tmp_path, 9)], jobs=jobs, steps=2)
