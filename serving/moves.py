"""The move that people make from the console as well as from the command line: ending an experiment. Here are also the
readings that every move of `orchestration.rollout.moves` begins with.
"""

from __future__ import annotations

from dataclasses import replace

import redis

from degre_prod.errors import MismatchError
from serving.experiment import Experiment
from serving.plan import PlanArm, RolloutPlan, alone
from serving.plan_store import Author, publish_plan, read_plan

ABORT_TRIES = 5


def abort(client: redis.Redis, author: Author, experiment: str | None = None) -> RolloutPlan:
    """The champion serves everybody and the experiment is over; returns the new plan.

    Published by compare-and-set like every move, and tried again when a controller has moved on meanwhile: whoever wants an
    experiment ended wants it ended at whatever stage it is by now. With `experiment`, only the one of this id. Raises
    MismatchError when it is not under way, PlanError for a malformed plan, redis errors.
    """
    for left in reversed(range(ABORT_TRIES)):
        plan, running, _ = under_way(client)
        if experiment not in (None, running.id):
            raise MismatchError(f"experiment {experiment} is over; {running.id} is under way now")
        told = replace(author, action="abort", experiment=running.id)
        try:
            return publish_plan(client, alone(plan.champion), plan.version, None, told)
        except MismatchError:
            if not left:
                raise
    raise AssertionError("unreachable")


def present_plan(client: redis.Redis, expected: int | None = None) -> RolloutPlan:
    """The plan, at version `expected` where it is given; raises MismatchError when there is none or another one."""
    plan = read_plan(client)
    if plan is None:
        raise MismatchError("there is no rollout plan yet; `degre bundle activate` names the first champion")
    if expected is not None and plan.version != expected:
        raise MismatchError(f"the rollout plan is at version {plan.version}, not {expected}; read it again")
    return plan


def under_way(client: redis.Redis, expected: int | None = None) -> tuple[RolloutPlan, Experiment, PlanArm]:
    """The plan, its experiment and its challenger; raises MismatchError when no experiment is under way."""
    plan = present_plan(client, expected)
    if plan.experiment is None or plan.challenger is None:
        raise MismatchError("no experiment is under way; `degre rollout start` begins one")
    return plan, plan.experiment, plan.challenger
