"""A Redis client for the request path: short timeouts, no retries, and nobody asks a Redis that has failed.

redis-py's default retries stall a request for seconds when Redis is down.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

RedisFailure = (redis.RedisError, OSError)
PAUSE_S, PROBE_S = 1.0, 0.25  # after a failure until Redis is asked for the first time, and then each time


def request_path_client(url: str, timeout_ms: float) -> redis.Redis:
    """Connects lazily; every command fails within `timeout_ms` (and as much again to connect)."""
    seconds = timeout_ms / 1000
    return redis.Redis.from_url(
        url, socket_timeout=seconds, socket_connect_timeout=seconds, retry=Retry(NoBackoff(), 0), retry_on_timeout=False
    )


class Breaker:
    """Open after a failure, until a thread of its own has had an answer in time: no request has to try.

    `works` asks Redis and raises while it is not well.
    """

    def __init__(self, works: Callable[[], object]) -> None:
        self._works = works
        self._lock = threading.Lock()
        self._open = False
        self._closing = threading.Event()

    def closed(self) -> bool:
        """Whether it is worth trying."""
        return not self._open

    def failed(self) -> None:
        """Open, and begin to ask whether Redis is well again."""
        with self._lock:
            if self._open or self._closing.is_set():
                return
            self._open = True
        threading.Thread(target=self._probe, name="redis-probe", daemon=True).start()

    def close(self) -> None:
        """Ask no more."""
        self._closing.set()

    def _probe(self) -> None:
        pause_s = PAUSE_S
        while not self._closing.wait(pause_s):
            pause_s = PROBE_S
            try:
                self._works()
            except Exception:  # whatever it is, Redis is not well; the thread must live, or it would never be again
                continue
            self._open = False
            return
