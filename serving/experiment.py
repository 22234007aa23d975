"""What a rollout plan says of its experiment: who gets the challenger, stage by stage, and what it is judged by.

A stage gives the challenger a share of the users; share 0 is *shadow*: it answers beside the champion and nobody sees it.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from degre_prod.experiments.assignment import Allocation, Holdout

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
ArmName = Literal["champion", "challenger"]
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Stage(_Part):
    """It ends when `min_seconds` have passed and each arm has `min_samples` users (in shadow: lists computed)."""

    name: str = Field(pattern=r"^[A-Za-z0-9%._-]{1,32}$")
    share: Share = Field(description="of the users in scope, to the challenger")
    min_seconds: float = Field(3600.0, ge=0)
    min_samples: int = Field(1000, ge=1)


class PrimaryMetric(_Part):
    """Feedback events of one objective a request, by user. `smallest_effect`: relative to the champion, worth having."""

    objective: str = Field("click", min_length=1, max_length=128)
    smallest_effect: float = Field(0.01, gt=0, lt=1)
    window_seconds: float = Field(1800.0, gt=0, description="feedback later than this after its list does not count")
    decision: Literal["superior", "non_inferior"] = Field(
        "superior",
        description="what must be shown before all users get the challenger: more than the champion, or not less than it by "
        "the smallest effect",
    )


class Guardrail(_Part):
    """A share of requests in which the challenger may exceed the champion by `max_rise` at most.

    fallback: answered by a fallback · error: the model failed · p99: took longer than `bound_ms` (with the default
    `max_rise` of 1 % that is a bound on the 99th percentile, whatever slows both arms alike).
    """

    metric: Literal["fallback", "error", "p99"]
    max_rise: float = Field(0.01, gt=0, lt=1)
    bound_ms: float | None = Field(None, gt=0, le=10_000)

    @model_validator(mode="after")
    def _bound(self) -> Guardrail:
        if (self.metric == "p99") != (self.bound_ms is not None):
            raise ValueError("bound_ms belongs to p99, and p99 needs it")
        return self


class ShadowLimits(_Part):
    """What the challenger may do wrong off the response path, as shares of the lists it was asked for."""

    share: float = Field(0.1, gt=0, le=1, description="of live requests that the challenger answers, too")
    max_failed: Share = Field(0.01, description="the model failed or made an invalid list")
    max_late: Share = Field(0.05, description="not done within the request's deadline")


STAGES = (
    Stage(name="shadow", share=0.0),
    Stage(name="1%", share=0.01),
    Stage(name="5%", share=0.05),
    Stage(name="25%", share=0.25),
    Stage(name="50%", share=0.5),
    Stage(name="100%", share=1.0),
)
GUARDRAILS = (
    Guardrail(metric="fallback"),
    Guardrail(metric="error"),
    Guardrail(metric="p99", bound_ms=100.0),
)


class Design(_Part):
    """An experiment as it is planned, before it runs: the document that `degre rollout start --plan` reads.

    `scopes`: context column to the values that take part; a request outside them gets the champion and does not count.
    `holdout`: share of users who keep the champion at every stage and do not count. `overrides`: testers, who do not
    count either. `promote`: whether the machine may make the challenger the champion, or waits for `degre rollout promote`.
    """

    id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    salt: str = Field("", max_length=128, description="of the assignment; the id when empty")
    stages: tuple[Stage, ...] = Field(STAGES, min_length=1, max_length=16)
    primary: PrimaryMetric = PrimaryMetric()
    guardrails: tuple[Guardrail, ...] = GUARDRAILS
    shadow: ShadowLimits = ShadowLimits()
    alpha: float = Field(0.05, gt=0, lt=0.5, description="chance to call a useless challenger better in a stage")
    harm_alpha: float = Field(0.05, gt=0, lt=0.5, description="chance to call a harmless one harmful, over all stages")
    srm_alpha: float = Field(0.001, gt=0, lt=0.5, description="chance of a false alarm of the sample-ratio test")
    min_users: int = Field(1000, ge=2, description="of an arm, before the primary metric says anything")
    guardrail_min_users: int = Field(100, ge=2, description="of an arm, before the guardrails do")
    scopes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    holdout: float = Field(0.0, ge=0, lt=1)
    overrides: dict[str, ArmName] = Field(default_factory=dict, max_length=10_000)
    promote: bool = True

    @model_validator(mode="after")
    def _grows(self) -> Design:
        shares = [s.share for s in self.stages]
        if any(later <= earlier for earlier, later in pairwise(shares)):
            raise ValueError(f"the stages' shares must grow, got {shares}")
        if len({s.name for s in self.stages}) < len(self.stages):
            raise ValueError("two stages have the same name")
        if len({g.metric for g in self.guardrails}) < len(self.guardrails):
            raise ValueError("two guardrails have the same metric")
        return self


class Experiment(Design):
    """A design under way: at stage number `stage` since `since` (Redis's clock); `held`: the machine leaves it there."""

    stage: int = Field(0, ge=0)
    since: AwareDatetime
    held: bool = False

    @model_validator(mode="after")
    def _stage(self) -> Experiment:
        if self.stage >= len(self.stages):
            raise ValueError(f"stage {self.stage} of {len(self.stages)}")
        return self

    @property
    def now(self) -> Stage:
        """The present stage."""
        return self.stages[self.stage]

    @property
    def controlled(self) -> bool:
        """Whether both arms have users now."""
        return 0 < self.now.share < 1

    @property
    def allocation(self) -> Allocation:
        """Who gets which arm at the present stage."""
        share = self.now.share
        overrides: dict[int | str, str] = {user: str(arm) for user, arm in self.overrides.items()}
        return Allocation(
            self.id,
            self.salt or self.id,
            {CHAMPION: 1.0 - share, CHALLENGER: share},
            overrides,
            self.scopes,
            Holdout(self.holdout) if self.holdout else None,
        )
