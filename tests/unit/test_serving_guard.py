"""The guard around the feature reader: when it asks Redis, and when it does not."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import redis
from serving_fakes import FakeFeatures
from serving_server import poll

import serving.redis_client as redis_client
from degre_prod.errors import FeatureError
from serving.features import FeatureRead
from serving.guard import FAILURES, GuardedFeatures


class BreakingFeatures(FakeFeatures):
    """Raises `cause` as the reader would."""

    cause: Exception | None = None
    probes = 0

    def ping(self) -> None:
        self.probes += 1
        if self.cause is not None:
            raise self.cause

    def read(self, user_id: Any, item_ids: Sequence[Any], now_us: int) -> FeatureRead:
        if self.cause is not None:
            self.reads += 1
            raise FeatureError("broken") from self.cause
        return super().read(user_id, item_ids, now_us)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> BreakingFeatures:
    monkeypatch.setattr(redis_client, "PAUSE_S", 0.1)
    monkeypatch.setattr(redis_client, "PROBE_S", 0.01)
    return BreakingFeatures()


@pytest.fixture
def guarded(reader: BreakingFeatures) -> Iterator[GuardedFeatures]:
    made = GuardedFeatures(reader, reader.ping)
    yield made
    made.close()


def ask(guarded: GuardedFeatures) -> str:
    try:
        guarded.read(1, [1], 1)
    except FeatureError as error:
        return str(error)
    return "read"


def test_a_redis_that_keeps_failing_is_asked_by_no_request_until_it_is_well(
    reader: BreakingFeatures, guarded: GuardedFeatures
) -> None:
    reader.cause = redis.TimeoutError("late")
    assert ask(guarded) == "broken"
    reader.cause = None
    assert ask(guarded) == "read"  # one late reply is a hiccup
    reader.cause, reader.reads = redis.ConnectionError("away"), 0
    told = [ask(guarded) for _ in range(20)]
    assert (reader.reads, told[-1]) == (FAILURES, "Redis has failed and is not well yet")
    poll(lambda: reader.probes >= 3)
    reader.cause = ValueError("not even an answer of Redis")
    asked = reader.probes
    poll(lambda: reader.probes >= asked + 3)
    assert ask(guarded) == told[-1]
    assert reader.reads == FAILURES
    reader.cause = None
    poll(lambda: ask(guarded) == "read")
    asked = reader.probes
    reader.cause = redis.TimeoutError("late")
    assert [ask(guarded) for _ in range(3)] == ["broken", "broken", told[-1]]
    guarded.close()
    reader.cause = None
    time.sleep(0.2)
    assert reader.probes == asked  # closed: nobody asks any more


def test_a_value_that_cannot_be_read_is_no_reason_to_leave_redis_alone(
    reader: BreakingFeatures, guarded: GuardedFeatures
) -> None:
    reader.cause = ValueError("one entity's")
    assert {ask(guarded) for _ in range(10)} == {"broken"}
    assert reader.reads == 10
