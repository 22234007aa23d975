"""What an experiment is to decide, said before its data: metrics, effects worth having, bounds, error rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from degre_prod.errors import ConfigurationError

Direction = Literal["up", "down"]
Kind = Literal["relative", "absolute", "ceiling"]


@dataclass(frozen=True, slots=True)
class Primary:
    """The metric that decides. `smallest_effect`: relative, 0.02 is 2 %; the effect worth having and worth waiting for."""

    metric: str
    smallest_effect: float
    better: Direction = "up"

    def __post_init__(self) -> None:
        if not 0 < self.smallest_effect < 1:
            raise ConfigurationError(
                f"smallest effect of {self.metric} is {self.smallest_effect}: within 0 … 1, e.g. 0.02"
            )


@dataclass(frozen=True, slots=True)
class Guardrail:
    """A metric that must not get worse by more than `bound`.

    `relative`: of the control's value (0.01: 1 % of it). `absolute`: difference to the control (0.002 of a share).
    `ceiling`: the treatment's own value, whatever the control has; for a p99 of 100 ms take the share of answers slower
    than 100 ms, ceiling 0.01.
    """

    metric: str
    bound: float
    kind: Kind = "relative"
    worse: Direction = "up"

    def __post_init__(self) -> None:
        if self.bound <= 0 or (self.kind == "relative" and self.bound >= 1):
            raise ConfigurationError(f"bound of {self.metric} is {self.bound}: more than 0, a relative one below 1")
        if self.kind == "ceiling" and self.worse == "down":
            raise ConfigurationError(f"{self.metric}: a ceiling is broken upwards; count the opposite event instead")


@dataclass(frozen=True, slots=True)
class AnalysisPlan:
    """Of one stage, that is of data under unchanged weights.

    `alpha`: chance to call a useless treatment better, or a harmful one unharmful, in a whole stage however often one looks.
    `harm_alpha`: chance to call a harmless one harmful, over all guardrails, the primary metric and all `stages` together.
    `power`: at which the intervals are tightest. `srm_alpha`: chance of a false alarm of the sample-ratio test.
    `min_users`: users an arm must have before the primary metric says anything, `guardrail_min_users` the same for
    guardrails: the intervals are asymptotic, see docs/rollout-statistics.md for what was simulated.
    """

    control: str
    primary: Primary
    guardrails: tuple[Guardrail, ...] = ()
    alpha: float = 0.05
    harm_alpha: float = 0.05
    power: float = 0.8
    srm_alpha: float = 0.001
    min_users: int = 1000
    guardrail_min_users: int = 100
    stages: int = 1

    def __post_init__(self) -> None:
        for name in ("alpha", "harm_alpha", "power", "srm_alpha"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigurationError(f"{name} is {getattr(self, name)}: must be within 0 … 1")
        for name, least in (("min_users", 2), ("guardrail_min_users", 2), ("stages", 1)):
            if getattr(self, name) < least:
                raise ConfigurationError(f"{name} is {getattr(self, name)}: must be at least {least}")
