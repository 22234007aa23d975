"""The rollout plan: one versioned document that says which bundles serve whom. Replicas poll it; the plan is the truth.

How it is kept in Redis is in serving.plan_store.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from degre_prod.artefact import write_text
from degre_prod.errors import DegreError, explain
from serving.experiment import CHAMPION, ArmName, Experiment, Share

Action = Literal["activate", "start", "advance", "hold", "resume", "abort", "promote", "rollback"]


class PlanError(DegreError):
    """A plan that is malformed or cannot be read."""


class PlanArm(BaseModel):
    """A bundle and the share of users it serves. `bundle_uri`: a path or file:// URI that every replica can read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ArmName = CHAMPION
    bundle_uri: str = Field(min_length=1, max_length=4096)
    manifest_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    weight: Share = 1.0


class Change(BaseModel):
    """Who put this version in its place, when (Redis's clock) and why; `experiment`: the one it is about."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Action
    by: str = Field(min_length=1, max_length=256)
    why: str = Field("", max_length=4096)
    at: AwareDatetime
    experiment: str | None = None


class RolloutPlan(BaseModel):
    """`version` grows by one with each publication. The champion comes first; a challenger comes with its experiment.

    Format 1 had one arm and no record of the change; it is read as such.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: Literal[2] = 2
    version: int = Field(ge=1)
    arms: tuple[PlanArm, ...] = Field(min_length=1, max_length=2)
    experiment: Experiment | None = None
    change: Change | None = None

    @model_validator(mode="before")
    @classmethod
    def _upgrade(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("format_version") == 1:
            newer = sorted(values.keys() - {"format_version", "version", "arms"})
            if newer:
                raise ValueError(f"format 1 has no {', '.join(newer)}")
            return values | {"format_version": 2}
        return values

    @model_validator(mode="after")
    def _arms_agree(self) -> RolloutPlan:
        names = [arm.name for arm in self.arms]
        if self.experiment is None:
            if names != [CHAMPION] or self.champion.weight != 1.0:
                raise ValueError("without an experiment there is one arm, the champion, with weight 1")
            return self
        share = self.experiment.now.share
        if names != ["champion", "challenger"]:
            raise ValueError(f"an experiment has the arms champion and challenger, in this order; got {names}")
        if self.arms[1].weight != share or self.champion.weight != 1.0 - share:
            raise ValueError(
                f"stage {self.experiment.now.name} gives the challenger {share:g} and the champion the rest"
            )
        return self

    @property
    def champion(self) -> PlanArm:
        """The arm that serves when no experiment runs."""
        return self.arms[0]

    @property
    def challenger(self) -> PlanArm | None:
        """The arm on trial, if there is one."""
        return self.arms[1] if len(self.arms) > 1 else None


def weighted(champion: PlanArm, challenger: PlanArm, share: float) -> tuple[PlanArm, PlanArm]:
    """The two arms of a stage that gives the challenger `share`."""
    return (
        champion.model_copy(update={"name": "champion", "weight": 1.0 - share}),
        challenger.model_copy(update={"name": "challenger", "weight": share}),
    )


def alone(arm: PlanArm) -> tuple[PlanArm]:
    """An arm that serves everybody."""
    return (arm.model_copy(update={"name": "champion", "weight": 1.0}),)


def parse_plan(text: str | bytes) -> RolloutPlan:
    """Raises PlanError for anything but a plan of this format or the one before."""
    try:
        return RolloutPlan.model_validate(json.loads(text))
    except ValidationError as error:
        raise PlanError(f"the rollout plan is malformed: {explain(error)}") from None
    except ValueError as error:
        raise PlanError(f"the rollout plan is malformed: {error}") from None


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
