"""The thread pool: order, hung work, recovery, shedding. Real threads, a real event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import serving.workers as module
from serving.deadline import Deadline
from serving.workers import OverloadedError, StuckError, Workers


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pauses of minutes' worth of trouble, in milliseconds."""
    monkeypatch.setattr(module, "STUCK_S", 0.05)
    monkeypatch.setattr(module, "PAUSE_S", (0.05, 0.2))


@pytest.fixture
def pool() -> Iterator[Callable[..., Workers]]:
    made: list[Workers] = []

    def make(threads: int = 2, most_waiting: int = 10, patience_s: float = 0.0) -> Workers:
        made.append(Workers(threads, name="test", most_waiting=most_waiting, patience_s=patience_s))
        return made[-1]

    yield make
    for workers in made:
        workers.close()


def test_results_and_errors_come_back(pool: Callable[..., Workers]) -> None:
    async def ask() -> None:
        workers = pool()
        assert await workers.submit(lambda: 7, Deadline(1000)) == 7
        with pytest.raises(ZeroDivisionError):
            await workers.submit(lambda: 1 // 0, Deadline(1000))

    asyncio.run(ask())


def test_with_patience_one_job_runs_at_a_time_and_another_beside_one_that_hangs(pool: Callable[..., Workers]) -> None:
    async def most_at_once(workers: Workers) -> int:
        lock, running, most = threading.Lock(), 0, 0

        def job() -> None:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.002)
            with lock:
                running -= 1

        await asyncio.gather(*(workers.submit(job, Deadline(10_000)) for _ in range(10)))
        return most

    async def ask() -> None:
        assert await most_at_once(pool()) == 2
        assert await most_at_once(pool(patience_s=30.0)) == 1
        workers, gate = pool(patience_s=0.02), threading.Event()
        hung = workers.submit(gate.wait, Deadline(10_000))
        assert await workers.submit(lambda: "beside it", Deadline(10_000)) == "beside it"
        assert not hung.done()
        gate.set()
        await hung

    asyncio.run(ask())


def test_work_nobody_waits_for_is_never_begun(pool: Callable[..., Workers]) -> None:
    async def ask() -> None:
        workers, gate, begun = pool(threads=1), threading.Event(), []
        blocked = workers.submit(gate.wait, Deadline(5000))
        cancelled, late = Deadline(5000), Deadline(20)
        workers.submit(lambda: begun.append("cancelled"), cancelled)
        workers.submit(lambda: begun.append("late"), late)
        cancelled.cancel()
        await asyncio.sleep(0.03)
        gate.set()
        await blocked
        assert await workers.submit(lambda: "alive", Deadline(1000)) == "alive"
        assert begun == []

    asyncio.run(ask())


@pytest.mark.usefixtures("quick")
def test_threads_that_hang_are_replaced_and_others_refused_meanwhile(pool: Callable[..., Workers]) -> None:
    async def ask() -> None:
        workers, gate = pool(threads=2), threading.Event()
        for _ in range(2):
            workers.submit(gate.wait, Deadline(20))
        await asyncio.sleep(0.03)
        with pytest.raises(StuckError):  # both are over their deadline: at once, not after this one's
            workers.submit(lambda: 1, Deadline(1000))
        assert await until_taken(workers, lambda: "well") == "well"
        assert workers.lost == 2
        gate.set()
        while workers.lost:
            await asyncio.sleep(0.005)
        assert await workers.submit(lambda: "still", Deadline(1000)) == "still"

    asyncio.run(asyncio.wait_for(ask(), 10))


@pytest.mark.usefixtures("quick")
def test_a_thread_in_a_lost_ones_place_proves_itself_on_work_nobody_waits_for(pool: Callable[..., Workers]) -> None:
    async def ask() -> None:
        workers, gate = pool(threads=2), threading.Event()
        begun: list[float] = []

        def hang() -> bool:
            begun.append(time.monotonic())
            return gate.wait()

        for _ in range(2):
            workers.submit(hang, Deadline(20))
        await asyncio.sleep(0.03)
        while len(begun) < 4:  # two more were tried out, though every caller was refused at once
            with pytest.raises(StuckError):
                workers.submit(hang, Deadline(20))
            await asyncio.sleep(0.005)
        gate.set()
        assert await until_taken(workers, lambda: "well") == "well"

    asyncio.run(asyncio.wait_for(ask(), 10))


@pytest.mark.usefixtures("quick")
def test_a_hang_that_lasts_costs_few_threads(pool: Callable[..., Workers], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_LOST", 3)

    async def ask() -> None:
        workers, gate = pool(threads=1), threading.Event()
        refused = 0
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            try:
                workers.submit(gate.wait, Deadline(5))
            except StuckError:
                refused += 1
            await asyncio.sleep(0.005)
        assert workers.lost == 3
        assert not workers.healthy()
        assert refused > 100
        gate.set()

    asyncio.run(ask())


def test_more_work_than_time_is_shed(pool: Callable[..., Workers]) -> None:
    async def ask() -> None:
        workers = pool(threads=1, most_waiting=4)
        for _ in range(60):  # so that the pool knows how long a job takes
            await workers.submit(lambda: time.sleep(0.005), Deadline(1000))
        gate, begun = threading.Event(), threading.Event()
        workers.submit(lambda: (begun.set(), gate.wait()), Deadline(1000))
        begun.wait(1)
        waiting = [workers.submit(lambda: None, Deadline(1000)) for _ in range(3)]
        with pytest.raises(OverloadedError):  # three jobs of about 5 ms come first
            workers.submit(lambda: None, Deadline(2))
        waiting.append(workers.submit(lambda: None, Deadline(1000)))
        with pytest.raises(OverloadedError):  # four are waiting
            workers.submit(lambda: None, Deadline(1000))
        gate.set()
        await asyncio.gather(*waiting)

    asyncio.run(ask())


async def until_taken(workers: Workers, call: Callable[[], str]) -> str:
    while True:
        try:
            return await workers.submit(call, Deadline(1000))
        except StuckError:
            await asyncio.sleep(0.005)
