"""Simulated users of the rollout's drills: each asks the service, looks at the list as the world's truth says, and clicks."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from types import TracebackType
from typing import Self

import numpy as np

from degre_prod.errors import ConstraintError, ServiceError
from degre_prod.worlds.simulate import react
from degre_prod.worlds.truth import World, make_world
from serving.client import AsyncRerankClient
from serving.protocol import Candidate, FeedbackEvent, FeedbackRequest, RerankRequest
from serving.validation import validate

CANDIDATES, LENGTH = 20, 5  # see orchestration.bench.acting
DEADLINE_MS = 400.0
GRACE_MS = 2000.0
CLOSE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One request: when its answer came (time.monotonic), who answered, whether it was answered with a valid list."""

    at: float
    arm: str
    bundle: str
    source: str
    experiment: str | None
    ok: bool
    clicks: int


class Users:
    """`rate` requests a second by users 1 … `users` inside its block, open loop, with their clicks delivered as feedback."""

    def __init__(self, url: str, *, users: int, items: int, rate: float, seed: int = 0) -> None:
        self._url, self._users, self._items, self.rate = url, users, items, rate
        self._rng = np.random.default_rng(seed)
        self._world: World = make_world("mixed", "small", seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="users", daemon=True)
        self.seen: list[Seen] = []
        self.feedback_refused = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            raise ServiceError(f"requests were still under way {CLOSE_SECONDS:.0f} s after the users had left")

    @property
    def failed(self) -> int:
        """Requests without a valid list from the service."""
        return sum(not s.ok for s in self.seen)

    async def _run(self) -> None:
        asked: set[asyncio.Task[None]] = set()
        start = time.monotonic()
        async with AsyncRerankClient(self._url, grace_ms=GRACE_MS) as client:
            for sent in count():
                if self._stop.is_set():
                    break
                if (wait := start + sent / self.rate - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                task = asyncio.create_task(self._visit(client, self._request(sent)))
                asked.add(task)
                task.add_done_callback(asked.discard)
            await asyncio.gather(*asked)

    def _request(self, number: int) -> RerankRequest:
        """A user and candidates in the order of a noisy upstream ranker; ids of the bed count from 0, the world's from 1."""
        user = int(self._rng.integers(1, self._users))
        items_C = self._rng.choice(np.arange(1, self._items), CANDIDATES, replace=False)
        logits_C = self._world.base_logits(np.array([user]), items_C[None])[0]
        scores_C = logits_C + self._rng.normal(scale=self._world.spec.upstream_noise, size=CANDIDATES)
        return RerankRequest(
            request_id=f"{self._rng.integers(2**60):x}-{number}",
            user_id=user,
            candidates=[
                Candidate(id=int(items_C[c]), scores={"upstream": float(scores_C[c])}) for c in np.argsort(-scores_C)
            ],
            deadline_ms=DEADLINE_MS,
        )

    async def _visit(self, client: AsyncRerankClient, request: RerankRequest) -> None:
        answer = await client.rerank(request)
        at, ids = time.monotonic(), answer.ids()
        try:
            validate(ids, [c.id for c in request.candidates], LENGTH)
            ok = answer.source != "client_fallback"
        except ConstraintError:
            ok = False
        clicked_BL, _ = react(self._world, np.array([request.user_id]), np.array([ids]), self._rng)
        clicked = [item for item, click in zip(ids, clicked_BL[0], strict=True) if click]
        self.seen.append(Seen(at, answer.arm, answer.bundle, answer.source, answer.experiment, ok, len(clicked)))
        if answer.source == "client_fallback":
            return
        now = datetime.now(UTC)
        events = [
            FeedbackEvent(event_id=f"{answer.request_id}-{item}", id=item, type="click", timestamp=now)
            for item in clicked
        ]
        try:
            await client.feedback(FeedbackRequest(request_id=answer.request_id, shown_ids=ids, events=events))
        except ServiceError:
            self.feedback_refused += 1
