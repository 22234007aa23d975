"""The machine's rules: from the plan and what is known to what is done next. Pure.

1. A replica that refuses the challenger's bundle, too many failed or late lists in shadow, a sample-ratio mismatch, a
   guardrail or the primary metric beyond its bound: back to the champion, at once, at every stage.
2. A stage ends when its time is over, it has its users (in shadow: lists), and every replica serves the plan. While the
   primary metric looks worse by the smallest effect or more, the stage goes on, until that is shown or gone.
3. Before the stage that leaves the champion no users, the primary metric must have shown what the plan asks for; an
   effect that cannot be worth having any more is a reason to go back.
4. After the last stage the challenger is the champion, unless the plan leaves that to people.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import betainc, betaln

from degre_prod.experiments.results import ArmResult, GuardrailResult
from orchestration.rollout.evidence import Evidence, ShadowCounts
from serving.experiment import Experiment
from serving.plan import RolloutPlan

Move = Literal["wait", "advance", "promote", "rollback", "ready"]
SHADOW_ALPHA = 0.001  # chance of a false alarm about a challenger in shadow, however often one looks


@dataclass(frozen=True, slots=True)
class Decision:
    """`ready`: everything is shown, and the plan leaves the promotion to people. `waiting_for`: what is missing."""

    move: Move
    reason: str
    waiting_for: tuple[str, ...] = ()


def decide(plan: RolloutPlan, evidence: Evidence) -> Decision:
    """What the machine does next with a plan that has an experiment."""
    assert plan.experiment is not None
    experiment = plan.experiment
    if reason := harm(plan, evidence):
        return Decision("rollback", f"{experiment.now.name}: {reason}")
    if experiment.held:
        return Decision("wait", "held", ("`degre rollout resume`",))
    waiting = [*_time_and_users(experiment, evidence), *_replicas(plan, evidence)]
    last = experiment.stage == len(experiment.stages) - 1
    if experiment.controlled and (looks := _looks_worse(experiment, evidence)):
        waiting.append(looks)
    elif experiment.controlled and (last or experiment.stages[experiment.stage + 1].share == 1):
        verdict, reason = _shown(experiment, evidence)
        if verdict == "futile" and not waiting:
            return Decision("rollback", f"{experiment.now.name}: {reason}")
        if verdict != "shown":
            waiting.append(reason)
    if waiting:
        return Decision("wait", f"{experiment.now.name} goes on", tuple(waiting))
    passed = f"{experiment.now.name} is passed: {_summary(experiment, evidence)}"
    if not last:
        return Decision("advance", passed)
    if not experiment.promote:
        return Decision("ready", passed, ("`degre rollout promote`",))
    return Decision("promote", passed)


def harm(plan: RolloutPlan, evidence: Evidence) -> str | None:
    """Why the challenger has to go, None while it may stay."""
    assert plan.experiment is not None
    assert plan.challenger is not None
    experiment = plan.experiment
    for report in evidence.reports:
        if report.refused == plan.challenger.manifest_sha256:
            return f"replica {report.replica} refuses the bundle: {report.refused_because}"
    if experiment.now.share == 0:
        return _shadow_harm(experiment, evidence.shadow)
    arm = _arm(evidence)
    if arm is None or evidence.results is None:
        return None
    if evidence.results.srm.mismatch:
        users = ", ".join(f"{name} {count:,}" for name, count in evidence.users.items())
        return f"sample-ratio mismatch: {users} users contradict the weights (p {evidence.results.srm.p_value:.1e})"
    broken = [_broken(g) for g in arm.guardrails if g.status == "breach"]
    p = arm.primary
    if p.status == "worse":  # never where no control is left: see evidence.results
        name = experiment.primary.objective
        broken.append(f"{name} is worse: {_interval(arm)}, p {p.harm_p_value:.1e}")
    return "; ".join(broken) or None


def exceeds(events: int, count: int, bound: float) -> float:
    """Evidence, in favour of more, that events have a chance above `bound`: at least 1/α at any look with chance at most α.

    The mean likelihood ratio over chances uniform on (bound, 1]; each of them is a supermartingale where the chance is at
    most `bound`.
    """
    bound = min(max(bound, 1e-9), 1 - 1e-9)
    a, b = events + 1, count - events + 1
    with np.errstate(divide="ignore"):
        mean = betaln(a, b) + np.log(betainc(b, a, 1 - bound)) - np.log1p(-bound)
    return float(np.exp(min(mean - events * np.log(bound) - (count - events) * np.log1p(-bound), 700.0)))


def _shadow_harm(experiment: Experiment, counts: ShadowCounts) -> str | None:
    limits = experiment.shadow
    for name, events, most in (
        ("failed or were invalid", counts.failed, limits.max_failed),
        ("were late", counts.late, limits.max_late),
    ):
        enough = counts.judged >= experiment.now.min_samples and events > most * counts.judged
        if enough or exceeds(events, counts.judged, most) >= 1 / SHADOW_ALPHA:
            return f"{events} of {counts.judged} lists {name}, {most:.1%} may"
    return None


def _time_and_users(experiment: Experiment, evidence: Evidence) -> list[str]:
    stage, waiting = experiment.now, []
    passed_s = (evidence.now - experiment.since).total_seconds()
    if passed_s < stage.min_seconds:
        waiting.append(f"{stage.min_seconds - passed_s:.0f} s more")
    if stage.share == 0:
        if evidence.shadow.judged < stage.min_samples:
            waiting.append(f"{evidence.shadow.judged} of {stage.min_samples} lists in shadow")
        return waiting
    arms = ("challenger",) if stage.share == 1 else ("champion", "challenger")
    waiting += [
        f"{evidence.users[arm]:,} of {stage.min_samples:,} users of the {arm}"
        for arm in arms
        if evidence.users[arm] < stage.min_samples
    ]
    return waiting


def _replicas(plan: RolloutPlan, evidence: Evidence) -> list[str]:
    assert plan.challenger is not None
    if not evidence.reports:
        return ["a replica that reports"]
    wanted = (plan.version, plan.champion.manifest_sha256, plan.challenger.manifest_sha256)
    return [
        f"replica {r.replica}, which serves version {r.version}"
        for r in evidence.reports
        if (r.version, r.champion, r.challenger) != wanted
    ]


def _looks_worse(experiment: Experiment, evidence: Evidence) -> str | None:
    """More users are no answer to a bad estimate, even while it may be chance."""
    arm = _arm(evidence)
    if arm is None or arm.primary.status == "too_early" or arm.primary.effect > -experiment.primary.smallest_effect:
        return None
    return f"{experiment.primary.objective} looks worse: {_interval(arm)}"


def _shown(experiment: Experiment, evidence: Evidence) -> tuple[Literal["shown", "futile", "open"], str]:
    """Whether the primary metric has shown what is asked before the champion's last users go."""
    arm, primary = _arm(evidence), experiment.primary
    if arm is None:
        return "open", "users"
    open_ones = [g.metric for g in arm.guardrails if g.status != "ok"]
    if open_ones:
        return "open", f"guardrails to rule harm out: {', '.join(open_ones)}"
    found, least = arm.primary, primary.smallest_effect
    interval = f"{primary.objective} {_interval(arm)}"
    if found.status == "better" or (primary.decision == "non_inferior" and found.low > -least):
        return "shown", interval
    if primary.decision == "superior" and found.high < least:
        return "futile", f"{interval}: an effect of {least:+.1%}, the smallest worth having, is ruled out"
    return "open", f"the primary metric: {interval}"


def _arm(evidence: Evidence) -> ArmResult | None:
    return evidence.results.arms[0] if evidence.results is not None else None


def _broken(guardrail: GuardrailResult) -> str:
    against = f"against {guardrail.control_value:.2%}, {guardrail.bound:.2%} more are allowed"
    if guardrail.kind == "ceiling":
        against = f"where {guardrail.bound:.2%} are allowed"
    share = f"{guardrail.treatment_value:.2%} of the requests"
    return f"{guardrail.metric} guardrail: {share} {against} (p {guardrail.p_breach:.1e})"


def _interval(arm: ArmResult) -> str:
    """Effect and its interval, as far as they are known."""
    p = arm.primary
    return "unknown yet" if p.status == "too_early" else f"{p.effect:+.1%} ({p.low:+.1%} … {p.high:+.1%})"


def _summary(experiment: Experiment, evidence: Evidence) -> str:
    arm = _arm(evidence)
    if experiment.now.share == 0:
        counts = evidence.shadow
        return f"{counts.judged} lists in shadow, {counts.failed} failed, {counts.late} late"
    users = " and ".join(f"{count:,} {name}" for name, count in evidence.users.items())
    primary = f", {experiment.primary.objective} {_interval(arm)}" if arm and experiment.controlled else ""
    return f"users: {users}{primary}"
