"""The challenger in shadow: it answers a share of live requests off the response path, and only what came of it is kept:
counts, and a sample of pairs of lists, the champion's and the challenger's of the same request.

A bounded queue, one thread, a budget of processor time: a request that finds the queue full is dropped and counted. The
thread keeps its usual priority, for a niced one would hold the interpreter's lock while the requests' threads wait.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import redis
import structlog
from pydantic_core import to_json

from degre_prod.requests import Id
from serving.deadline import Deadline
from serving.engine import Engine
from serving.event_log import served_record
from serving.metrics import Metrics
from serving.preparation import Prepared
from serving.protocol import RerankResponse
from serving.redis_client import RedisFailure, request_path_client

log = structlog.get_logger(__name__)

SHADOW_KEY = "degre:shadow:"  # and the experiment: a hash of counters over all replicas
LISTS_KEPT = 512  # pairs of lists in the stream, about 10 kB each with 100 candidates
LISTS_A_FLUSH = 8  # of a replica
LISTS_KEPT_S = 3600
FLUSH_S = 0.5
CLOSE_S = 1.0
MOST_PAUSE_S = 1.0
LATENCY_MS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000, 2000, 5000, 10000)
OURS = ("generator", "cache")


def lists_key(experiment: str) -> str:
    """The stream of pairs: records of requests with the lists that both arms made, for a judge to value."""
    return f"{SHADOW_KEY}{experiment}:lists"


def drop_lists(client: redis.Redis) -> None:
    """Delete every such stream: a user is to be forgotten, and new pairs come soon enough. Raises redis errors."""
    for key in client.scan_iter(match=lists_key("*"), count=1000):
        client.delete(key)


@dataclass(frozen=True, slots=True)
class _Job:
    challenger: Engine
    experiment: str
    prepared: Prepared
    shown: Sequence[Id] | None


class Shadow:
    """`offer` never blocks and never fails. `cpu_share`: of one core, over time; `queue`: requests waiting at most."""

    def __init__(self, url: str, *, cpu_share: float, queue: int, timeout_ms: float, metrics: Metrics) -> None:
        self._open: partial[redis.Redis] = partial(request_path_client, url, timeout_ms)
        self._cpu_share, self._most, self._metrics = cpu_share, queue, metrics
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._counts: dict[str, dict[str, float]] = {}
        self._pairs: list[tuple[str, bytes]] = []  # experiment and record; of the shadow's own thread

    def offer(
        self, challenger: Engine, experiment: str, prepared: Prepared, shown: Sequence[Id], by_generator: bool
    ) -> None:
        """Ask the challenger for its list of a request that has been answered with `shown`.

        Lists are compared where the champion's generator made `shown`.
        """
        with self._changed:
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
                self._thread.start()
            if len(self._waiting) >= self._most:
                self._count(experiment, {"dropped": 1})
                self._metrics.shadow("dropped")
                return
            self._waiting.append(_Job(challenger, experiment, prepared, shown if by_generator else None))
            self._changed.notify()

    def close(self) -> None:
        """Drop what waits; what was counted is written if Redis takes it at once."""
        self._closing.set()
        with self._changed:
            self._waiting.clear()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(CLOSE_S)

    def _run(self) -> None:
        client = self._open()
        flush_at = time.monotonic() + FLUSH_S
        while not self._closing.is_set():
            job = self._next(flush_at)
            if job is not None:
                used_s = self._compute(job)
                self._closing.wait(min(used_s * (1 / self._cpu_share - 1), MOST_PAUSE_S))
            if time.monotonic() >= flush_at:
                self._flush(client)
                flush_at = time.monotonic() + FLUSH_S
        self._flush(client)
        client.close()

    def _next(self, until: float) -> _Job | None:
        with self._changed:
            if not self._waiting:
                # With nothing counted there is nothing to flush, and no reason to wake up.
                self._changed.wait(max(until - time.monotonic(), 0) if self._counts else None)
            return self._waiting.popleft() if self._waiting else None

    def _compute(self, job: _Job) -> float:
        """Answer one request and count what came of it; returns the processor time it took."""
        cpu_s, began = time.thread_time(), time.perf_counter()
        received = job.prepared.received
        deadline: Deadline = job.challenger.deadline(received, began)
        counts: dict[str, float] = {"lists": 1}
        try:
            response = job.challenger.answer(job.prepared, deadline, in_shadow=True).response
            outcome = _outcome(response.source, response.degraded, deadline)
            if outcome == "ok" and job.shown is not None:
                counts |= _agreement(job.shown, response.ids())
                if len(self._pairs) < LISTS_A_FLUSH:
                    self._pairs.append((job.experiment, _pair(job.prepared, response, job.shown)))
        except Exception as error:  # a Problem, or a bug of the bundle's: the live request was answered long ago
            log.warning("shadow failed", error=repr(error), request_id=job.prepared.request.request_id)
            outcome = "failed"
        ms = (time.perf_counter() - began) * 1000
        bucket = next((f"le_{bound}" for bound in LATENCY_MS if ms <= bound), "le_inf")
        self._count(job.experiment, counts | {outcome: 1, bucket: 1})
        self._metrics.shadow(outcome)
        return time.thread_time() - cpu_s

    def _count(self, experiment: str, counts: Mapping[str, float]) -> None:
        """Add to what the next flush writes."""
        with self._changed:
            sums = self._counts.setdefault(experiment, defaultdict(float))
            for name, value in counts.items():
                sums[name] += value

    def _flush(self, client: redis.Redis) -> None:
        with self._changed:
            taken, self._counts = self._counts, {}
        if not taken:
            return
        pairs, self._pairs = self._pairs, []
        try:
            with client.pipeline(transaction=True) as pipeline:
                for experiment, counts in taken.items():
                    for name, value in counts.items():
                        pipeline.hincrbyfloat(SHADOW_KEY + experiment, name, value)
                for experiment, text in pairs:
                    pipeline.xadd(lists_key(experiment), {"record": text}, maxlen=LISTS_KEPT, approximate=True)
                    pipeline.expire(lists_key(experiment), LISTS_KEPT_S)
                pipeline.execute()
        except RedisFailure as error:
            log.warning("shadow counts were lost", error=type(error).__name__)


def _pair(prepared: Prepared, response: RerankResponse, shown: Sequence[Id]) -> bytes:
    """The served list's record with both lists instead of one."""
    record = served_record(prepared, response)
    record["challenger_ids"] = record.pop("shown_ids")
    return to_json(record | {"champion_ids": shown})


def _outcome(source: str, degraded: Sequence[str], deadline: Deadline) -> str:
    """ok · late (past the deadline) · failed (by the model) · other: not the challenger's doing."""
    if "deadline" in degraded or deadline.left_s() <= 0:
        return "late"
    if "model_error" in degraded:
        return "failed"
    return "ok" if source in OURS else "other"


def _agreement(shown: Sequence[Id], theirs: Sequence[Id]) -> dict[str, float]:
    """`same`: equal lists; `first`: the same first item; `overlap`: share of the shown items that both have."""
    return {
        "compared": 1,
        "same": float(list(shown) == list(theirs)),
        "first": float(shown[0] == theirs[0]),
        "overlap": len(set(shown) & set(theirs)) / len(shown),
    }
