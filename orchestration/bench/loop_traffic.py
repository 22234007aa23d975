"""Asking the service and posting feedback over HTTP, a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Final, TypeVar

from degre_prod.errors import ServiceError
from degre_prod.worlds.simulate import Log
from orchestration.bench.loop_deliveries import Delivery
from serving.client import AsyncRerankClient
from serving.protocol import Candidate, RerankRequest, RerankResponse

AT_ONCE: Final = 8
DEADLINE_MS: Final = 5000.0  # nor may a busy machine turn lists into fallbacks
FEEDBACK_TIMEOUT_S: Final = 10.0
T = TypeVar("T")
R = TypeVar("R")


def bodies(asked: Log, ids: Sequence[str], times: Sequence[datetime]) -> list[RerankRequest]:
    """The requests as an application sends them, each with its own simulated time."""
    rows = zip(asked.user_ids_B.tolist(), asked.candidate_ids_BC.tolist(), asked.upstream_BC.tolist(), strict=True)
    return [
        RerankRequest(
            request_id=request_id,
            user_id=user,
            candidates=[
                Candidate(id=item, scores={"upstream": score}) for item, score in zip(items, scores, strict=True)
            ],
            deadline_ms=DEADLINE_MS,
            event_timestamp=moment,
        )
        for request_id, moment, (user, items, scores) in zip(ids, times, rows, strict=True)
    ]


def ask(url: str, requests: Sequence[RerankRequest], progress: Callable[[int], object]) -> list[RerankResponse]:
    """The service's answers, in the order of the requests; raises ServiceError where it did not answer."""

    async def one(client: AsyncRerankClient, request: RerankRequest) -> RerankResponse:
        answer = await client.rerank(request)
        if answer.source == "client_fallback":
            raise ServiceError(f"the service did not answer request {request.request_id}: {', '.join(answer.degraded)}")
        progress(1)
        return answer

    return asyncio.run(_all(url, requests, one))


def post(url: str, deliveries: Sequence[Delivery], progress: Callable[[int], object]) -> None:
    """Post feedback; returns when Redis has acknowledged all of it, raises ServiceError when it does not."""

    async def one(client: AsyncRerankClient, delivery: Delivery) -> None:
        await client.feedback(delivery.body)
        progress(1)

    asyncio.run(_all(url, deliveries, one))


async def _all(url: str, tasks: Sequence[T], one: Callable[[AsyncRerankClient, T], Awaitable[R]]) -> list[R]:
    """Results in order; a few workers take the tasks one by one."""
    client = AsyncRerankClient(url, grace_ms=5000.0, feedback_timeout_s=FEEDBACK_TIMEOUT_S)
    results: dict[int, R] = {}
    waiting = iter(enumerate(tasks))

    async def work() -> None:
        for index, task in waiting:
            results[index] = await one(client, task)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(work())
    except* ServiceError as errors:
        raise errors.exceptions[0] from None
    finally:
        await client.close()
    return [results[index] for index in range(len(tasks))]
