"""Replicas follow the number of requests under way, and no request notices that one comes or goes."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest
from serving_server import poll
from tiny_bundle import TinyWorld

from degre_prod.config import Settings
from orchestration.bench.bed import replica_urls
from orchestration.replay import to_http
from serving.client import RerankClient
from serving.deploy import running_service
from serving.protocol import RerankRequest

BUSY = 8
SERVING = {
    "port": 0,
    "clock": "request",
    "cache": False,
    "cpus_per_replica": 0.5,
    "deadline_ms": 5000.0,
    "redis_timeout_ms": 2000.0,
    "max_replicas": 2,
    "target_ongoing_requests": 0.5,
    "scale_up_seconds": 1.0,
    "scale_down_seconds": 1.0,
}


class Clients:
    """As many threads as `wanted` says, each asking again once it is answered and has paused."""

    def __init__(self, url: str, requests: list[RerankRequest]) -> None:
        self.wanted, self.pause_s = BUSY, 0.0
        self.sources: Counter[str] = Counter()
        self._url, self._requests = url, requests
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(BUSY)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self.wanted = 0
        for thread in self._threads:
            thread.join()

    def _ask(self, index: int) -> None:
        turn = index
        with RerankClient(self._url, grace_ms=5000) as client:
            while index < self.wanted:
                self.sources[client.rerank(self._requests[turn % len(self._requests)]).source] += 1
                turn += BUSY
                time.sleep(self.pause_s)


@pytest.mark.usefixtures("ray_cluster")
def test_replicas_come_and_go_with_the_load_and_no_answer_is_lost(tiny: TinyWorld, clean_redis: str) -> None:
    requests = [to_http(row.request, explain=False) for row in tiny.rows]
    with running_service(tiny.bundle.path, Settings.model_validate({"serving": SERVING}), clean_redis) as url:
        poll(lambda: len(replica_urls()) == 1, seconds=60)  # until HAProxy knows it, Serve's own proxy answers
        clients = Clients(url, requests)
        try:
            poll(lambda: len(replica_urls()) == 2, seconds=60)
            time.sleep(1)  # both work
            clients.wanted, clients.pause_s = 1, 0.05  # while one drains
            poll(lambda: len(replica_urls()) == 1, seconds=60)
            before = clients.sources.total()
            poll(lambda: clients.sources.total() > before + 10)
        finally:
            clients.stop()
    assert set(clients.sources) == {"generator"}, clients.sources
    assert clients.sources.total() > 100
