"""The rollout plan: one versioned document in Redis that says which bundle serves. Replicas poll it; the plan is the truth."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import redis
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from degre_prod.artefact import write_text
from degre_prod.errors import DegreError, MismatchError, explain

PLAN_KEY = "degre:plan"


class PlanError(DegreError):
    """A plan that is malformed or cannot be read."""


class PlanArm(BaseModel):
    """A bundle and the share of users it serves. `bundle_uri`: a path or file:// URI that every replica can read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle_uri: str = Field(min_length=1, max_length=4096)
    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    weight: Annotated[float, Field(gt=0, le=1)] = 1.0


class RolloutPlan(BaseModel):
    """`version` grows by one with each publication. There is one arm, the champion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[1] = 1
    version: int = Field(ge=1)
    arms: tuple[PlanArm, ...] = Field(min_length=1, max_length=1)

    @property
    def champion(self) -> PlanArm:
        """The arm that serves when no experiment runs."""
        return self.arms[0]


def parse_plan(text: str | bytes) -> RolloutPlan:
    """Raises PlanError for anything but a plan of this format."""
    try:
        return RolloutPlan.model_validate_json(text)
    except ValidationError as error:
        raise PlanError(f"the rollout plan is malformed: {explain(error)}") from None


def read_plan(client: redis.Redis) -> RolloutPlan | None:
    """The plan in Redis, None when there is none; raises PlanError when it is malformed or Redis does not answer."""
    try:
        text = client.get(PLAN_KEY)
    except (redis.RedisError, OSError) as error:
        raise PlanError(f"Redis did not give the rollout plan: {type(error).__name__}") from error
    return None if text is None else parse_plan(text)


def publish_plan(client: redis.Redis, arms: Sequence[PlanArm], expected_version: int) -> RolloutPlan:
    """Put a plan in the place of version `expected_version` (0: there is none yet), or not at all.

    Raises MismatchError when another version is there by now, PlanError when what is there is no plan.
    """
    plan = RolloutPlan(version=expected_version + 1, arms=tuple(arms))
    with client.pipeline() as pipeline:
        try:
            pipeline.watch(PLAN_KEY)
            there = read_plan(pipeline)  # after WATCH a pipeline answers at once
            found = there.version if there else 0
            if found != expected_version:
                raise MismatchError(f"the rollout plan is at version {found}, not {expected_version}; read it again")
            pipeline.multi()
            pipeline.set(PLAN_KEY, plan.model_dump_json())
            pipeline.execute()
        except redis.WatchError:
            raise MismatchError(
                f"the rollout plan was changed while version {plan.version} was published; read it again"
            ) from None
    return plan


class LastGoodPlan:
    """The last plan a replica followed, on disk, for a start while Redis is away. One file for each Redis."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        # Not the password: a rotated one must find the same file.
        address = redis_url.rpartition("@")[2] or redis_url
        self.file = folder / f"plan-{hashlib.sha256(address.encode()).hexdigest()[:16]}.json"

    def read(self) -> RolloutPlan | None:
        """None when nothing was kept; raises PlanError when the file is damaged."""
        try:
            return parse_plan(self.file.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise PlanError(f"{self.file}: {error}") from error

    def write(self, plan: RolloutPlan) -> None:
        """Keep a plan, whole or not at all; raises OSError."""
        write_text(self.file, plan.model_dump_json() + "\n")
