"""What one replica holds: the engine that answers, the rollout plan it follows, the logs, the metrics, its threads."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from degre_prod.config import Settings
from degre_prod.errors import ConfigurationError
from serving.clock import wall_clock
from serving.deadline import Deadline
from serving.engine import Answer, Engine
from serving.engines import Engines, Trial
from serving.event_log import FeedbackLog, ServedLog
from serving.exploration import explored_response
from serving.loop_lag import LoopLag
from serving.metrics import Metrics
from serving.metrics_server import MetricsServer
from serving.plan import LastGoodPlan
from serving.preparation import Prepared
from serving.problems import overloaded, unavailable
from serving.protocol import FeedbackAccepted, FeedbackRequest, RerankRequest, RerankResponse
from serving.redis_client import RedisFailure, request_path_client
from serving.rollout import PLAN_TIMEOUT_MS, Load, PlanFollower
from serving.rules import restricted
from serving.shadow import OURS, Shadow
from serving.tracing import StageTimes, open_traces
from serving.workers import OverloadedError, StuckError, Workers

log = structlog.get_logger(__name__)

WRITER_THREADS = 2  # for what waits for Redis off the request path
WRITER_QUEUE = 256
FEEDBACK_MS = 1500.0  # our client waits two seconds
STORE_MS = 1000.0
# Kept back of a deadline for the fallback's own way to the caller.
RESERVE_MS, RESERVE_SHARE = 5.0, 0.1
# An answer takes 2 ms; one that takes so much longer waits for something, and the next is computed beside it.
PATIENCE_S = 0.02

EngineFactory = Callable[[], Engine]


class Service:
    """Create it inside the event loop's process, `start` it in the loop, `close` it at the end.

    With `load`, which makes engines of a plan's bundles, it follows the rollout plan.
    """

    def __init__(self, engine_factory: EngineFactory, settings: Settings, load: Load | None = None) -> None:
        if settings.redis.url is None:
            raise ConfigurationError(
                "redis.url: serving needs one, for example DEGRE_REDIS__URL=redis://127.0.0.1:6379"
            )
        serving, url = settings.serving, settings.redis.url.get_secret_value()
        self._factory = engine_factory
        self._engines = Engines()
        self._failure: str | None = None
        self._loading: asyncio.Task[None] | None = None
        self._ongoing, self._most_ongoing = 0, serving.max_ongoing_requests
        self._exploration, self._chance = serving.exploration_share, random.Random()
        self._open, self._most_open = 0, serving.max_ongoing_requests + serving.max_queued_requests
        self._lag, self._most_lag_s = LoopLag(), serving.deadline_ms / 2000
        self.metrics = Metrics()
        self.metrics.ready(False)
        self.traces = open_traces(serving)
        self._metrics_host = serving.metrics_host
        self._metrics_server: MetricsServer | None = None
        self._workers = Workers(
            serving.threads, name="engine", most_waiting=serving.max_ongoing_requests, patience_s=PATIENCE_S
        )
        self._writers = Workers(WRITER_THREADS, name="writer", most_waiting=WRITER_QUEUE)
        self._served = ServedLog(
            url,
            buffer=serving.log_buffer,
            stream_max_length=serving.log_stream_max_length,
            timeout_ms=serving.redis_timeout_ms,
            metrics=self.metrics,
        )
        self._feedback = FeedbackLog(
            url, stream_max_length=serving.log_stream_max_length, timeout_ms=serving.redis_timeout_ms
        )
        self._shadow = Shadow(
            url,
            cpu_share=serving.shadow_cpu_share,
            queue=serving.shadow_queue,
            timeout_ms=serving.redis_timeout_ms,
            metrics=self.metrics,
        )
        self._follower: PlanFollower | None = None
        if load is not None:
            kept = None if serving.state_dir is None else LastGoodPlan(serving.state_dir, url)
            client = request_path_client(url, PLAN_TIMEOUT_MS)
            self._follower = PlanFollower(client, self._engines, load, self.metrics, kept)

    def start(self) -> None:
        """Load the engine in the background; until it is there, `readiness` says why not."""
        self._loading = asyncio.get_running_loop().create_task(self._load())
        self._lag.start()
        if self._metrics_host is not None:
            self._metrics_server = MetricsServer(self._metrics_host, self.exposition)
            if self._follower is not None:
                self._follower.metrics_address = self._metrics_server.address

    def readiness(self) -> str | None:
        """None when requests are taken, else the reason why not."""
        if self._engines.current is not None:
            return None
        return self._failure or "the bundle is being loaded, verified and warmed up"

    def healthy(self) -> bool:
        """False when the process should be replaced: too many of its threads are lost to work that never ended."""
        return self._workers.healthy()

    def status(self) -> dict[str, Any]:
        """What a ready replica says of itself: its bundle, the plan it follows, the bundle it has refused."""
        document: dict[str, Any] = {"status": "ready", "bundle": self.engine().bundle.manifest_sha256}
        if self._follower is not None:
            plan, refused = self._follower.plan, self._follower.refused
            document["plan"] = {"version": plan.version if plan else 0, "readable": self._follower.readable()}
            if (trial := self._engines.trial) is not None:
                document["challenger"] = trial.challenger.bundle.manifest_sha256
                document["experiment"] = {"id": trial.experiment.id, "stage": trial.experiment.now.name}
            if refused is not None:
                document["refused"] = {"bundle": refused.manifest_sha256, "reason": refused.reason}
        return document

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format."""
        self.metrics.ongoing(self._ongoing)
        self.metrics.queues(
            {
                "arriving": self._open - self._ongoing,
                "engine": self._workers.waiting,
                "writer": self._writers.waiting,
                "served_log": self._served.waiting,
            }
        )
        self.metrics.threads_lost(self._workers.lost + self._writers.lost)
        return self.metrics.exposition()

    def engine(self) -> Engine:
        """The engine; raises a 503 Problem while there is none."""
        engine = self._engines.current
        if engine is None:
            raise unavailable(self.readiness() or "not ready")
        return engine

    @contextmanager
    def arrived(self) -> Iterator[None]:
        """Around a request, before its body is read; raises a 429 Problem when more bodies are arriving than memory is for."""
        if self._open >= self._most_open:
            self.metrics.shed("open")
            raise overloaded(
                f"{self._most_open} requests are open (serving.max_ongoing_requests + max_queued_requests)"
            )
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Around a request, before its body is parsed; raises a 429 Problem when there are more than can be kept up with."""
        if self._ongoing >= self._most_ongoing:
            self.metrics.shed("ongoing")
            raise overloaded(f"{self._most_ongoing} requests are under way (serving.max_ongoing_requests)")
        if self._lag.sustained_s() > self._most_lag_s:
            self.metrics.shed("lag")
            raise overloaded("requests wait too long before they are looked at")
        self._ongoing += 1
        try:
            yield
        except asyncio.CancelledError:  # Ray Serve cancels the handler when the client goes away
            self.metrics.cancelled()
            raise
        finally:
            self._ongoing -= 1

    async def rerank(self, received: RerankRequest, started: float) -> RerankResponse:
        """Answer by the deadline: when the engine is not done by then, the fallback answers at once.

        Raises Problem (413 or 422).
        """
        engine, trial = self.engine(), self._engines.trial
        if trial is None:
            prepared = engine.prepare(received)
        else:
            engine, arm, exposure = trial.choose(received)
            prepared = replace(engine.prepare(received), arm=arm, exposure=exposure)
        structlog.contextvars.bind_contextvars(request_id=prepared.request.request_id)
        deadline = engine.deadline(received, started)
        parse_ms = deadline.elapsed_ms()
        stages = None if self.traces is None else StageTimes()
        if stages is not None:
            stages["parse"] = parse_ms
            deadline.timings = stages
        answer = await self._in_time(engine, prepared, deadline)
        response = answer.response
        response.timings_ms["parse"] = round(parse_ms, 3)
        if answer.entry is not None:
            self._writers.post(partial(engine.store, answer.entry), Deadline(STORE_MS))
        if answer.cache_outcome is not None:
            self.metrics.cache(answer.cache_outcome)
        if answer.cached_items is not None:
            self.metrics.items(answer.cached_items, len(prepared.request.candidate_ids))
        self.metrics.answer(response.source, response.arm, response.degraded, response.timings_ms)
        if response.source == "generator":
            self.metrics.entities(len(prepared.request.candidate_ids), response.degraded)
        if self.traces is not None and stages is not None:
            self.traces.answered(response, stages)
        if trial is not None:
            self._on_trial(trial, prepared, response)
        propensity = None
        if self._exploration and self._explorable(engine, prepared, response):
            ids = prepared.request.candidate_ids
            response, propensity = explored_response(response, ids, self._exploration, self._chance)
        self._served.append(prepared, response, propensity)
        return response

    def _on_trial(self, trial: Trial, prepared: Prepared, response: RerankResponse) -> None:
        """In shadow, let the challenger answer a share of the champion's requests, too."""
        experiment = trial.experiment
        if trial.in_shadow and prepared.exposure and self._chance.random() < experiment.shadow.share:
            ours = response.source in OURS
            self._shadow.offer(trial.challenger, experiment.id, prepared, response.ids(), ours)

    @staticmethod
    def _explorable(engine: Engine, prepared: Prepared, response: RerankResponse) -> bool:
        """The generator's own lists, where no rule could be broken and nobody asked for reasons."""
        ours = response.source in OURS
        return ours and not prepared.received.explain and not restricted(prepared, engine.bundle)

    async def feedback(self, received: FeedbackRequest) -> FeedbackAccepted:
        """Append feedback; raises a 503 Problem unless Redis has taken it."""
        structlog.contextvars.bind_contextvars(request_id=received.request_id)
        self.engine().check_feedback(received)
        append = partial(self._feedback.append, received, wall_clock())
        try:
            await asyncio.wait_for(self._writers.submit(append, Deadline(FEEDBACK_MS)), FEEDBACK_MS / 1000)
        except (*RedisFailure, TimeoutError, StuckError, OverloadedError) as error:
            self.metrics.feedback("refused")
            log.warning("feedback not taken", error=type(error).__name__, request_id=received.request_id)
            raise unavailable("Redis has not taken the feedback; send it again with the same event ids") from None
        self.metrics.feedback("accepted")
        return FeedbackAccepted(request_id=received.request_id, accepted=len(received.events))

    async def close(self) -> None:
        """Finish what is running, write out the served lists, close the connections."""
        self.metrics.ready(False)
        if self._loading is not None and not self._loading.done():
            self._loading.cancel()
        self._lag.close()
        if self._follower is not None:
            await asyncio.to_thread(self._follower.close)
        await asyncio.to_thread(self._shadow.close)
        self._workers.close()
        self._writers.close()
        await asyncio.to_thread(self._served.close)
        self._feedback.close()
        self._engines.close()
        if self._metrics_server is not None:
            await asyncio.to_thread(self._metrics_server.close)
        if self.traces is not None:
            await asyncio.to_thread(self.traces.close)

    async def _load(self) -> None:
        try:
            engine = await asyncio.to_thread(self._factory)
        except Exception as error:  # told by /readyz; the process stays up so that it can be asked
            self._failure = f"the bundle cannot serve: {error}"
            log.exception("bundle cannot serve")
            return
        self._engines.serve(engine)
        self.metrics.serving((engine.bundle.manifest_sha256,), 0)
        self.metrics.ready(True)
        log.info("ready", bundle=engine.bundle.manifest_sha256)
        if self._follower is not None:
            self._follower.start()

    async def _in_time(self, engine: Engine, prepared: Prepared, deadline: Deadline) -> Answer:
        try:
            work = self._workers.submit(partial(engine.answer, prepared, deadline), deadline)
        except StuckError:
            return engine.fall_back(prepared, "engine_stuck", deadline)
        except OverloadedError:  # those before it take too long: better a fallback now than one at the deadline
            return engine.fall_back(prepared, "overloaded", deadline)
        reserve_s = min(RESERVE_MS, deadline.limit_ms * RESERVE_SHARE) / 1000
        try:
            done, _ = await asyncio.wait({work}, timeout=max(deadline.left_s() - reserve_s, 0))
        finally:
            # At the deadline, or when the client is gone: still waiting, it is dropped; running, it stops at its next stage.
            if not work.done():
                deadline.cancel()
                work.cancel()
        return work.result() if done else engine.fall_back(prepared, "deadline", deadline)
