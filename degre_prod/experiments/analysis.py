"""One look at an experiment: from the arms' moments to what may be said. Look as often as you like.

    results = analyse({"champion": {"ctr": m0, "errors": e0}, "challenger": {"ctr": m1, "errors": e1}}, plan, phases)

The cost does not depend on the number of users. Moments are of one stage, in which weights did not change, and of users whose
`Assignment.counted` is True. Stages are not added up: users who changed arms would count in both, and a stage at another
time of the week with another share would make arms differ (Simpson's paradox); instead `plan.stages` divides `harm_alpha`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from degre_prod.errors import DataError
from degre_prod.experiments.cuped import adjusted_difference, difference
from degre_prod.experiments.guardrails import (
    Harm,
    breach_p_value,
    corrected,
    harm_of,
    lower_bound,
    ok_p_value,
    upper_bound,
)
from degre_prod.experiments.moments import COVARIATES, Moments, no_moments
from degre_prod.experiments.plan import AnalysisPlan, Guardrail
from degre_prod.experiments.ratio import ratio
from degre_prod.experiments.results import (
    ArmResult,
    GuardrailResult,
    GuardrailStatus,
    PrimaryResult,
    PrimaryStatus,
    Results,
    SrmResult,
    Verdict,
)
from degre_prod.experiments.sequential import half_width, mixture_scale, one_sided_p_value, p_value
from degre_prod.experiments.srm import Phase, chi_square_p_value, sequential_p_value

ArmMoments = Mapping[str, Moments]
"""Metric → moments of one arm. A metric that is missing has no users yet."""


def analyse(moments: Mapping[str, ArmMoments], plan: AnalysisPlan, phases: Sequence[Phase] = ()) -> Results:
    """What the data of one stage say. `moments`: arm → metric → moments, with the control among the arms.

    `phases`: new users by arm under each set of weights, for the sample-ratio test. Raises DataError without the control or
    without a treatment.
    """
    treatments = [arm for arm in moments if arm != plan.control]
    if plan.control not in moments or not treatments:
        raise DataError(f"arms {', '.join(moments) or 'none'}: need the control {plan.control} and a treatment")
    p = sequential_p_value(phases)
    srm = SrmResult(p, chi_square_p_value(phases), p < plan.srm_alpha)
    arms = tuple(
        _arm(arm, moments[arm], moments[plan.control], plan, len(treatments), mismatch=srm.mismatch)
        for arm in treatments
    )
    return Results(plan.control, arms, srm)


def _arm(
    arm: str, treatment: ArmMoments, control: ArmMoments, plan: AnalysisPlan, treatments: int, *, mismatch: bool
) -> ArmResult:
    alpha, harm_alpha = plan.alpha / treatments, plan.harm_alpha / (plan.stages * treatments)
    pair = _pair(treatment, control, plan.primary.metric)
    pairs = [_pair(treatment, control, guardrail.metric) for guardrail in plan.guardrails]
    harms = [
        harm_of(guardrail, t, c, alpha=alpha, power=plan.power)
        for guardrail, (t, c) in zip(plan.guardrails, pairs, strict=True)
    ]
    known = [_enough(guardrail, t, c, plan) for guardrail, (t, c) in zip(plan.guardrails, pairs, strict=True)]
    primary_known = _users(*pair) >= plan.min_users
    uncorrected = [_primary_harm(*pair, plan), *(float(breach_p_value(harm)) for harm in harms)]
    p_breach = corrected(uncorrected, [primary_known, *known])
    primary = _primary(*pair, plan, alpha, known=primary_known, p_harm=p_breach[0], harm_alpha=harm_alpha)
    guardrails = tuple(
        _guardrail(plan.guardrails[k], harms[k], *pairs[k], known[k], p_breach[k + 1], alpha, harm_alpha, len(p_breach))
        for k in range(len(harms))
    )
    verdict, reason = _verdict(primary, guardrails, plan, mismatch=mismatch)
    return ArmResult(arm, int(pair[0].count), int(pair[1].count), primary, guardrails, verdict, reason)


def _primary_harm(treatment: Moments, control: Moments, plan: AnalysisPlan) -> float:
    effect, variance = adjusted_difference(treatment, control, "relative")
    return float(one_sided_p_value(-_sign(plan) * effect, variance, _tau(plan)))


def _primary(
    treatment: Moments,
    control: Moments,
    plan: AnalysisPlan,
    alpha: float,
    *,
    known: bool,
    p_harm: float,
    harm_alpha: float,
) -> PrimaryResult:
    tau = _tau(plan)
    effect, variance = adjusted_difference(treatment, control, "relative")
    plain, plain_variance = difference(treatment, control, "relative")
    p = float(p_value(effect, variance, tau)) if known else 1.0
    status: PrimaryStatus = "undecided" if known else "too_early"
    if known and p_harm < harm_alpha:
        status = "worse"
    elif known and p < alpha and _sign(plan) * effect > 0:
        status = "better"
    low, high = _interval(effect, variance, tau, alpha, known)
    plain_low, plain_high = _interval(plain, plain_variance, tau, alpha, known)
    return PrimaryResult(
        metric=plan.primary.metric,
        control_value=float(ratio(control)),
        treatment_value=float(ratio(treatment)),
        effect=float(np.expm1(effect)),
        low=low,
        high=high,
        p_value=p,
        plain_effect=float(np.expm1(plain)),
        plain_low=plain_low,
        plain_high=plain_high,
        variance_reduction=float(1 - variance / plain_variance) if plain_variance > 0 else 0.0,
        harm_p_value=p_harm,
        status=status,
    )


def _interval(effect: np.ndarray, variance: np.ndarray, tau: float, alpha: float, known: bool) -> tuple[float, float]:
    width = half_width(variance, tau, alpha)
    if not known or not np.isfinite(width):
        return -np.inf, np.inf
    return float(np.expm1(effect - width)), float(np.expm1(effect + width))


def _guardrail(
    guardrail: Guardrail,
    harm: Harm,
    treatment: Moments,
    control: Moments,
    known: bool,
    p_breach: float,
    alpha: float,
    harm_alpha: float,
    tests: int,
) -> GuardrailResult:
    p_ok = float(ok_p_value(harm)) if known else 1.0
    status: GuardrailStatus = "undecided" if known else "too_early"
    if known and p_breach < harm_alpha:
        status = "breach"
    elif known and p_ok < alpha:
        status = "ok"
    return GuardrailResult(
        metric=guardrail.metric,
        kind=guardrail.kind,
        bound=guardrail.bound,
        control_value=float(ratio(control)),
        treatment_value=float(ratio(treatment)),
        harm=harm.shown(harm.estimate),
        lower=harm.shown(lower_bound(harm, harm_alpha / tests)) if known else -np.inf,
        upper=harm.shown(upper_bound(harm, alpha)) if known else np.inf,
        p_ok=p_ok,
        p_breach=p_breach,
        status=status,
    )


def _verdict(
    primary: PrimaryResult, guardrails: Sequence[GuardrailResult], plan: AnalysisPlan, *, mismatch: bool
) -> tuple[Verdict, str]:
    if mismatch:
        return "mismatch", "the arms' numbers of users contradict their weights; assignment or logging is broken"
    broken = [f"{g.metric} is beyond its bound {g.bound:g} ({g.harm:.4g})" for g in guardrails if g.status == "breach"]
    if primary.status == "worse":
        broken.insert(0, f"{primary.metric} is worse ({primary.effect:+.2%})")
    if broken:
        return "harm", "; ".join(broken)
    early = [g.metric for g in guardrails if g.status == "too_early"]
    if primary.status == "too_early" or early:
        names = ", ".join(dict.fromkeys([primary.metric, *early] if primary.status == "too_early" else early))
        return (
            "too_early",
            f"too few users for {names}: {plan.min_users} an arm, for guardrails {plan.guardrail_min_users}",
        )
    open_ones = [g.metric for g in guardrails if g.status == "undecided"]
    if open_ones:
        return "undecided", f"harm beyond the bound is not ruled out for {', '.join(open_ones)}"
    if primary.status == "better":
        return "ship", f"{primary.metric} is better ({primary.effect:+.2%}) and every guardrail holds"
    return "no_harm", f"every guardrail holds; {primary.metric} is undecided"


def _pair(treatment: ArmMoments, control: ArmMoments, metric: str) -> tuple[Moments, Moments]:
    t, c = treatment.get(metric), control.get(metric)
    columns = next((m.columns for m in (t, c) if m is not None and m.count > 0), COVARIATES)
    empty = no_moments(columns)
    return t if t is not None and t.count > 0 else empty, c if c is not None and c.count > 0 else empty


def _users(treatment: Moments, control: Moments) -> int:
    return int(min(treatment.count, control.count))


def _enough(guardrail: Guardrail, treatment: Moments, control: Moments, plan: AnalysisPlan) -> bool:
    users = int(treatment.count) if guardrail.kind == "ceiling" else _users(treatment, control)
    return users >= plan.guardrail_min_users


def _sign(plan: AnalysisPlan) -> int:
    return 1 if plan.primary.better == "up" else -1


def _tau(plan: AnalysisPlan) -> float:
    return mixture_scale(float(np.log1p(plan.primary.smallest_effect)), plan.alpha, plan.power)
