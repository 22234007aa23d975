"""Typed clients, synchronous and asynchronous. A list always comes back: the caller's own order when the service is away.

    with RerankClient("http://127.0.0.1:8000") as client:
        answer = client.rerank(RerankRequest(user_id=7, candidates=[Candidate(id=1), Candidate(id=2)]))

What to send, when to try again and when to fall back is written once, as generators that yield steps; the two clients
only carry the steps out.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import httpx
from pydantic import ValidationError

from degre_prod.errors import ServiceError
from serving.client_fallback import client_order
from serving.protocol import FeedbackAccepted, FeedbackRequest, RankedItem, RerankRequest, RerankResponse

if TYPE_CHECKING:
    from serving.tracing import Traces

DEFAULT_DEADLINE_MS = 100.0
FEEDBACK_ATTEMPTS = 5
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.1, 2.0
CONNECTIONS = 100  # of one client at a time
_LIMITS = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=20)  # each idle one costs every request
# Statuses that say nothing about the request: away, overloaded, or too slow.
_AWAY = frozenset({408, 429})

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Send:
    """POST `body` to `path`; the client sends back an httpx.Response or the httpx.TransportError it got instead."""

    path: str
    body: bytes
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait before the next step."""

    seconds: float


Reply = httpx.Response | httpx.TransportError | None
Steps = Generator[Send | Wait, Reply, Result]


def rerank_steps(request: RerankRequest, grace_ms: float) -> Steps[RerankResponse]:
    """One try, and a second one at once if the connection broke: here (a kept-alive connection may have been closed), or
    between the proxy and a replica that died."""
    if request.request_id is None:  # so that feedback can refer to the list even if this client falls back
        request = request.model_copy(update={"request_id": uuid.uuid4().hex})
    timeout_s = ((request.deadline_ms or DEFAULT_DEADLINE_MS) + grace_ms) / 1000
    send = Send("/v1/rerank", request.model_dump_json(exclude_none=True, exclude_unset=False).encode(), timeout_s)
    reply = yield send
    if _connection_lost(reply):
        reply = yield send
    if isinstance(reply, httpx.TimeoutException):
        return client_fallback(request, "client_timeout")
    if not isinstance(reply, httpx.Response):
        return client_fallback(request, "client_unreachable")
    if _is_away(reply):
        return client_fallback(request, f"client_status_{reply.status_code}")
    if reply.status_code != 200:
        raise _refusal(reply)
    try:
        answer = RerankResponse.model_validate_json(reply.content)
    except ValidationError:
        return client_fallback(request, "client_bad_answer")
    ids = answer.ids()
    if not ids or len(set(ids)) < len(ids) or not set(ids) <= {c.id for c in request.candidates}:
        return client_fallback(request, "client_bad_answer")
    return answer


def feedback_steps(request: FeedbackRequest, timeout_s: float, jitter: random.Random) -> Steps[FeedbackAccepted]:
    """Tries until Redis has the feedback; the event ids make repetition harmless. Raises ServiceError at the end."""
    send = Send("/v1/feedback", request.model_dump_json().encode(), timeout_s)
    backoff_s = FIRST_BACKOFF_S
    reply: Reply = None
    for attempt in range(FEEDBACK_ATTEMPTS):
        if attempt:
            yield Wait(backoff_s * jitter.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, LONGEST_BACKOFF_S)
        reply = yield send
        if isinstance(reply, httpx.Response) and not _is_away(reply):
            if reply.status_code != 202:
                raise _refusal(reply)
            return FeedbackAccepted.model_validate_json(reply.content)
    if isinstance(reply, httpx.Response):
        raise _refusal(reply)
    raise ServiceError(f"feedback was not taken after {FEEDBACK_ATTEMPTS} tries: {type(reply).__name__}: {reply}")


def client_fallback(request: RerankRequest, reason: str) -> RerankResponse:
    """The caller's own order: distinct candidates, cut to the length asked for, within the request's constraints as far as a
    client knows them (see `client_order`)."""
    chosen, flags = client_order(request)
    return RerankResponse(
        request_id=request.request_id or uuid.uuid4().hex,
        items=[RankedItem(id=item, position=t) for t, item in enumerate(chosen)],
        bundle="",
        arm="",
        source="client_fallback",
        degraded=[reason, *flags],
    )


class RerankClient:
    """Synchronous client; safe to share among threads. `grace_ms` is waited beyond the request's deadline. With `traces`
    (serving.tracing) each request is a span, and the service's spans are below it."""

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        grace_ms: float = 400.0,
        feedback_timeout_s: float = 2.0,
        traces: Traces | None = None,
    ) -> None:
        self._http = httpx.Client(base_url=base_url, headers=_headers(token))
        self._grace_ms, self._feedback_timeout_s = grace_ms, feedback_timeout_s
        self._jitter = random.Random()
        self._traces = traces

    def rerank(self, request: RerankRequest) -> RerankResponse:
        """The service's list, or the caller's order with source `client_fallback` when it is away, late or broken.

        Raises ServiceError with the problem document when the service refuses the request (4xx).
        """
        return self._carry_out(rerank_steps(request, self._grace_ms))

    def feedback(self, request: FeedbackRequest) -> FeedbackAccepted:
        """Deliver feedback, trying again for a few seconds; raises ServiceError when it was refused or not taken."""
        return self._carry_out(feedback_steps(request, self._feedback_timeout_s, self._jitter))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _carry_out(self, steps: Steps[Result]) -> Result:
        reply: Reply = None
        try:
            while True:
                step = steps.send(reply)
                if isinstance(step, Wait):
                    time.sleep(step.seconds)
                    reply = None
                    continue
                try:
                    with _asked(self._traces, step) as headers:
                        reply = self._http.post(step.path, content=step.body, timeout=step.timeout_s, headers=headers)
                except httpx.TransportError as error:
                    reply = error
        except StopIteration as end:
            return end.value


class AsyncRerankClient:
    """Asynchronous client; the same promises as RerankClient. At most `CONNECTIONS` requests are under way at once; what
    waits for its turn longer than its timeout is late."""

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        grace_ms: float = 400.0,
        feedback_timeout_s: float = 2.0,
        traces: Traces | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(base_url=base_url, headers=_headers(token), limits=_LIMITS)
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._grace_ms, self._feedback_timeout_s = grace_ms, feedback_timeout_s
        self._jitter = random.Random()
        self._traces = traces

    async def rerank(self, request: RerankRequest) -> RerankResponse:
        """See RerankClient.rerank."""
        return await self._carry_out(rerank_steps(request, self._grace_ms))

    async def feedback(self, request: FeedbackRequest) -> FeedbackAccepted:
        """See RerankClient.feedback."""
        return await self._carry_out(feedback_steps(request, self._feedback_timeout_s, self._jitter))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def _carry_out(self, steps: Steps[Result]) -> Result:
        reply: Reply = None
        try:
            while True:
                step = steps.send(reply)
                if isinstance(step, Wait):
                    await asyncio.sleep(step.seconds)
                    reply = None
                    continue
                try:
                    with _asked(self._traces, step) as headers:
                        reply = await self._post(step, headers)
                except httpx.TransportError as error:
                    reply = error
        except StopIteration as end:
            return end.value

    async def _post(self, step: Send, headers: dict[str, str] | None) -> httpx.Response:
        """Waits here and not in httpx, whose pool looks at every waiting request whenever one begins or ends: after a pause
        of some seconds under load it would never get over it."""
        over = time.monotonic() + step.timeout_s
        try:
            async with asyncio.timeout(step.timeout_s):
                await self._turns.acquire()
        except TimeoutError:
            raise httpx.PoolTimeout(f"{CONNECTIONS} requests were under way for {step.timeout_s:.1f} s") from None
        try:
            left_s = max(over - time.monotonic(), 0.0)
            return await self._http.post(step.path, content=step.body, timeout=left_s, headers=headers)
        finally:
            self._turns.release()


def _asked(traces: Traces | None, step: Send) -> AbstractContextManager[dict[str, str] | None]:
    """Around a request: its span, and the headers that name it to the service."""
    return nullcontext() if traces is None else traces.asked(step.path)


def _headers(token: str | None) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if token is not None:
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _connection_lost(reply: Reply) -> bool:
    if isinstance(reply, httpx.Response):
        # 502 and 503: the proxy reached no replica, or not this one any more. What is no problem document is not ours.
        return reply.status_code in (502, 503) or (reply.status_code >= 500 and not _is_problem(reply))
    return reply is not None and not isinstance(reply, httpx.TimeoutException)


def _is_problem(reply: httpx.Response) -> bool:
    return reply.headers.get("content-type", "").startswith("application/problem+json")


def _is_away(reply: httpx.Response) -> bool:
    return reply.status_code >= 500 or reply.status_code in _AWAY


def _refusal(reply: httpx.Response) -> ServiceError:
    problem: dict[str, object] = {}
    if _is_problem(reply):
        problem = dict(reply.json())
    detail = problem.get("detail") or reply.text[:200]
    return ServiceError(f"{reply.status_code}: {detail}", status=reply.status_code, problem=problem)
