"""Served lists and feedback on their way into Redis Streams.

Served lists go off the request path: a bounded buffer, a thread that appends in batches, drops counted when Redis stays
away longer than the buffer lasts. Feedback is acknowledged: the caller hears of success only once Redis has the record.
A batch whose reply was lost is appended again, so that readers must take a request_id or event_id once.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Any
from zlib import crc32

import redis
import structlog
from pydantic_core import to_json

from serving.clock import from_us
from serving.metrics import Metrics
from serving.preparation import Prepared
from serving.protocol import FeedbackRequest, RerankResponse
from serving.redis_client import RedisFailure, request_path_client

log = structlog.get_logger(__name__)

SHARDS = 4
BATCH = 256
GATHER_S = 0.05  # lists written together: each append of its own costs the replica more than ten in one go
RETRY_S = (0.1, 2.0)  # first and longest pause while Redis is away
CLOSE_S = 2.0


_Served = tuple[Prepared, RerankResponse, Sequence[float] | None]


def shard_key(kind: str, shard: int) -> str:
    """`degre:served:{shard}` or `degre:feedback:{shard}`."""
    return f"degre:{kind}:{shard}"


def shard_of(request_id: str) -> int:
    """The shard of a request's records: a list and its feedback share it."""
    return crc32(request_id.encode()) % SHARDS


def stream_key(kind: str, request_id: str) -> str:
    """The stream of a request's records."""
    return shard_key(kind, shard_of(request_id))


def added_key(kind: str, shard: int) -> str:
    """How many records were ever appended to a stream, counted with the append: what is missing later was lost."""
    return f"degre:added:{kind}:{shard}"


def served_record(
    prepared: Prepared, response: RerankResponse, propensity: Sequence[float] | None = None
) -> dict[str, Any]:
    """One served list in the columns of the impression log, as a JSON document; `propensity` of each shown item."""
    request = prepared.request
    return {
        "request_id": request.request_id,
        "event_timestamp": from_us(request.event_timestamp_us).isoformat(),
        "user_id": request.user_id,
        "context": dict(request.context),
        "candidate_ids": list(request.candidate_ids),
        "upstream_scores": dict(request.scores),
        "candidate_features": dict(request.candidate_features),
        "recent_events": [
            {"item_id": e.item_id, "type": e.type, "timestamp": from_us(e.timestamp_us).isoformat()}
            for e in request.recent_events
        ],
        "shown_ids": response.ids(),
        "bundle": response.bundle,
        "arm": response.arm,
        "exposure": prepared.exposure,
        "took_ms": response.timings_ms.get("total"),
        "source": response.source,
        "degraded": response.degraded,
        "constraints": prepared.own.model_dump_json(exclude_defaults=True) if prepared.own else None,
        "propensity": propensity,
        "list_propensity": None if propensity is None else math.prod(propensity),
    }


class ServedLog:
    """`append` never blocks and never fails; a thread of its own writes."""

    def __init__(self, url: str, *, buffer: int, stream_max_length: int, timeout_ms: float, metrics: Metrics) -> None:
        self._redis: redis.Redis = request_path_client(url, timeout_ms)
        self._buffer, self._max_length, self._metrics = buffer, stream_max_length, metrics
        self._waiting: deque[_Served] = deque()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="served-log", daemon=True)
        self._thread.start()

    def append(self, prepared: Prepared, response: RerankResponse, propensity: Sequence[float] | None = None) -> None:
        """Queue a served list, or drop and count it when the buffer is full or nobody writes any more."""
        with self._changed:
            if self._closed or len(self._waiting) >= self._buffer:
                self._metrics.served_log("dropped")
                return
            self._waiting.append((prepared, response, propensity))
            self._changed.notify()

    @property
    def waiting(self) -> int:
        """Lists that are not in Redis yet."""
        return len(self._waiting)

    def close(self) -> None:
        """Write what is left if Redis takes it within CLOSE_S; count the rest as dropped."""
        self._closing.set()
        with self._changed:
            self._changed.notify()
        self._thread.join(CLOSE_S)
        with self._changed:
            self._closed = True  # a write that is under way still counts as dropped: nobody will hear how it ended
            if self._waiting:
                self._metrics.served_log("dropped", len(self._waiting))
        self._redis.close()

    def _run(self) -> None:
        pause_s = RETRY_S[0]
        while True:
            with self._changed:
                while not self._waiting and not self._closing.is_set():
                    self._changed.wait()
            self._closing.wait(GATHER_S)
            with self._changed:
                # Kept in the buffer until Redis has them.
                batch = list(islice(self._waiting, BATCH))
            if not batch:
                return
            try:
                unfit = self._write(batch)
            except RedisFailure:
                self._metrics.served_log("failed", len(batch))
                if self._closing.is_set():
                    return
                self._closing.wait(pause_s)
                pause_s = min(pause_s * 2, RETRY_S[1])
                continue
            pause_s = RETRY_S[0]
            with self._changed:
                if self._closed:
                    return
                for _ in batch:
                    self._waiting.popleft()
            self._metrics.served_log("written", len(batch) - unfit)
            if unfit:
                self._metrics.served_log("dropped", unfit)

    def _write(self, batch: list[_Served]) -> int:
        """Append a batch, all of it or nothing; returns how many of it cannot be written at all."""
        pipeline = self._redis.pipeline(transaction=True)
        unfit = 0
        for prepared, response, propensity in batch:
            try:
                # A seventh of the time of the standard library's, in a process short of it.
                text = to_json(served_record(prepared, response, propensity))
            except Exception:  # one record must not stop the log
                log.exception("served list cannot be written", request_id=response.request_id)
                unfit += 1
                continue
            _add(pipeline, "served", response.request_id, text, self._max_length)
        pipeline.execute()
        return unfit


class FeedbackLog:
    """Acknowledged appends; call it from a thread, it waits for Redis."""

    def __init__(self, url: str, *, stream_max_length: int, timeout_ms: float) -> None:
        self._redis: redis.Redis = request_path_client(url, timeout_ms)
        self._max_length = stream_max_length

    def append(self, feedback: FeedbackRequest, received_us: int) -> None:
        """Append one delivery; raises one of RedisFailure unless Redis has it."""
        record = feedback.model_dump(mode="json") | {"received_timestamp": from_us(received_us).isoformat()}
        pipeline = self._redis.pipeline(transaction=True)
        _add(pipeline, "feedback", feedback.request_id, to_json(record), self._max_length)
        pipeline.execute()

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()


def _add(pipeline: redis.client.Pipeline, kind: str, request_id: str, text: bytes, max_length: int) -> None:
    """Append one record and count it, in one transaction."""
    shard = shard_of(request_id)
    most = max(max_length // SHARDS, 1)
    pipeline.xadd(shard_key(kind, shard), {"record": text}, maxlen=most, approximate=True)
    pipeline.incr(added_key(kind, shard))
