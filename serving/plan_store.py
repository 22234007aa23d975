"""The rollout plan in Redis: read, replaced by compare-and-set, every version kept in a history without gaps."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, cast

import redis

from degre_prod.errors import MismatchError
from serving.experiment import Experiment
from serving.plan import Action, Change, PlanArm, PlanError, RolloutPlan, parse_plan

PLAN_KEY = "degre:plan"
HISTORY_KEY = "degre:plan:history"
LEASE_KEY = "degre:rollout:lease"


@dataclass(frozen=True, slots=True)
class Author:
    """Who changes the plan, what is done and why. `lease`: the token without which a controller must not publish."""

    action: Action = "activate"
    why: str = ""
    by: str = ""
    lease: str | None = None
    experiment: str | None = None


def read_plan(client: redis.Redis) -> RolloutPlan | None:
    """The plan in Redis, None when there is none; raises PlanError when it is malformed or Redis does not answer."""
    try:
        text = client.get(PLAN_KEY)
    except (redis.RedisError, OSError) as error:
        raise PlanError(f"Redis did not give the rollout plan: {type(error).__name__}") from error
    return None if text is None else parse_plan(cast(bytes, text))


def redis_time(client: redis.Redis) -> datetime:
    """Redis's clock: the one that all controllers share."""
    seconds, micros = cast(tuple[int, int], client.time())
    return datetime.fromtimestamp(seconds + micros / 1e6, UTC)


def publish_plan(
    client: redis.Redis,
    arms: Sequence[PlanArm],
    expected_version: int,
    experiment: Experiment | None = None,
    author: Author | None = None,
) -> RolloutPlan:
    """Put a plan in the place of version `expected_version` (0: there is none yet), or not at all; history with it.

    Raises MismatchError when another version is there by now or the author's lease has gone to someone else, PlanError
    when what is there is no plan.
    """
    author = author or Author()
    with client.pipeline() as pipeline:
        try:
            pipeline.watch(PLAN_KEY, LEASE_KEY)
            there = read_plan(pipeline)  # after WATCH a pipeline answers at once
            found = there.version if there else 0
            if found != expected_version:
                raise MismatchError(f"the rollout plan is at version {found}, not {expected_version}; read it again")
            if author.lease is not None and pipeline.get(LEASE_KEY) != author.lease.encode():
                raise MismatchError("another controller holds the lease on the rollout plan")
            about = author.experiment or (experiment.id if experiment else None)
            change = Change(
                action=author.action,
                by=author.by or whoami(),
                why=author.why,
                at=redis_time(pipeline),
                experiment=about,
            )
            plan = RolloutPlan(version=expected_version + 1, arms=tuple(arms), experiment=experiment, change=change)
            text = plan.model_dump_json()
            unrecorded = there.model_dump_json() if there and not pipeline.exists(HISTORY_KEY) else None
            pipeline.multi()
            if unrecorded is not None:  # published by a version that kept no history
                pipeline.rpush(HISTORY_KEY, unrecorded)
            pipeline.set(PLAN_KEY, text)
            pipeline.rpush(HISTORY_KEY, text)
            pipeline.execute()
        except redis.WatchError:
            raise MismatchError(
                f"the rollout plan was changed while version {expected_version + 1} was published; read it again"
            ) from None
    return plan


def read_history(client: redis.Redis, newest: int | None = None) -> list[RolloutPlan]:
    """Every version of the plan, or only the newest ones, oldest first; raises PlanError when one is malformed."""
    first = 0 if newest is None else -newest
    return [parse_plan(text) for text in cast(list[bytes], client.lrange(HISTORY_KEY, first, -1))]


def history_gaps(history: Sequence[RolloutPlan]) -> list[int]:
    """Versions that are missing between the first and the last one, or that follow no version one below them."""
    return [later.version for earlier, later in pairwise(history) if later.version != earlier.version + 1]


def holder(client: redis.Redis) -> str | None:
    """Which controller has the lease, as user@host/process; None while no controller acts."""
    token = cast(bytes | None, client.get(LEASE_KEY))
    return None if token is None else token.decode().rpartition("/")[0]


def whoami() -> str:
    """user@host."""
    try:
        user: Any = getpass.getuser()
    except (KeyError, OSError):  # a container without a user of this number
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
