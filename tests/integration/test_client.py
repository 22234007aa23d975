"""Both clients against a real server, and with it stopped."""

from __future__ import annotations

import asyncio
import socket

import pytest
from serving_fakes import FakeFeatures, fake_engine
from serving_server import HttpServer

from degre_prod.errors import ServiceError
from orchestration.redis_server import running_redis
from serving.client import AsyncRerankClient, RerankClient
from serving.clock import from_us
from serving.protocol import Candidate, FeedbackAccepted, FeedbackEvent, FeedbackRequest, RerankRequest, RerankResponse

REQUEST = RerankRequest(user_id=1, candidates=[Candidate(id=i) for i in (5, 9, 3, 4)], explain=True)
EVENT = FeedbackEvent(event_id="e", id=5, type="click", timestamp=from_us(1_767_225_600_000_000))


class Both:
    """The two clients behind one face."""

    def __init__(self, kind: str, url: str, token: str | None = None) -> None:
        self.kind, self.url, self.token = kind, url, token

    def rerank(self, request: RerankRequest) -> RerankResponse:
        if self.kind == "sync":
            with RerankClient(self.url, token=self.token) as client:
                return client.rerank(request)

        async def ask() -> RerankResponse:
            async with AsyncRerankClient(self.url, token=self.token) as client:
                return await client.rerank(request)

        return asyncio.run(ask())

    def feedback(self, request: FeedbackRequest) -> FeedbackAccepted:
        if self.kind == "sync":
            with RerankClient(self.url, token=self.token) as client:
                return client.feedback(request)

        async def tell() -> FeedbackAccepted:
            async with AsyncRerankClient(self.url, token=self.token) as client:
                return await client.feedback(request)

        return asyncio.run(tell())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_the_clients(kind: str, http_server: HttpServer, clean_redis: str) -> None:
    with http_server(fake_engine(), clean_redis, tokens=["t"]) as url:
        client = Both(kind, url, "t")
        answer = client.rerank(REQUEST)
        assert (answer.ids(), answer.source) == ([9, 5, 4], "generator")
        assert answer.items[0].margin == 3.0
        accepted = client.feedback(FeedbackRequest(request_id=answer.request_id, events=[EVENT]))
        assert accepted.accepted == 1
        with pytest.raises(ServiceError, match="ids of this bundle are integers") as caught:
            client.rerank(REQUEST.model_copy(update={"user_id": "one"}))
        assert caught.value.problem["errors"]
        with pytest.raises(ServiceError) as caught:
            Both(kind, url, "wrong").rerank(REQUEST)
        assert caught.value.status == 401
    stopped = client.rerank(REQUEST.model_copy(update={"length": 2}))
    assert (stopped.ids(), stopped.source, stopped.degraded) == ([5, 9], "client_fallback", ["client_unreachable"])


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_service_that_does_not_answer_in_time(kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Both(kind, f"http://127.0.0.1:{silent.getsockname()[1]}")
        answer = client.rerank(REQUEST.model_copy(update={"deadline_ms": 20}))
    assert (answer.ids(), answer.degraded) == ([5, 9, 3, 4], ["client_timeout"])


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_feedback_that_redis_never_takes_raises(kind: str, http_server: HttpServer) -> None:
    with running_redis() as gone:
        pass
    with http_server(fake_engine(FakeFeatures(fails=True)), gone) as url, pytest.raises(ServiceError) as caught:
        Both(kind, url).feedback(FeedbackRequest(request_id="r", events=[EVENT]))
    assert caught.value.status == 503
