"""Following the rollout plan: a new bundle is loaded and warmed beside the serving one, then takes its place by pointer.

Requests keep the engine they began with, so that no answer mixes two bundles. The champion before stays loaded: going
back to it is another exchange of pointers. A bundle that cannot serve is refused, and the present one serves on; a
challenger that leaves the plan leaves the requests before anything new is loaded.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import redis
import structlog

from degre_prod.config import Settings
from degre_prod.errors import ConfigurationError
from serving.bundles import load_arm
from serving.engine import Engine
from serving.engines import Engines, Trial
from serving.metrics import Metrics
from serving.plan import LastGoodPlan, PlanArm, PlanError, RolloutPlan
from serving.plan_store import read_plan
from serving.redis_client import RedisFailure, request_path_client
from serving.replica import BuildEngine
from serving.reports import ReplicaReport, withdraw_report, write_report

log = structlog.get_logger(__name__)

POLL_S = 0.5
PLAN_TIMEOUT_MS = 1000.0
UNREADABLE_S = 10.0  # without a readable plan for longer than this, the champion alone serves
RETRY_S = 30.0  # until a refused bundle is tried again: it may have been copied meanwhile

Load = Callable[[PlanArm], Engine]
"""Raises whatever makes the bundle unfit to serve."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A bundle that the plan names and that cannot serve."""

    manifest_sha256: str
    reason: str


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
    """Polls the plan in a thread of its own, and reports what the replica serves."""

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
        self._loading: str | None = None
        self.replica = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        self.metrics_address: str | None = None  # told in the reports
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
        try:
            withdraw_report(self._client, self.replica)
        except RedisFailure:  # it expires
            log.info("the report could not be withdrawn")
        self._client.close()

    def step(self) -> None:
        """One poll: read the plan, follow it if it is new, report."""
        try:
            plan = read_plan(self._client)
            if plan is None and self.plan is not None:
                raise PlanError("the rollout plan has vanished from Redis")
        except PlanError as error:
            self._unreadable(error)
            self._report(complain=False)  # or a replica that serves on would seem gone
            return
        again, self._read_at, self._told = self._told, time.monotonic(), False
        self._metrics.plan_readable(True)
        self._engines.close_displaced()
        may_try = plan != self._tried or time.monotonic() >= self._retry_at
        if plan is not None and (again or self._behind(plan)) and may_try:
            self._follow(plan)
        self._report()

    def _behind(self, plan: RolloutPlan) -> bool:
        return plan != self.plan or (plan.challenger is not None and self._engines.trial is None)

    def _follow(self, plan: RolloutPlan) -> None:
        """Serve what is held of the plan at once, then what had to be loaded."""
        champion = plan.champion
        fate = self._fate(champion)
        if fate == "loaded":
            if self._engines.current is not None:
                self._engines.serve(self._engines.current)  # the plan knows nothing of the challenger before
            engine = self._loaded(champion, plan)
            if engine is None:
                return
            self._engines.serve(engine)
        self._apply(plan)
        self._keep(plan)
        arm = plan.challenger
        if arm is not None and self._engines.trial is None:
            challenger = self._loaded(arm, plan)
            if challenger is None:
                return
            if self._superseded(plan):
                challenger.close()
                return
            self._apply(plan, challenger)
        self.refused, self._tried = None, None
        self._metrics.swap(fate)
        log.info("following the plan", bundle=champion.manifest_sha256, version=plan.version, fate=fate)

    def _apply(self, plan: RolloutPlan, challenger: Engine | None = None) -> None:
        """Exchange the pointers; the champion of the plan is held."""
        champion = self._engines.held(plan.champion.manifest_sha256)
        assert champion is not None
        arm = plan.challenger
        if arm is not None and challenger is None:
            challenger = self._engines.held(arm.manifest_sha256)
        trial = None
        if plan.experiment is not None and challenger is not None:
            trial = Trial(champion, challenger, plan.experiment, plan.experiment.allocation)
        self._engines.serve(champion, trial)
        self.plan = plan
        on_trial = (trial.challenger.bundle.manifest_sha256,) if trial else ()
        self._metrics.serving((plan.champion.manifest_sha256, *on_trial), plan.version)

    def _loaded(self, arm: PlanArm, plan: RolloutPlan) -> Engine | None:
        """The arm's engine, None when it cannot serve: whatever is wrong with it, the present ones serve on."""
        self._loading = arm.manifest_sha256
        self._report()
        try:
            return self._load(arm)
        except Exception as error:
            self._tried, self._retry_at = plan, time.monotonic() + RETRY_S
            self.refused = Refusal(arm.manifest_sha256, f"{type(error).__name__}: {error}")
            self._metrics.swap("refused")
            log.exception("bundle refused", bundle=arm.manifest_sha256, uri=arm.bundle_uri, version=plan.version)
            return None
        finally:
            self._loading = None

    def _superseded(self, plan: RolloutPlan) -> bool:
        """Whether the plan changed while a bundle was loaded; an abort meanwhile must not let it serve."""
        try:
            return read_plan(self._client) != plan
        except PlanError:
            return True

    def _fate(self, champion: PlanArm) -> str:
        """What following a plan with this champion comes to: see Metrics.swap."""
        held, trial = self._engines.held(champion.manifest_sha256), self._engines.trial
        if held is None:
            return "loaded"
        if held is self._engines.current:
            return "kept"
        return "promoted" if trial is not None and held is trial.challenger else "went_back"

    def _keep(self, plan: RolloutPlan) -> None:
        if self._kept is not None:
            try:
                self._kept.write(plan)
            except OSError as error:
                log.error("the plan could not be kept on disk", file=str(self._kept.file), error=str(error))

    def _report(self, *, complain: bool = True) -> None:
        current, trial, plan, refused = self._engines.current, self._engines.trial, self.plan, self.refused
        report = ReplicaReport(
            replica=self.replica,
            version=plan.version if plan else 0,
            readable=self.readable(),
            champion=current.bundle.manifest_sha256 if current else "",
            challenger=trial.challenger.bundle.manifest_sha256 if trial else None,
            stage=trial.experiment.now.name if trial else None,
            loading=self._loading,
            refused=refused.manifest_sha256 if refused else None,
            refused_because=refused.reason if refused else None,
            metrics=self.metrics_address,
        )
        try:
            write_report(self._client, report)
        except RedisFailure as error:
            if complain:
                log.warning("the report was not taken", error=type(error).__name__)

    def _unreadable(self, error: PlanError) -> None:
        if self.readable() or self._told:
            return
        self._told = True
        self._metrics.plan_readable(False)
        if self._engines.current is not None:
            self._engines.serve(self._engines.current)
        log.error("the rollout plan is unreadable; the champion alone serves", error=str(error))

    def _run(self) -> None:
        jitter = random.Random()
        while not self._closing.wait(POLL_S * jitter.uniform(0.9, 1.1)):
            try:
                self.step()
            except Exception:  # the thread must live: a replica deaf to the plan could not be rolled back
                log.exception("following the plan failed")
