"""The guard around the feature reader: when it asks Redis, and when it does not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest
import redis
from serving_fakes import FakeFeatures

from degre_prod.errors import FeatureError
from serving.features import FeatureRead
from serving.guard import FAILURES, GuardedFeatures


class BreakingFeatures(FakeFeatures):
    """Raises `cause` as the reader would."""

    cause: Exception | None = None

    def read(self, user_id: Any, item_ids: Sequence[Any], now_us: int) -> FeatureRead:
        if self.cause is not None:
            self.reads += 1
            raise FeatureError("broken") from self.cause
        return super().read(user_id, item_ids, now_us)


def ask(guarded: GuardedFeatures) -> str:
    try:
        guarded.read(1, [1], 1)
    except FeatureError as error:
        return str(error)
    return "read"


def test_a_redis_that_keeps_failing_is_left_alone_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = BreakingFeatures()
    guarded = GuardedFeatures(reader)
    reader.cause = redis.TimeoutError("late")
    assert ask(guarded) == "broken"
    reader.cause = None
    assert ask(guarded) == "read"  # one late reply is a hiccup
    reader.cause, reader.reads = redis.ConnectionError("away"), 0
    told = [ask(guarded) for _ in range(20)]
    assert (reader.reads, told[-1]) == (FAILURES, "Redis failed less than a second ago")
    reader.cause = None
    now = time.monotonic()
    monkeypatch.setattr(guarded._breaker, "_now", lambda: now + 1.1)
    assert ask(guarded) == "read"


def test_a_value_that_cannot_be_read_is_no_reason_to_leave_redis_alone() -> None:
    reader = BreakingFeatures()
    guarded = GuardedFeatures(reader)
    reader.cause = ValueError("one entity's")
    assert {ask(guarded) for _ in range(10)} == {"broken"}
    assert reader.reads == 10
