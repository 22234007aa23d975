"""Following the rollout plan: a new bundle is loaded and warmed beside the serving one, then takes its place by pointer.

Requests keep the engine they began with, so that no answer mixes two bundles. The engine before stays loaded: going back
to it is another exchange of pointers. A bundle that cannot serve is refused, and the present one serves on.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import redis
import structlog

from degre_prod.config import Settings
from degre_prod.errors import ConfigurationError
from serving.bundles import load_arm
from serving.engine import Engine
from serving.metrics import Metrics
from serving.plan import LastGoodPlan, PlanArm, PlanError, RolloutPlan, read_plan
from serving.protocol import MAX_DEADLINE_MS
from serving.redis_client import request_path_client
from serving.replica import BuildEngine

log = structlog.get_logger(__name__)

POLL_S = 0.5
PLAN_TIMEOUT_MS = 1000.0
UNREADABLE_S = 10.0  # without a readable plan for longer than this, the champion alone serves
RETRY_S = 30.0  # until a refused bundle is tried again: it may have been copied meanwhile
KEPT_S = MAX_DEADLINE_MS / 1000 + 5  # a displaced engine may still be answering

Load = Callable[[PlanArm], Engine]
"""Raises whatever makes the bundle unfit to serve."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A bundle that the plan names and that cannot serve."""

    manifest_sha256: str
    reason: str


class Engines:
    """The engine that answers and the one before it. Reading `current` needs no lock; one thread exchanges."""

    def __init__(self) -> None:
        self.current: Engine | None = None
        self._previous: Engine | None = None
        self._displaced: list[tuple[float, Engine]] = []

    def held(self, manifest_sha256: str) -> Engine | None:
        """The engine of that bundle, if it is one of the two."""
        for engine in (self.current, self._previous):
            if engine is not None and engine.bundle.manifest_sha256 == manifest_sha256:
                return engine
        return None

    def serve(self, engine: Engine) -> None:
        """Let `engine` answer from the next request on."""
        if engine is self.current:
            return
        if self._previous is not None and self._previous is not engine:
            self._displaced.append((time.monotonic() + KEPT_S, self._previous))
        self._previous, self.current = self.current, engine

    def close_displaced(self) -> None:
        """Close what no request can be using any more."""
        now = time.monotonic()
        for _, engine in [d for d in self._displaced if d[0] <= now]:
            engine.close()
        self._displaced = [d for d in self._displaced if d[0] > now]

    def close(self) -> None:
        """Close all of them."""
        for engine in (self.current, self._previous, *(engine for _, engine in self._displaced)):
            if engine is not None:
                engine.close()


def first_engine(given: Callable[[], Engine], load: Load, client: redis.Redis, kept: LastGoodPlan | None) -> Engine:
    """The engine a replica starts with: the plan's, while Redis is away the last good plan's, else the given bundle's.

    Raises what `given` raises.
    """
    plan: RolloutPlan | None = None
    try:
        plan = read_plan(client)
    except PlanError as error:
        log.warning("no rollout plan at the start", error=str(error))
        try:
            plan = kept.read() if kept is not None else None
        except PlanError as damaged:
            log.error("the last good plan is damaged", error=str(damaged))
    if plan is not None:
        try:
            return load(plan.champion)
        except Exception:  # whatever is wrong with it, the bundle given at the start can serve
            log.exception("the plan's bundle cannot serve", bundle=plan.champion.manifest_sha256, version=plan.version)
    return given()


def replica_engines(bundle: Path, settings: Settings, build: BuildEngine) -> tuple[Engine, Load]:
    """The engine a replica starts with and how it makes others; raises BundleError, ConfigurationError."""
    from degre_prod.bundle import load_bundle

    if settings.redis.url is None:
        raise ConfigurationError("redis.url: serving needs one, for example DEGRE_REDIS__URL=redis://127.0.0.1:6379")
    url = settings.redis.url.get_secret_value()

    def load(arm: PlanArm) -> Engine:
        return build(load_arm(arm), settings)

    def given() -> Engine:
        return build(load_bundle(bundle), settings)

    kept = None if settings.serving.state_dir is None else LastGoodPlan(settings.serving.state_dir, url)
    with request_path_client(url, PLAN_TIMEOUT_MS) as client:
        return first_engine(given, load, client, kept), load


class PlanFollower:
    """Polls the plan in a thread of its own."""

    def __init__(
        self, client: redis.Redis, engines: Engines, load: Load, metrics: Metrics, kept: LastGoodPlan | None
    ) -> None:
        self._client, self._engines, self._load, self._metrics, self._kept = client, engines, load, metrics, kept
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="plan", daemon=True)
        self._read_at = time.monotonic()
        self._told = False
        self._retry_at = 0.0
        self._tried: RolloutPlan | None = None
        self.plan: RolloutPlan | None = None
        self.refused: Refusal | None = None

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def readable(self) -> bool:
        """False when Redis has given no valid plan, nor said that there is none, for UNREADABLE_S."""
        return time.monotonic() - self._read_at <= UNREADABLE_S

    def close(self) -> None:
        """Stop polling; a bundle being loaded is loaded to its end, by a thread that keeps no process alive."""
        self._closing.set()
        self._client.close()

    def step(self) -> None:
        """One poll: read the plan, follow it if it is new."""
        try:
            plan = read_plan(self._client)
            if plan is None and self.plan is not None:
                raise PlanError("the rollout plan has vanished from Redis")
        except PlanError as error:
            self._unreadable(error)
            return
        self._read_at, self._told = time.monotonic(), False
        self._metrics.plan_readable(True)
        self._engines.close_displaced()
        if plan is not None and plan != self.plan and (plan != self._tried or time.monotonic() >= self._retry_at):
            self._follow(plan)

    def _follow(self, plan: RolloutPlan) -> None:
        arm = plan.champion
        engine = self._engines.held(arm.manifest_sha256)
        fate = "kept" if engine is self._engines.current else "went_back"
        if engine is None:
            try:
                engine, fate = self._load(arm), "loaded"
            except Exception as error:  # whatever is wrong with it, the present one serves on
                self._tried, self._retry_at = plan, time.monotonic() + RETRY_S
                self.refused = Refusal(arm.manifest_sha256, f"{type(error).__name__}: {error}")
                self._metrics.swap("refused")
                log.exception("bundle refused", bundle=arm.manifest_sha256, uri=arm.bundle_uri, version=plan.version)
                return
        self._engines.serve(engine)
        self.plan, self.refused = plan, None
        self._metrics.swap(fate)
        self._metrics.serving(arm.manifest_sha256, plan.version)
        log.info("following the plan", bundle=arm.manifest_sha256, version=plan.version, fate=fate)
        if self._kept is not None:
            try:
                self._kept.write(plan)
            except OSError as error:
                log.error("the plan could not be kept on disk", file=str(self._kept.file), error=str(error))

    def _unreadable(self, error: PlanError) -> None:
        if self.readable() or self._told:
            return
        self._told = True
        self._metrics.plan_readable(False)
        log.error("the rollout plan is unreadable; serving goes on as it is", error=str(error))

    def _run(self) -> None:
        jitter = random.Random()
        while not self._closing.wait(POLL_S * jitter.uniform(0.9, 1.1)):
            try:
                self.step()
            except Exception:  # the thread must live: a replica deaf to the plan could not be rolled back
                log.exception("following the plan failed")
