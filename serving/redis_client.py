"""A Redis client for the request path: short timeouts, no retries, and a pause after a failure.

redis-py's default retries stall a request for seconds when Redis is down.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

RedisFailure = (redis.RedisError, OSError)


def request_path_client(url: str, timeout_ms: float) -> redis.Redis:
    """Connects lazily; every command fails within `timeout_ms` (and as much again to connect)."""
    seconds = timeout_ms / 1000
    return redis.Redis.from_url(
        url, socket_timeout=seconds, socket_connect_timeout=seconds, retry=Retry(NoBackoff(), 0), retry_on_timeout=False
    )


class Breaker:
    """Remembers a failure for `pause_s`, so that requests do not each wait for the same timeout."""

    def __init__(self, pause_s: float = 1.0, now: Callable[[], float] = time.monotonic) -> None:
        self._pause_s, self._now, self._until = pause_s, now, -float("inf")

    def closed(self) -> bool:
        """Whether it is worth trying."""
        return self._now() >= self._until

    def failed(self) -> None:
        """Start the pause."""
        self._until = self._now() + self._pause_s
