"""What the controller saw when it looked: written to Redis by orchestration.rollout.controller, read by the console and by
`degre rollout status`.

The last look whole, and of the looks over time what plots need: estimate and always-valid interval of each metric. A point
is kept when the stage is a hundredth older than at the point before, so that a stage of a minute and one of a month have
about as many (100 · ln of the ratio of its ages, a thousand or so).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, cast

import redis

PREFIX = "degre:trial:"
POINTS_KEPT = 5000
SPACING = 0.01  # of the stage's age
SHARE = ":share"  # after a guardrail's name: the challenger's own share, where no control is left

Span = tuple[float | None, float | None, float | None]
"""Estimate, low, high; None where it is not known yet."""


@dataclass(frozen=True, slots=True)
class Point:
    """A look, for plots. `at`: seconds since 1970 by Redis's clock; `since`: when its stage began; `users`, `requests`: of
    the stage, by arm; `metrics`: `primary` and `judge` relative to the champion, guardrails as differences of shares of requests
    (with SHARE: as shares)."""

    at: float
    since: float
    stage: str
    users: Mapping[str, int]
    requests: Mapping[str, int]
    metrics: Mapping[str, Span]


def look_key(experiment: str) -> str:
    """The last look at an experiment."""
    return f"{PREFIX}{experiment}:look"


def points_key(experiment: str) -> str:
    """The list of an experiment's points, oldest first."""
    return f"{PREFIX}{experiment}:looks"


def write_look(client: redis.Redis, experiment: str, document: Mapping[str, Any], point: Point) -> None:
    """Put a look in the place of the one before, and keep its point if it is due; raises redis errors."""
    newest = cast(bytes | None, client.lindex(points_key(experiment), -1))
    with client.pipeline() as pipeline:
        pipeline.set(look_key(experiment), json.dumps(document))
        if newest is None or _due(point, _point(newest)):
            pipeline.rpush(points_key(experiment), json.dumps(asdict(point)))
            pipeline.ltrim(points_key(experiment), -POINTS_KEPT, -1)
        pipeline.execute()


def read_look(client: redis.Redis, experiment: str) -> dict[str, Any] | None:
    """The last look, None when no controller has looked yet; raises redis errors."""
    text = cast(bytes | None, client.get(look_key(experiment)))
    return None if text is None else dict(json.loads(text))


def read_points(client: redis.Redis, experiment: str) -> list[Point]:
    """The looks over time; raises redis errors."""
    return [_point(text) for text in cast(list[bytes], client.lrange(points_key(experiment), 0, -1))]


def seconds(moment: datetime) -> float:
    """Since 1970, to the millisecond."""
    return round(moment.timestamp(), 3)


def _due(point: Point, before: Point) -> bool:
    if (point.stage, point.since) != (before.stage, before.since):
        return True
    return point.at - before.at >= SPACING * (point.at - point.since)


def _point(text: bytes) -> Point:
    values = json.loads(text)
    metrics = {name: cast(Span, tuple(span)) for name, span in values.pop("metrics").items()}
    return Point(**values, metrics=metrics)
