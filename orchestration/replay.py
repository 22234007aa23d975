"""Replay logged test requests over HTTP in the order of their time, against the bundle's own answers offline.

The online store is fed so that at every request it holds just what had happened by then; the request carries its time
(`serving.clock: request`). Then an online answer must equal the bundle's ONNX model on the point-in-time row, always.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from degre_prod.config import Settings
from degre_prod.requests import Request
from orchestration.run import Run

if TYPE_CHECKING:
    from degre_prod.rows import TrainingRow
    from serving.protocol import RerankRequest, RerankResponse

DEADLINE_MS = 5000.0  # a replay compares answers; a fallback on a busy machine would compare nothing
EXAMPLES = 4


@dataclass(frozen=True)
class Replay:
    """`equal` of `requests` answers were the same list; milliseconds as the client saw them and by the service's stages."""

    requests: int
    equal: int
    http_ms: tuple[float, ...]
    stages_ms: dict[str, tuple[float, ...]]
    degraded: dict[str, int]
    examples: tuple[tuple[TrainingRow, RerankResponse], ...]
    differing: tuple[str, ...]

    @property
    def http_equals_offline(self) -> float:
        """Share of equal answers."""
        return self.equal / self.requests


def replay(run: Run, count: int) -> Replay:
    """Serve the run's bundle and replay its first `count` test requests; private Redis and Ray Serve, gone afterwards."""
    from rich.console import Console
    from rich.progress import track

    from degre_prod.bundle import load_bundle
    from degre_prod.config import merge
    from degre_prod.encoding.splits import split_rows
    from orchestration.features.replay import OnlineFeed
    from orchestration.features.store import open_store
    from orchestration.redis_server import running_redis
    from serving.client import RerankClient
    from serving.deploy import running_service

    bundle = load_bundle(run.bundle)
    rows = list(islice(split_rows(run.training_set, bundle.schema, "test"), count))
    rows.sort(key=lambda r: r.request.event_timestamp_us)
    serving = {"clock": "request", "port": 0, "host": "127.0.0.1", "tokens": ()}
    settings = Settings(**merge(run.settings.model_dump(), {"serving": serving}))
    http_ms: list[float] = []
    answers: list[RerankResponse] = []
    with running_redis() as redis_url:
        feed = OnlineFeed(
            run.dataset, open_store(run.dataset, run.registry, redis_url), rows[0].request.event_timestamp_us
        )
        with running_service(run.bundle, settings, redis_url) as url, RerankClient(url) as client:
            for row in track(rows, "replay over HTTP", console=Console(file=sys.stderr), transient=True):
                feed.advance(row.request.event_timestamp_us)
                body = to_http(row.request, explain=False)
                started = time.perf_counter()
                answers.append(client.rerank(body))
                http_ms.append((time.perf_counter() - started) * 1000)
            explained = [(r, client.rerank(to_http(r.request, explain=True))) for r in rows[-EXAMPLES:]]
    L = bundle.manifest.list_length
    equal = [a.ids() == bundle.answer(r.request, r.user, r.items, L) for r, a in zip(rows, answers, strict=True)]
    stages: dict[str, list[float]] = {}
    degraded: dict[str, int] = {}
    for answer in answers:
        for stage, value in answer.timings_ms.items():
            stages.setdefault(stage, []).append(value)
        for reason in answer.degraded:
            name = reason.split(":")[0]
            degraded[name] = degraded.get(name, 0) + 1
    return Replay(
        requests=len(rows),
        equal=sum(equal),
        http_ms=tuple(http_ms),
        stages_ms={stage: tuple(values) for stage, values in stages.items()},
        degraded=degraded,
        examples=tuple(explained),
        differing=tuple(r.request.request_id for r, same in zip(rows, equal, strict=True) if not same),
    )


def to_http(request: Request, *, explain: bool) -> RerankRequest:
    """A logged request as an application would send it, with its own time."""
    from serving.protocol import Candidate, RecentEventIn, RerankRequest

    return RerankRequest(
        request_id=request.request_id,
        user_id=request.user_id,
        candidates=[
            Candidate(
                id=item,
                scores={name: _plain(values[c]) for name, values in request.scores.items()},
                features={name: _plain(values[c]) for name, values in request.candidate_features.items()},
            )
            for c, item in enumerate(request.candidate_ids)
        ],
        context={name: _plain(value) for name, value in request.context.items()},
        recent_events=[
            RecentEventIn(item_id=e.item_id, type=e.type, timestamp=_moment(e.timestamp_us))
            for e in request.recent_events
        ],
        explain=explain,
        deadline_ms=DEADLINE_MS,
        event_timestamp=_moment(request.event_timestamp_us),
    )


def _plain(value: Any) -> float | str | None:
    """JSON's own types; NaN is missing."""
    if value is None or isinstance(value, str):
        return value
    number = float(value)
    return None if number != number else number


def _moment(timestamp_us: int) -> datetime:
    seconds, micros = divmod(timestamp_us, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=micros)
