"""What the console shows, as one document: the plan and the replicas as they are in Redis now, figures and history as the
controller has left them there. Everything is bounded, for a replica reads it while it serves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis

from serving.experiment import Experiment
from serving.looks import Point, read_look, read_points, seconds
from serving.plan import RolloutPlan
from serving.plan_store import history_gaps, holder, read_history, read_plan, redis_time
from serving.reports import ReplicaReport, follows, read_reports

HISTORY = 60
POINTS = 400
RATE_S = 10.0  # answers a second are over this time, or as much more as lies between two looks that were kept
ENDINGS = {"promote": "promoted", "rollback": "rolled back", "abort": "aborted"}


def console_state(client: redis.Redis) -> dict[str, Any]:
    """The document, of the running or the last experiment. Raises PlanError for a malformed plan, redis errors."""
    now = redis_time(client)
    plan, history = read_plan(client), read_history(client, HISTORY)
    running = plan.experiment if plan else None
    shown = running or next((p.experiment for p in reversed(history) if p.experiment is not None), None)
    look = read_look(client, shown.id) if shown else None
    points = read_points(client, shown.id) if shown else []
    return {
        "redis": None,
        "at": seconds(now),
        "plan": _plan(plan) if plan else None,
        "running": running is not None,
        "experiment": _experiment(shown) if shown else None,
        "ended": _ended(shown, history) if shown and not running else None,
        "controller": holder(client),
        "look": look,
        "rate": _rate(points),
        "points": [_compact(point) for point in thinned(points, POINTS)],
        "replicas": [_replica(report, plan) for report in read_reports(client)],
        "history": [_change(p) for p in reversed(history)],
        "gaps": history_gaps(history),
    }


def without_redis(reason: str) -> dict[str, Any]:
    """The document when Redis gives nothing."""
    empty = dict.fromkeys(("at", "plan", "experiment", "ended", "controller", "look", "rate"))
    return {"redis": reason, **empty, "running": False, "points": [], "replicas": [], "history": [], "gaps": []}


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most so many, evenly by number, the newest among them."""
    step = -(-len(points) // most) if points else 1
    return list(points[::-1][::step][::-1])


def _plan(plan: RolloutPlan) -> dict[str, Any]:
    return {
        "version": plan.version,
        "arms": [
            {"name": a.name, "bundle": a.manifest_sha256, "folder": _folder(a.bundle_uri), "weight": a.weight}
            for a in plan.arms
        ],
    }


def _folder(uri: str) -> str:
    """The last two parts of where a bundle lies: enough to recognise it."""
    return "/".join(uri.rstrip("/").rsplit("/", 2)[-2:])


def _experiment(experiment: Experiment) -> dict[str, Any]:
    kept = {"id", "stage", "held", "stages", "primary", "guardrails", "promote", "holdout", "scopes", "min_users"}
    return experiment.model_dump(mode="json", include=kept) | {"since": seconds(experiment.since)}


def _ended(experiment: Experiment, history: Sequence[RolloutPlan]) -> dict[str, Any] | None:
    """How the last experiment ended."""
    last = next(p.version for p in reversed(history) if p.experiment is not None and p.experiment.id == experiment.id)
    after = next((p.change for p in history if p.version == last + 1), None)
    if after is None:
        return None
    return {
        "how": ENDINGS.get(after.action, after.action),
        "stage": experiment.now.name,
        "why": after.why,
        "by": after.by,
        "at": seconds(after.at),
    }


def _rate(points: Sequence[Point]) -> dict[str, Any] | None:
    """Answers a second by arm, as the controller counted them last."""
    if not points:
        return None
    last = points[-1]
    same = [p for p in points if (p.stage, p.since) == (last.stage, last.since) and last.at - p.at >= RATE_S]
    if not same:
        return None
    first = same[-1]
    over = last.at - first.at
    counts = {arm: (count - first.requests.get(arm, 0)) / over for arm, count in last.requests.items()}
    return {"seconds": round(over, 1), "until": last.at, **{arm: round(value, 2) for arm, value in counts.items()}}


def _compact(point: Point) -> list[Any]:
    """[time, stage, {metric: [estimate, low, high]}], five digits: what a plot can show."""
    spans = {
        name: [None if value is None else float(f"{value:.5g}") for value in span]
        for name, span in point.metrics.items()
    }
    return [point.at, point.stage, spans]


def _replica(report: ReplicaReport, plan: RolloutPlan | None) -> dict[str, Any]:
    state = "as planned"
    if plan is not None and not follows(report, plan):
        state = "loading" if report.loading else "behind"
    if report.refused is not None:
        state = "refuses"
    if not report.readable:
        state = "cannot read the plan"
    return report.model_dump() | {"state": state}


def _change(plan: RolloutPlan) -> dict[str, Any]:
    change = plan.change
    return {
        "version": plan.version,
        "at": seconds(change.at) if change else None,
        "action": change.action if change else "unknown",
        "by": change.by if change else "",
        "why": change.why if change else "",
        "experiment": change.experiment if change else None,
        "stage": plan.experiment.now.name if plan.experiment else None,
    }
