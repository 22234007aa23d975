"""What is known of the running experiment: users' figures, the challenger in shadow, what the replicas say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, cast

import redis

from degre_prod.experiments.analysis import analyse
from degre_prod.experiments.moments import DENOMINATOR, Moments
from degre_prod.experiments.plan import AnalysisPlan, Guardrail, Primary
from degre_prod.experiments.ratio import delta_variance, value_and_gradient, with_one_bad_event
from degre_prod.experiments.results import Results
from degre_prod.experiments.srm import Phase
from orchestration.rollout.judged import Judged, read_judged
from orchestration.rollout.sums import PRIMARY, ArmMoments, read_moments
from serving.experiment import CHALLENGER, CHAMPION, Experiment
from serving.plan import RolloutPlan
from serving.plan_store import redis_time
from serving.reports import ReplicaReport, read_reports
from serving.shadow import LATENCY_MS, SHADOW_KEY


@dataclass(frozen=True, slots=True)
class ShadowCounts:
    """Lists that the challenger was asked for in shadow, by what came of them; agreement with the champion's lists.

    `ms`: upper bounds of the median and the 99th percentile, NaN without lists. `failed` and `late` are of `judged`.
    """

    lists: int = 0
    ok: int = 0
    failed: int = 0
    late: int = 0
    other: int = 0
    dropped: int = 0
    compared: int = 0
    same: float = 0.0
    first: float = 0.0
    overlap: float = 0.0
    ms: tuple[float, float] = (float("nan"), float("nan"))

    @property
    def judged(self) -> int:
        """Lists whose fate was the challenger's doing."""
        return self.ok + self.failed + self.late

    def as_dict(self) -> dict[str, Any]:
        """For JSON; shares of the compared lists."""
        share = {n: round(getattr(self, n) / self.compared, 4) for n in ("same", "first", "overlap") if self.compared}
        counts = {n: getattr(self, n) for n in ("lists", "ok", "failed", "late", "other", "dropped", "compared")}
        times = {f"{n}_ms": v for n, v in zip(("p50", "p99"), self.ms, strict=True) if v == v}
        return {**counts, **share, **times}


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known. `users` and `requests`: by arm in the present stage; `results`: None in shadow and without users;
    `judged`: for people, no rule of the machine asks it; None when no judge has valued any list."""

    now: datetime
    reports: tuple[ReplicaReport, ...]
    shadow: ShadowCounts
    users: Mapping[str, int]
    results: Results | None
    requests: Mapping[str, int] = field(default_factory=dict)
    judged: Judged | None = None


def gather(client: redis.Redis, plan: RolloutPlan) -> Evidence:
    """Read it all for a plan with an experiment."""
    assert plan.experiment is not None
    experiment = plan.experiment
    moments = read_moments(client, experiment.id)
    here = moments.get(experiment.now.name, {})
    return Evidence(
        redis_time(client),
        tuple(read_reports(client)),
        read_shadow(client, experiment.id),
        {arm: _users(here, arm) for arm in (CHAMPION, CHALLENGER)},
        results(experiment, moments),
        {arm: _requests(here, arm) for arm in (CHAMPION, CHALLENGER)},
        read_judged(client, experiment),
    )


def analysis_plan(experiment: Experiment) -> AnalysisPlan:
    """The experiment's design in the words of the statistics, for stages in which both arms have users."""
    return AnalysisPlan(
        CHAMPION,
        Primary(PRIMARY, experiment.primary.smallest_effect),
        tuple(Guardrail(g.metric, g.max_rise, "absolute") for g in experiment.guardrails),
        alpha=experiment.alpha,
        harm_alpha=experiment.harm_alpha,
        srm_alpha=experiment.srm_alpha,
        min_users=experiment.min_users,
        guardrail_min_users=experiment.guardrail_min_users,
        stages=max(sum(s.share > 0 for s in experiment.stages), 1),
    )


def results(experiment: Experiment, moments: Mapping[str, ArmMoments]) -> Results | None:
    """One look at the present stage, None in shadow and without users of the challenger."""
    stage = experiment.now
    here = moments.get(stage.name, {})
    if stage.share == 0 or not _users(here, CHALLENGER):
        return None
    if stage.share == 1:
        return _without_control(experiment, moments, here)
    phase = Phase(
        {CHAMPION: 1.0 - stage.share, CHALLENGER: stage.share},
        {arm: _users(here, arm) for arm in (CHAMPION, CHALLENGER)},
    )
    arms = {CHAMPION: here.get(CHAMPION, {}), CHALLENGER: here[CHALLENGER]}
    return analyse(arms, analysis_plan(experiment), [phase])


def _without_control(experiment: Experiment, moments: Mapping[str, ArmMoments], here: ArmMoments) -> Results:
    """Where all users have the challenger nobody is left to compare with, and the champion's users of earlier are of
    another time: the primary metric is not judged, guardrails are ceilings for the challenger alone."""
    guardrails = [
        Guardrail(g.metric, g.max_rise + _usual(experiment, moments, g.metric), "ceiling")
        for g in experiment.guardrails
    ]
    plan = replace(analysis_plan(experiment), guardrails=tuple(guardrails))
    found = analyse({CHAMPION: {}, CHALLENGER: here[CHALLENGER]}, plan)
    told = "no control is left: guardrails are ceilings for the challenger alone, the primary metric is not judged"
    return replace(found, arms=tuple(arm if arm.verdict == "harm" else replace(arm, reason=told) for arm in found.arms))


def _usual(experiment: Experiment, moments: Mapping[str, ArmMoments], metric: str) -> float:
    """What the champion's share of such requests was, with two standard errors on top, at the latest stage in which enough
    of its users were seen; 0 when there was none."""
    for stage in reversed(experiment.stages[: experiment.stage]):
        found: Moments | None = moments.get(stage.name, {}).get(CHAMPION, {}).get(metric)
        if found is not None and found.count >= experiment.guardrail_min_users:
            share = float(value_and_gradient(found, "absolute")[0])
            padded = with_one_bad_event(found)
            variance = float(delta_variance(padded, value_and_gradient(padded, "absolute")[1]))
            return share + 2 * math.sqrt(variance)
    return 0.0


def read_shadow(client: redis.Redis, experiment: str) -> ShadowCounts:
    """Counters of all replicas."""
    counts = {
        k.decode(): float(v) for k, v in cast(dict[bytes, bytes], client.hgetall(SHADOW_KEY + experiment)).items()
    }
    whole = ("lists", "ok", "failed", "late", "other", "dropped", "compared")
    figures: dict[str, Any] = {n: int(counts.get(n, 0)) for n in whole}
    figures |= {n: counts.get(n, 0.0) for n in ("same", "first", "overlap")}
    buckets = [(float(ms), counts.get(f"le_{ms}", 0.0)) for ms in LATENCY_MS] + [(1e9, counts.get("le_inf", 0.0))]
    return ShadowCounts(**figures, ms=(_quantile(buckets, 0.5), _quantile(buckets, 0.99)))


def _quantile(buckets: Sequence[tuple[float, float]], share: float) -> float:
    """The bound of the bucket that holds it."""
    total, seen = sum(count for _, count in buckets), 0.0
    for bound, count in buckets:
        seen += count
        if total and seen >= share * total:
            return bound
    return float("nan")


def _users(moments: ArmMoments, arm: str) -> int:
    found = moments.get(arm, {}).get(PRIMARY)
    return 0 if found is None else int(found.count)


def _requests(moments: ArmMoments, arm: str) -> int:
    found = moments.get(arm, {}).get(PRIMARY)
    return 0 if found is None else int(found.sums_K[DENOMINATOR])
