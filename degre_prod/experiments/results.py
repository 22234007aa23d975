"""What an analysis says: frozen, as JSON, as a table of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

GuardrailStatus = Literal["ok", "breach", "undecided", "too_early"]
PrimaryStatus = Literal["better", "worse", "undecided", "too_early"]
Verdict = Literal["mismatch", "harm", "ship", "no_harm", "undecided", "too_early"]


@dataclass(frozen=True, slots=True)
class PrimaryResult:
    """Relative effect on the primary metric, +0.02 is +2 %, with its always-valid interval and two-sided p-value.

    `effect` and interval are adjusted by the covariates, where there are any; `plain_…` are not.
    `variance_reduction`: share of the variance that the adjustment removed. Before `min_users` the interval is infinite.
    """

    metric: str
    control_value: float
    treatment_value: float
    effect: float
    low: float
    high: float
    p_value: float
    plain_effect: float
    plain_low: float
    plain_high: float
    variance_reduction: float
    harm_p_value: float
    status: PrimaryStatus


@dataclass(frozen=True, slots=True)
class GuardrailResult:
    """Harm, more is worse, on the scale of the bound. `upper` < `bound`: ok. `p_breach`: corrected over all harms."""

    metric: str
    kind: str
    bound: float
    control_value: float
    treatment_value: float
    harm: float
    lower: float
    upper: float
    p_ok: float
    p_breach: float
    status: GuardrailStatus


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One treatment against the control.

    `verdict`: `mismatch` (the arms' sizes contradict the weights: trust nothing), `harm` (roll back), `ship` (better, all
    guardrails ok), `no_harm` (all guardrails ok, primary undecided), `undecided`, `too_early` (users are missing).
    """

    arm: str
    users: int
    control_users: int
    primary: PrimaryResult
    guardrails: tuple[GuardrailResult, ...]
    verdict: Verdict
    reason: str


@dataclass(frozen=True, slots=True)
class SrmResult:
    """Sample-ratio mismatch: `p_value` is always valid, `chi_square_p_value` for comparison, right at one look only."""

    p_value: float
    chi_square_p_value: float
    mismatch: bool


@dataclass(frozen=True, slots=True)
class Results:
    """One look at an experiment."""

    control: str
    arms: tuple[ArmResult, ...]
    srm: SrmResult

    def as_dict(self) -> dict[str, Any]:
        """For JSON: numbers that JSON has no word for (∞, NaN: not known yet) are None."""
        plain: dict[str, Any] = _jsonable(asdict(self))
        return plain

    def table(self) -> str:
        """Lines of text for people, one metric a line."""
        header = ("arm", "metric", "control", "treatment", "effect", "interval", "p", "says")
        rows: list[Sequence[str]] = [header]
        for arm in self.arms:
            p = arm.primary
            interval = "not yet" if p.status == "too_early" else f"{_percent(p.low)} … {_percent(p.high)}"
            values = (_number(p.control_value), _number(p.treatment_value), _percent(p.effect), interval)
            rows.append((arm.arm, p.metric, *values, f"{p.p_value:.3f}", p.status))
            for g in arm.guardrails:
                show = _percent if g.kind == "relative" else _number
                interval = "not yet" if g.status == "too_early" else f"{show(g.lower)} … {show(g.upper)}"
                values = (
                    _number(g.control_value),
                    _number(g.treatment_value),
                    show(g.harm),
                    f"{interval}, bound {show(g.bound)}",
                )
                rows.append((arm.arm, f"{g.metric} (harm)", *values, f"{min(g.p_ok, g.p_breach):.3f}", g.status))
        widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.append(f"sample ratio: p {self.srm.p_value:.3f}, {'MISMATCH' if self.srm.mismatch else 'as planned'}")
        lines.extend(f"{arm.arm}: {arm.verdict}: {arm.reason}" for arm in self.arms)
        return "\n".join(lines)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _percent(share: float) -> str:
    return f"{share:+.2%}" if math.isfinite(share) else "?"


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "?"
