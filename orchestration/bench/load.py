"""Open-loop load: requests start by the clock, whatever became of those before, and are timed from when they were due."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from degre_prod.errors import ConstraintError, ServiceError
from serving.client import AsyncRerankClient
from serving.protocol import RerankRequest
from serving.validation import validate

GRACE_MS = 1000.0
CLOSE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One request: which one, when it was due (time.monotonic), how much later it was sent, how long from `due` to its
    answer, and what came."""

    request: int
    due: float
    late_ms: float
    took_ms: float
    answered: bool
    valid: bool
    source: str
    bundle: str
    degraded: tuple[str, ...]
    ids: tuple[int | str, ...]


class Load:
    """Sends `requests` in turn from the `first` on, `rate` a second, inside its block.

    The client tries once more when the connection is lost, as it always does.
    """

    def __init__(self, url: str, requests: Sequence[RerankRequest], rate: float, first: int = 0) -> None:
        self._url, self._requests, self._rate, self._first = url, requests, rate, first
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load", daemon=True)
        self.samples: list[Sample] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Send no more and wait for what is under way."""
        self._stop.set()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            raise ServiceError(f"requests were still under way {CLOSE_SECONDS:.0f} s after the load had stopped")

    async def _run(self) -> None:
        asked: set[asyncio.Task[None]] = set()
        start, sent = time.monotonic(), 0
        async with AsyncRerankClient(self._url, grace_ms=GRACE_MS) as client:
            while not self._stop.is_set():
                due = start + sent / self._rate
                if (wait := due - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                task = asyncio.create_task(self._ask(client, (self._first + sent) % len(self._requests), due))
                asked.add(task)
                task.add_done_callback(asked.discard)
                sent += 1
            await asyncio.gather(*asked)

    async def _ask(self, client: AsyncRerankClient, index: int, due: float) -> None:
        request = self._requests[index]
        late_ms = (time.monotonic() - due) * 1000
        answer = await client.rerank(request)
        took_ms = (time.monotonic() - due) * 1000
        ids = answer.ids()
        try:
            validate(ids, [c.id for c in request.candidates], len(ids))
            valid = bool(ids)
        except ConstraintError:
            valid = False
        self.samples.append(
            Sample(
                index,
                due,
                late_ms,
                took_ms,
                answer.source != "client_fallback",
                valid,
                answer.source,
                answer.bundle,
                tuple(answer.degraded),
                tuple(ids),
            )
        )


def reasons(samples: Iterable[Sample]) -> Counter[str]:
    """How often each reason was given, its count (`unknown_items:3`) cut off."""
    return Counter(reason.partition(":")[0] for s in samples for reason in s.degraded)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")
