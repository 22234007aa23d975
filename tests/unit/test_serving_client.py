"""The clients' shared logic, step by step, and what importing them costs."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from typing import Any

import httpx
import pytest

from degre_prod.errors import ServiceError
from serving.client import (
    CONNECTIONS,
    FEEDBACK_ATTEMPTS,
    AsyncRerankClient,
    Reply,
    Send,
    Steps,
    Wait,
    feedback_steps,
    rerank_steps,
)
from serving.protocol import Candidate, FeedbackRequest, RerankRequest, RerankResponse

REQUEST = RerankRequest(request_id="r", user_id=1, candidates=[Candidate(id=i) for i in (3, 1, 3, 2)], length=2)
FEEDBACK = FeedbackRequest(request_id="r", shown_ids=[1])
ANSWER: dict[str, Any] = {
    "request_id": "r",
    "items": [{"id": 1, "position": 0}, {"id": 2, "position": 1}],
    "bundle": "b",
    "arm": "champion",
    "source": "generator",
}


def reply(status: int, document: Any = None, kind: str = "application/json") -> httpx.Response:
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    return httpx.Response(status, content=content, headers={"content-type": kind})


def play(steps: Steps[Any], *replies: Reply) -> tuple[Any, list[Send | Wait]]:
    """Feed replies to the sends; the result and the steps taken."""
    waiting = iter(replies)
    taken: list[Send | Wait] = []
    answer: Reply = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as end:
            return end.value, taken
        taken.append(step)
        answer = next(waiting) if isinstance(step, Send) else None


def test_an_answer_is_passed_on() -> None:
    answer, taken = play(rerank_steps(REQUEST, 400), reply(200, ANSWER | {"new_field": 1}))
    assert (answer.ids(), answer.source, len(taken)) == ([1, 2], "generator", 1)


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        ((httpx.ConnectError("no"), httpx.ConnectError("no")), "client_unreachable"),
        ((httpx.ReadError("gone"), httpx.ReadError("gone")), "client_unreachable"),
        ((httpx.ReadTimeout("late"),), "client_timeout"),
        ((httpx.ConnectError("no"), httpx.ReadTimeout("late")), "client_timeout"),
        ((reply(500, {}, "application/problem+json"),), "client_status_500"),
        ((reply(503, {}, "application/problem+json"),) * 2, "client_status_503"),
        ((reply(500, b"proxy", "text/plain"), reply(500, b"proxy", "text/plain")), "client_status_500"),
        ((reply(429),), "client_status_429"),
        ((reply(200, b"<html>"),), "client_bad_answer"),
        ((reply(200, ANSWER | {"items": []}),), "client_bad_answer"),
        ((reply(200, ANSWER | {"items": [{"id": 8, "position": 0}]}),), "client_bad_answer"),
    ],
)
def test_a_service_that_is_away_gives_the_callers_order(replies: tuple[Reply, ...], reason: str) -> None:
    answer, _ = play(rerank_steps(REQUEST, 400), *replies)
    assert (answer.ids(), answer.source, answer.degraded) == ([3, 1], "client_fallback", [reason])
    assert answer.request_id == "r"


@pytest.mark.parametrize(
    "broken",
    [
        httpx.RemoteProtocolError("closed"),
        reply(502, {}, "application/problem+json"),
        reply(500, b"another proxy", "text/plain"),
    ],
)
def test_a_broken_connection_is_tried_once_more(broken: Reply) -> None:
    answer, taken = play(rerank_steps(REQUEST, 400), broken, reply(200, ANSWER))
    assert (answer.source, len(taken)) == ("generator", 2)


def test_a_refusal_raises_with_its_problem() -> None:
    document = {"title": "Unprocessable", "status": 422, "detail": "length: too small"}
    with pytest.raises(ServiceError, match="length: too small") as caught:
        play(rerank_steps(REQUEST, 400), reply(422, document, "application/problem+json"))
    assert (caught.value.status, caught.value.problem) == (422, document)


def test_the_request_carries_an_id_even_when_the_caller_gave_none() -> None:
    steps = rerank_steps(REQUEST.model_copy(update={"request_id": None}), 400)
    answer, taken = play(steps, httpx.ReadTimeout("late"))
    assert isinstance(taken[0], Send)
    assert json.loads(taken[0].body)["request_id"] == answer.request_id


def test_feedback_is_repeated_with_growing_waits_until_taken() -> None:
    accepted = reply(202, {"request_id": "r", "accepted": 0})
    result, taken = play(
        feedback_steps(FEEDBACK, 1, random.Random(0)), reply(503), httpx.ConnectError("no"), reply(429), accepted
    )
    sends = [s for s in taken if isinstance(s, Send)]
    waits = [s.seconds for s in taken if isinstance(s, Wait)]
    assert (result.request_id, len(sends), len({s.body for s in sends})) == ("r", 4, 1)
    assert 0.05 <= waits[0] <= 0.1
    assert 0.2 <= waits[2] <= 0.4


def test_feedback_gives_up_and_says_so() -> None:
    gone = [httpx.ConnectError("no")] * FEEDBACK_ATTEMPTS
    with pytest.raises(ServiceError, match="not taken after"):
        play(feedback_steps(FEEDBACK, 1, random.Random(0)), *gone)
    with pytest.raises(ServiceError) as caught:
        play(feedback_steps(FEEDBACK, 1, random.Random(0)), *[reply(503)] * FEEDBACK_ATTEMPTS)
    assert caught.value.status == 503


def test_refused_feedback_is_not_repeated() -> None:
    with pytest.raises(ServiceError) as caught:
        play(feedback_steps(FEEDBACK, 1, random.Random(0)), reply(422))
    assert caught.value.status == 422


def test_importing_the_client_brings_nothing_heavy() -> None:
    heavy = "{'ray', 'numpy', 'onnxruntime', 'feast', 'fastapi', 'redis', 'torch', 'pandas'}"
    code = f"import sys, serving.client; print(sorted({heavy} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_more_requests_than_connections_wait_outside_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """httpx's pool is quadratic in what waits in it; those whose turn does not come in time are late, the others answered."""
    under_way, most, late = 0, 0, 7
    timeouts: list[float] = []

    async def ask() -> list[RerankResponse]:
        gate = asyncio.Event()

        async def post(*_: Any, timeout: float, **__: Any) -> httpx.Response:
            nonlocal under_way, most
            timeouts.append(timeout)
            under_way += 1
            most = max(most, under_way)
            await gate.wait()
            under_way -= 1
            return reply(200, ANSWER)

        async with AsyncRerankClient("http://127.0.0.1:1", grace_ms=0.0) as client:
            monkeypatch.setattr(client._http, "post", post)
            soon, patient = (REQUEST.model_copy(update={"deadline_ms": ms}) for ms in (20.0, 60_000.0))
            first = [asyncio.create_task(client.rerank(patient)) for _ in range(CONNECTIONS)]
            waiting = asyncio.create_task(client.rerank(patient))
            answers = await asyncio.gather(*(client.rerank(soon) for _ in range(late)))
            gate.set()
            return [*answers, *await asyncio.gather(*first, waiting)]

    told = [answer.degraded for answer in asyncio.run(ask())]
    assert told == [["client_timeout"]] * late + [[]] * (CONNECTIONS + 1)
    assert most == CONNECTIONS
    assert 0 < timeouts[-1] <= 60.0 - 0.02  # it waited for as long as those that were late, in its own time
