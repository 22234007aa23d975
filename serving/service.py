"""What one replica holds: the engine (once it is loaded), the logs, the metrics, a small pool of threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog

from degre_prod.config import Settings
from degre_prod.errors import ConfigurationError
from serving.clock import wall_clock
from serving.deadline import Deadline
from serving.engine import Answer, Engine
from serving.event_log import FeedbackLog, ServedLog
from serving.metrics import Metrics
from serving.preparation import Prepared
from serving.problems import unavailable
from serving.protocol import FeedbackAccepted, FeedbackRequest, RerankRequest, RerankResponse
from serving.redis_client import RedisFailure

log = structlog.get_logger(__name__)

# The engine waits for Redis and releases the interpreter lock in ONNX Runtime: a few threads keep a core busy.
THREADS = 4

EngineFactory = Callable[[], Engine]


class Service:
    """Create it inside the event loop's process, `start` it in the loop, `close` it at the end."""

    def __init__(self, engine_factory: EngineFactory, settings: Settings) -> None:
        if settings.redis.url is None:
            raise ConfigurationError(
                "redis.url: serving needs one, for example DEGRE_REDIS__URL=redis://127.0.0.1:6379"
            )
        serving, url = settings.serving, settings.redis.url.get_secret_value()
        self._factory = engine_factory
        self._engine: Engine | None = None
        self._failure: str | None = None
        self._loading: asyncio.Task[None] | None = None
        self.metrics = Metrics()
        self.metrics.ready(False)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="engine")
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

    def start(self) -> None:
        """Load the engine in the background; until it is there, `readiness` says why not."""
        self._loading = asyncio.get_running_loop().create_task(self._load())

    def readiness(self) -> str | None:
        """None when requests are taken, else the reason why not."""
        if self._engine is not None:
            return None
        return self._failure or "the bundle is being loaded, verified and warmed up"

    def engine(self) -> Engine:
        """The engine; raises a 503 Problem while there is none."""
        if self._engine is None:
            raise unavailable(self.readiness() or "not ready")
        return self._engine

    async def rerank(self, received: RerankRequest, started: float) -> RerankResponse:
        """Answer by the deadline: when the engine is not done by then, the fallback answers at once."""
        engine = self.engine()
        prepared = engine.prepare(received)
        deadline = engine.deadline(received, started)
        parse_ms = deadline.elapsed_ms()
        answer = await self._in_time(engine, prepared, deadline)
        response = answer.response
        response.timings_ms["parse"] = round(parse_ms, 3)
        if answer.entry is not None:
            self._pool.submit(engine.store, answer.entry)
        if answer.cache_outcome is not None:
            self.metrics.cache(answer.cache_outcome)
        self.metrics.answer(response.source, response.degraded, response.timings_ms)
        self._served.append(prepared, response)
        return response

    async def feedback(self, received: FeedbackRequest) -> FeedbackAccepted:
        """Append feedback; raises a 503 Problem unless Redis has taken it."""
        self.engine().check_feedback(received)
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._pool, self._feedback.append, received, wall_clock())
        except RedisFailure as error:
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
        self._pool.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._served.close)
        self._feedback.close()
        if self._engine is not None:
            self._engine.close()

    async def _load(self) -> None:
        try:
            self._engine = await asyncio.to_thread(self._factory)
        except Exception as error:  # told by /readyz; the process stays up so that it can be asked
            self._failure = f"the bundle cannot serve: {error}"
            log.exception("bundle cannot serve")
            return
        self.metrics.ready(True)
        log.info("ready", bundle=self._engine.bundle.manifest_sha256)

    async def _in_time(self, engine: Engine, prepared: Prepared, deadline: Deadline) -> Answer:
        work = asyncio.get_running_loop().run_in_executor(self._pool, engine.answer, prepared, deadline)
        done, _ = await asyncio.wait({work}, timeout=max(deadline.left_s(), 0))
        if done:
            return work.result()
        work.cancel()  # takes effect if it is still queued; if it runs, it stops at its next stage
        return engine.fall_back(prepared, "deadline", deadline)
