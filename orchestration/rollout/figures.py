"""What is known of an experiment as one document: what `degre rollout status` prints, the controller keeps at each look
and the console shows."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from orchestration.rollout.decide import Decision
from orchestration.rollout.evidence import Evidence
from serving.looks import SHARE, Point, Span, seconds
from serving.plan import RolloutPlan


def figures(plan: RolloutPlan, evidence: Evidence, decision: Decision) -> dict[str, Any]:
    """Of a plan with an experiment, for JSON."""
    assert plan.experiment is not None
    experiment, results = plan.experiment, evidence.results
    return {
        "id": experiment.id,
        "version": plan.version,
        "at": evidence.now.isoformat(timespec="milliseconds"),
        "stage": experiment.now.name,
        "share": experiment.now.share,
        "seconds": round((evidence.now - experiment.since).total_seconds(), 1),
        "held": experiment.held,
        "users": dict(evidence.users),
        "requests": dict(evidence.requests),
        "controlled": experiment.controlled,
        "shadow": evidence.shadow.as_dict(),
        "judge": evidence.judged.as_dict() if evidence.judged else None,
        "results": results.as_dict() if results else None,
        "next": decision.move,
        "reason": decision.reason,
        "waiting_for": list(decision.waiting_for),
    }


def point(plan: RolloutPlan, document: dict[str, Any]) -> Point:
    """The look of `figures` in the form that plots need."""
    assert plan.experiment is not None
    metrics: dict[str, Span] = {}
    if document["results"] is not None:
        arm = document["results"]["arms"][0]
        if document["controlled"]:
            metrics["primary"] = _span(arm["primary"], "effect", "low", "high")
        # Without a control they are the challenger's own shares, which belong into no plot of differences.
        metrics |= {
            g["metric"] + (SHARE if g["kind"] == "ceiling" else ""): _span(g, "harm", "lower", "upper")
            for g in arm["guardrails"]
        }
    if document["judge"] is not None and document["share"] == 0:  # later it changes no more
        metrics["judge"] = _span(document["judge"], "effect", "low", "high")
    return Point(
        at=seconds(datetime.fromisoformat(document["at"])),
        since=seconds(plan.experiment.since),
        stage=document["stage"],
        users=document["users"],
        requests=document["requests"],
        metrics=metrics,
    )


def _span(values: dict[str, Any], estimate: str, low: str, high: str) -> Span:
    """None altogether before there are enough users: an estimate without an interval invites to be believed."""
    if values[low] is None:
        return (None, None, None)
    return (values[estimate], values[low], values[high])
