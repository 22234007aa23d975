"""The seeds of a benchmark, one after the other or side by side, under one progress bar."""

from __future__ import annotations

import multiprocessing
import queue
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from functools import partial
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from degre_prod.training.memory import keep_freed_memory

T = TypeVar("T")
Say = Callable[[str], None]
Work = Callable[
    [T, Say], None
]  # a module-level function: it does everything of one seed, naming each step as it begins

_words: Any = None  # in a process of the pool: where its steps are told


def run_side_by_side(work: Work[T], seeds: Sequence[T], *, jobs: int, steps: int) -> None:
    """Run `work` for every seed, in `jobs` processes of one thread each; one job runs in this process.

    `steps`: how often a seed says what it begins. The first error is raised when the seeds under way are done.
    """
    with _Bar(len(seeds) * steps, jobs) as bar:
        if jobs == 1:
            for index, seed in enumerate(seeds):
                work(seed, partial(bar.say, index))
            return
        context = multiprocessing.get_context("spawn")
        words = context.Queue()
        with ProcessPoolExecutor(min(jobs, len(seeds)), context, _begin, (words,)) as pool:
            running = {pool.submit(_work, work, index, seed) for index, seed in enumerate(seeds)}
            while running:
                done, running = wait(running, timeout=0.2)
                bar.hear(words)
                for seed_done in done:
                    error = seed_done.exception()
                    if error is not None:
                        pool.shutdown(cancel_futures=True)
                        raise error


def _begin(words: Any) -> None:
    global _words
    _words = words
    torch.set_num_threads(1)
    keep_freed_memory()


def _work(work: Work[T], index: int, seed: T) -> None:
    work(seed, lambda label: _words.put((index, label)))


class _Bar:
    """A bar on stderr that names the steps under way."""

    def __init__(self, total: int, jobs: int) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
        self._task = self._bar.add_task("quality", total=total)
        self._at: dict[int, str] = {}
        self._begun = 0
        self._jobs = jobs

    def say(self, index: int, label: str) -> None:
        """A seed begins its next step."""
        self._at.pop(index, None)
        self._at[index] = label
        last = sorted(list(self._at)[-self._jobs :])
        self._bar.update(self._task, completed=self._begun, description=" · ".join(self._at[i] for i in last))
        self._begun += 1

    def hear(self, words: Any) -> None:
        """Show what the other processes said."""
        try:
            while True:
                self.say(*words.get_nowait())
        except queue.Empty:
            pass

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
