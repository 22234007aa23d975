"""A feature reader that stops asking a Redis that has just failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from degre_prod.errors import FeatureError
from degre_prod.requests import Id
from serving.redis_client import Breaker, RedisFailure

if TYPE_CHECKING:
    from serving.engine import ReadsFeatures
    from serving.features import FeatureRead


FAILURES = 2  # in a row; a single late reply is a hiccup, and a pause would take the features from everybody


class GuardedFeatures:
    """Once Redis has failed, reads fail at once until it is well again, so that a dead Redis costs few requests a timeout.

    `works` asks Redis and raises while it is not well. A value that cannot be decoded is no reason to pause: it is one
    entity's, and Redis is well.
    """

    def __init__(self, reader: ReadsFeatures, works: Callable[[], object]) -> None:
        self._reader, self._breaker = reader, Breaker(works)
        self._failures = 0  # threads may miscount it by one; nothing depends on that

    def read(self, user_id: Id, item_ids: Sequence[Id], now_us: int) -> FeatureRead:
        """See FeatureReader.read; raises FeatureError."""
        if not self._breaker.closed():
            raise FeatureError("Redis has failed and is not well yet")
        try:
            read = self._reader.read(user_id, item_ids, now_us)
        except FeatureError as error:
            if isinstance(error.__cause__, RedisFailure):
                self._failures += 1
                if self._failures >= FAILURES:
                    self._breaker.failed()
            raise
        self._failures = 0
        return read

    def close(self) -> None:
        """Close the reader."""
        self._breaker.close()
        self._reader.close()
