"""A few daemon threads that run requests, and outlive work that never ends.

Python cannot stop a thread. So a job that overstays its deadline by far is given up together with its thread, and another
thread takes its place: one at a time, with growing pauses, for it may be lost just the same. While every thread is stuck
new jobs are refused at once (`StuckError`), so that their requests get a fallback without waiting; one of them is run
all the same now and then, its result wanted by nobody, to see whether work ends again. More work than can be
done in time is refused too (`OverloadedError`), before it has cost its deadline.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from serving.deadline import Deadline

STUCK_S = 1.0  # beyond its deadline a job is given up
PAUSE_S = (0.5, 2.0)  # first and longest pause before the next thread is tried
MOST_LOST = 256  # given-up threads a process may hold; with more it should be replaced
SMOOTHING = 0.05  # weight of the newest job in the mean service time

Result = TypeVar("Result")


class StuckError(Exception):
    """Every thread is held by work that is over its deadline."""


class OverloadedError(Exception):
    """The work before this one takes longer than its deadline allows, or too much of it waits."""


@dataclass(eq=False, slots=True)
class _Job:
    call: Callable[[], Any]
    deadline: Deadline
    future: asyncio.Future[Any] | None
    loop: asyncio.AbstractEventLoop | None


@dataclass(eq=False, slots=True)
class _Worker:
    """`job` is what it runs, since `began` (monotonic seconds); `lost` tells it to end should it ever come back; `proved`: in
    the place of a lost one, it has ended a job."""

    proved: bool
    job: _Job | None = None
    began: float = 0.0
    lost: bool = False


class Workers:
    """`submit` from the event loop's thread, `post` from any. Jobs run in order of arrival.

    With `patience_s` one job runs at a time, and another beside it only when it has taken longer than that: jobs that share
    the interpreter's lock are all done late together instead of one after the other.
    """

    def __init__(self, threads: int, *, name: str, most_waiting: int, patience_s: float = 0.0) -> None:
        self._threads, self._name, self._most_waiting = threads, name, most_waiting
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._workers: list[_Worker] = []
        self._lost = 0
        self._mean_s = 0.0
        self._pause_s = PAUSE_S[0]
        self._next_start = -float("inf")
        self._closing = False
        with self._changed:
            for _ in range(threads):
                self._start(_Worker(proved=True))

    def submit(self, call: Callable[[], Result], deadline: Deadline) -> asyncio.Future[Result]:
        """Run `call` in a thread; cancel the future when its result is not wanted any more.

        Raises StuckError, OverloadedError.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._add(_Job(call, deadline, future, loop))
        return future

    def post(self, call: Callable[[], object], deadline: Deadline) -> bool:
        """Run `call` when there is time, its result and errors ignored; False when it was refused."""
        try:
            self._add(_Job(call, deadline, None, None))
        except (StuckError, OverloadedError):
            return False
        return True

    @property
    def lost(self) -> int:
        """Threads given up and not come back."""
        return self._lost

    @property
    def waiting(self) -> int:
        """Jobs that no thread has taken yet."""
        return len(self._waiting)

    def healthy(self) -> bool:
        """False once so many threads are lost that the process should be replaced."""
        return self._lost < MOST_LOST

    def close(self) -> None:
        """Take no more work; threads end with the job they run."""
        with self._changed:
            self._closing = True
            self._waiting.clear()
            self._changed.notify_all()

    def _add(self, job: _Job) -> None:
        with self._changed:
            self._tend()
            while self._waiting and not _wanted(self._waiting[0]):
                self._waiting.popleft()
            if self._closing or not any(_may_end(worker) for worker in self._workers):
                self._try_out(job)
                raise StuckError
            ahead = len(self._waiting)
            at_once = 1 if self._patience_s else len(self._workers)
            late = ahead * self._mean_s / at_once > job.deadline.left_s()
            if ahead >= self._most_waiting or (ahead and late):
                raise OverloadedError
            self._waiting.append(job)
            self._changed.notify()

    def _try_out(self, job: _Job) -> None:
        """Let a thread that has not proved itself run the job of a request that does not wait for it."""
        if not self._closing and not self._waiting and any(worker.job is None for worker in self._workers):
            self._waiting.append(_Job(job.call, job.deadline, None, None))
            self._changed.notify()

    def _tend(self) -> None:
        """Give up stuck threads, start another when it is time."""
        for worker in [w for w in self._workers if w.job is not None and w.job.deadline.left_s() < -STUCK_S]:
            worker.lost = True
            self._workers.remove(worker)
            self._lost += 1
            if not worker.proved:  # the replacement got stuck, too
                self._pause_s = min(self._pause_s * 2, PAUSE_S[1])
            self._next_start = max(self._next_start, time.monotonic() + self._pause_s)
        if len(self._workers) < self._threads and time.monotonic() >= self._next_start and self.healthy():
            self._start(_Worker(proved=False))
            self._next_start = time.monotonic() + self._pause_s

    def _start(self, worker: _Worker) -> None:
        self._workers.append(worker)
        # A daemon: the process must be able to end while one hangs.
        threading.Thread(target=self._run, args=(worker,), name=self._name, daemon=True).start()

    def _run(self, worker: _Worker) -> None:
        while (job := self._next(worker)) is not None:
            started = time.perf_counter()
            try:
                result, error = job.call(), None
            except Exception as raised:  # handed to whoever waits for the result
                result, error = None, raised
            took_s = time.perf_counter() - started
            with self._changed:
                worker.job = None
                if worker.lost:
                    self._lost -= 1
                    return
                worker.proved = True
                self._pause_s = PAUSE_S[0]
                self._mean_s += SMOOTHING * (took_s - self._mean_s)
            if job.loop is not None and job.future is not None:
                _tell(job.loop, job.future, result, error)

    def _next(self, worker: _Worker) -> _Job | None:
        with self._changed:
            while not self._closing:
                pause_s = self._until_free()
                while self._waiting and pause_s is None:
                    job = self._waiting.popleft()
                    if _wanted(job):
                        worker.job, worker.began = job, time.monotonic()
                        return job
                self._changed.wait(pause_s if self._waiting else None)
            return None

    def _until_free(self) -> float | None:
        """Seconds until the job that was begun last has had its time; None when none is in the way."""
        latest = max((worker.began for worker in self._workers if worker.job is not None), default=-float("inf"))
        left_s = latest + self._patience_s - time.monotonic()
        return left_s if left_s > 0 else None


def _wanted(job: _Job) -> bool:
    return not job.deadline.cancelled and job.deadline.left_s() > 0


def _may_end(worker: _Worker) -> bool:
    return worker.proved and (worker.job is None or worker.job.deadline.left_s() > 0)


def _tell(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], result: object, error: Exception | None
) -> None:
    def settle() -> None:
        if future.done():  # cancelled: nobody waits
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    try:
        loop.call_soon_threadsafe(settle)
    except RuntimeError:  # the loop has ended meanwhile, and nobody waits
        return
