"""Result cache in Redis. One round trip on a hit; Redis down costs a timeout once and nothing else.

The key is a hash of the bundle and every model input. The feature epoch, which each materialisation increments, is
read in the same round trip and compared with the one stored in the entry, so that an entry made from older features
is never served.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import redis
from pydantic import BaseModel, StrictInt, StrictStr, ValidationError

from degre_prod.requests import Id
from serving.protocol import RerankRequest
from serving.redis_client import Breaker, RedisFailure, request_path_client

EPOCH_KEY = "degre:feature_epoch"
KEY_PREFIX = "degre:cache:"
TTL_JITTER = 0.1
# What does not change the list; everything else a request carries is a model input and belongs in the key.
_NOT_INPUTS = {"request_id", "deadline_ms", "explain", "length"}

# shared: the answer of the same request, which was being computed at that moment.
Outcome = Literal["hit", "miss", "shared", "error", "skipped"]


@dataclass(frozen=True, slots=True)
class CachedList:
    """A list and what the features it was made from lacked."""

    item_ids: list[Id]
    degraded: list[str]


@dataclass(frozen=True, slots=True)
class Lookup:
    """`epoch` is what the store held before the features were read; None when Redis could not be asked."""

    outcome: Outcome
    found: CachedList | None = None
    epoch: int | None = None


class _Entry(BaseModel):
    """What Redis holds under a key."""

    epoch: int
    items: list[StrictInt | StrictStr]
    degraded: list[str]


def cache_key(manifest_sha256: str, request: RerankRequest, length: int) -> str:
    """Redis key over the bundle, the effective length and every model input of the request."""
    inputs = request.model_dump_json(exclude=_NOT_INPUTS)
    return KEY_PREFIX + hashlib.sha256(f"{manifest_sha256}\n{length}\n{inputs}".encode()).hexdigest()


class ResultCache:
    """Reads and writes answered lists; never raises for a Redis that is away."""

    def __init__(self, url: str, *, ttl_seconds: int, timeout_ms: float, seed: int | None = None) -> None:
        self._redis: redis.Redis = request_path_client(url, timeout_ms)
        self._ttl_ms = ttl_seconds * 1000
        self._breaker = Breaker(self._redis.ping)
        self._jitter = random.Random(seed)

    def get(self, key: str) -> Lookup:
        """The entry under `key` if it was made in the present feature epoch."""
        if not self._breaker.closed():
            return Lookup("skipped")
        try:
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.get(EPOCH_KEY)
            pipeline.get(key)
            epoch_text, text = pipeline.execute()
        except RedisFailure:
            self._breaker.failed()
            return Lookup("error")
        epoch = int(epoch_text or 0)
        try:
            entry = _Entry.model_validate_json(text) if text is not None else None
        except ValidationError:
            entry = None  # not written by us; the next `put` replaces it
        if entry is None or entry.epoch != epoch:
            return Lookup("miss", epoch=epoch)
        return Lookup("hit", CachedList(entry.items, entry.degraded), epoch)

    def put(self, key: str, epoch: int, item_ids: Sequence[Id], degraded: Sequence[str]) -> None:
        """Store a list made in `epoch`, for the time to live ± 10 %, so that entries do not all expire at once."""
        if not self._breaker.closed():
            return
        text = _Entry(epoch=epoch, items=list(item_ids), degraded=list(degraded)).model_dump_json()
        ttl_ms = round(self._ttl_ms * (1 + TTL_JITTER * self._jitter.uniform(-1, 1)))
        try:
            self._redis.set(key, text, px=max(ttl_ms, 1))
        except RedisFailure:
            self._breaker.failed()

    def close(self) -> None:
        """Close the connections."""
        self._breaker.close()
        self._redis.close()
