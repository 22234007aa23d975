"""The controller: looks, decides, publishes, until the experiment is over. All it knows is in Redis.

Killed at any point and started again it goes on: the plan and its history are the state, the users' accounts carry their
own position. Any number of controllers may run; the one with the lease acts, the others wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import redis
import structlog

from degre_prod.errors import MismatchError
from orchestration.registry import Registry
from orchestration.rollout.accounts import Accounts
from orchestration.rollout.aliases import follow_plan
from orchestration.rollout.decide import Decision, decide
from orchestration.rollout.evidence import gather
from orchestration.rollout.figures import figures, point
from orchestration.rollout.judged import ListJudge
from orchestration.rollout.lease import Lease
from orchestration.rollout.moves import advance, promote, rollback
from orchestration.rollout.sums import let_expire
from serving.experiment import Experiment
from serving.looks import write_look
from serving.plan import PlanError, RolloutPlan
from serving.plan_store import Author, read_history, read_plan

log = structlog.get_logger(__name__)

LOOK_S = 0.5
Ending = Literal["promoted", "rolled_back", "aborted", "ready", "none"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an experiment ended, at which stage and why. `rejected`: nobody had been shown the challenger."""

    experiment: str
    ending: Ending
    stage: str = ""
    why: str = ""
    rejected: bool = False


class Controller:
    """`step` is one look. `registry`: whose aliases follow the plan. `judge`: values lists made in shadow. `say` is told
    what happens."""

    def __init__(
        self,
        client: redis.Redis,
        *,
        registry: Registry | None = None,
        judge: ListJudge | None = None,
        by: str = "controller",
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._client, self._registry, self._judge, self._by, self._say = client, registry, judge, by, say
        self._lease = Lease(client)
        self._aliased: int | None = None
        self._told = ""

    def run(self, experiment: str | None = None, *, until_ready: bool = False, look_s: float = LOOK_S) -> Outcome:
        """Guide an experiment, the running or the last one when not named, to its end; returns how it ended.

        With `until_ready` it also returns when only people may promote. A Redis that is away is waited for.
        """
        try:
            while True:
                try:
                    decision = self.step()
                    outcome = ended(self._client, experiment)
                    if outcome is None and until_ready and decision is not None and decision.move == "ready":
                        running = read_plan(self._client)
                        if running is not None and running.experiment is not None:
                            now = running.experiment
                            outcome = Outcome(now.id, "ready", now.now.name, decision.reason)
                    if outcome is not None:
                        return outcome
                except (redis.RedisError, OSError, PlanError) as error:
                    self._once(f"Redis gives no plan ({type(error).__name__}: {error}); trying again")
                time.sleep(look_s)
        finally:
            try:
                self._lease.release()
            except (redis.RedisError, OSError):  # it expires
                log.info("the lease could not be released")

    def step(self) -> Decision | None:
        """One look: take in the streams, decide, act. None without an experiment or while another controller acts."""
        if not self._lease.hold():
            self._once("another controller acts; waiting for its lease")
            return None
        plan = read_plan(self._client)
        if plan is None:
            return None
        self._follow(plan)
        if plan.experiment is None:
            return None
        try:
            Accounts(self._client, plan.experiment, began(self._client, plan), self._lease.token).catch_up()
            self._judge_lists(plan.experiment)
            evidence = gather(self._client, plan)
            decision = decide(plan, evidence)
            told = figures(plan, evidence, decision)
            write_look(self._client, plan.experiment.id, told, point(plan, told))
            self._act(plan, decision)
        except MismatchError as error:  # someone else was faster, or the lease is lost: look again
            self._once(str(error))
            return None
        return decision

    def _judge_lists(self, experiment: Experiment) -> None:
        """Let the judge value lists made in shadow; whatever is wrong with it is told, and the rollout goes on."""
        if self._judge is None or experiment.now.share > 0:
            return
        try:
            self._judge.look(self._client, experiment, self._lease.token)
        except (redis.RedisError, OSError, MismatchError):
            raise
        except Exception as error:
            log.exception("the judge failed")
            self._once(f"the judge values nothing: {type(error).__name__}: {error}")

    def _act(self, plan: RolloutPlan, decision: Decision) -> None:
        author = Author(why=decision.reason, by=self._by, lease=self._lease.token)
        if decision.move in ("wait", "ready"):
            self._once(f"{decision.reason}: waiting for {'; '.join(decision.waiting_for)}")
            return
        # Only what was looked at may be changed: a person may have acted meanwhile.
        moves = {"advance": advance, "promote": promote, "rollback": rollback}
        after = moves[decision.move](self._client, author, plan.version)
        self._once(f"{decision.move}: {decision.reason}")
        self._follow(after)
        if after.experiment is None and plan.experiment is not None:
            let_expire(self._client, plan.experiment)

    def _follow(self, plan: RolloutPlan) -> None:
        """Let the registry's aliases follow the plan."""
        if self._registry is None or plan.version == self._aliased:
            return
        told = follow_plan(self._registry, plan)
        self._aliased = plan.version
        if told["champion"] is None:
            self._say(f"the registry does not know the champion {plan.champion.manifest_sha256[:12]}")

    def _once(self, text: str) -> None:
        if text != self._told:
            self._told = text
            self._say(text)


def began(client: redis.Redis, plan: RolloutPlan) -> datetime:
    """When the plan's experiment began, by Redis's clock."""
    assert plan.experiment is not None
    for old in read_history(client):
        if old.experiment is not None and old.experiment.id == plan.experiment.id:
            return old.experiment.since
    return plan.experiment.since


def ended(client: redis.Redis, experiment: str | None = None) -> Outcome | None:
    """How an experiment (the last one when not named) ended; None while it runs. `none`: there was no such experiment."""
    history = read_history(client)
    started = [p for p in history if p.experiment is not None and experiment in (None, p.experiment.id)]
    if not started:
        return Outcome(experiment or "", "none")
    last = started[-1]
    assert last.experiment is not None
    after = next((p for p in history if p.version == last.version + 1), None)
    if after is None or after.change is None:
        return None
    endings: dict[str, Ending] = {"promote": "promoted", "rollback": "rolled_back"}
    stage = last.experiment.now
    return Outcome(
        last.experiment.id, endings.get(after.change.action, "aborted"), stage.name, after.change.why, stage.share == 0
    )
