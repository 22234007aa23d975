"""The plan against reality: what should serve, what the replicas say, what is known and what the machine waits for."""

from __future__ import annotations

from typing import Any

import redis

from degre_prod.errors import MismatchError
from orchestration.rollout.decide import decide
from orchestration.rollout.evidence import gather
from orchestration.rollout.figures import figures
from serving.plan import RolloutPlan
from serving.plan_store import history_gaps, holder, read_history, read_plan
from serving.reports import follows, read_reports


def status(client: redis.Redis, history: int = 20) -> dict[str, Any]:
    """One document; `history`: how many of the newest changes. Raises MismatchError without a plan, PlanError."""
    plan = read_plan(client)
    if plan is None:
        raise MismatchError("there is no rollout plan yet; `degre bundle activate` names the first champion")
    reports = read_reports(client)
    behind = [r.replica for r in reports if not follows(r, plan)]
    versions = read_history(client)
    document: dict[str, Any] = {
        "plan": plan.model_dump(mode="json", exclude={"experiment": {"overrides"}}),
        "replicas": [r.model_dump() for r in reports],
        "agree": bool(reports) and not behind,
        "behind": behind,
        "controller": holder(client),
        "history": [_change(p) for p in versions[-history:]],
        "history_gaps": history_gaps(versions),
    }
    if plan.experiment is not None:
        evidence = gather(client, plan)
        decision = decide(plan, evidence)
        document["experiment"] = figures(plan, evidence, decision)
        document["table"] = evidence.results.table() if evidence.results else ""
    return document


def as_text(document: dict[str, Any]) -> str:
    """The same for people."""
    plan = document["plan"]
    lines = [f"plan {plan['version']}: " + ", ".join(_arm(a) for a in plan["arms"])]
    if experiment := document.get("experiment"):
        held = ", held" if experiment["held"] else ""
        users = ", ".join(f"{name} {count:,}" for name, count in experiment["users"].items())
        lines.append(
            f"experiment {experiment['id']}: {experiment['stage']} for {experiment['seconds']:.0f} s{held}; users: {users}"
        )
        if shadow := experiment["shadow"]:
            lines.append("shadow: " + ", ".join(f"{name} {value}" for name, value in shadow.items()))
        lines.append("judge: " + _judge(experiment["judge"]))
        if document["table"]:
            lines.append(document["table"])
        lines.append(f"next: {experiment['next']}, {experiment['reason']}")
        lines += [f"  waiting for {what}" for what in experiment["waiting_for"]]
    lines.append(f"controller: {document['controller'] or 'none'}")
    for report in document["replicas"]:
        told = "behind" if report["replica"] in document["behind"] else "as planned"
        refused = f"; refuses {report['refused'][:12]}: {report['refused_because']}" if report["refused"] else ""
        on_trial = f" + {report['challenger'][:12]}" if report["challenger"] else ""
        lines.append(
            f"replica {report['replica']}: version {report['version']}, {report['champion'][:12]}{on_trial}, {told}{refused}"
        )
    if not document["replicas"]:
        lines.append("no replica reports")
    for change in document["history"][-5:]:
        lines.append(
            f"{change['version']:4d}  {change['at'] or '?'}  {change['action']}  {change['by']}: {change['why']}"
        )
    if document["history_gaps"]:
        lines.append(f"HISTORY HAS GAPS before versions {document['history_gaps']}")
    return "\n".join(lines)


def _arm(arm: dict[str, Any]) -> str:
    return f"{arm['name']} {arm['manifest_sha256'][:12]} ({arm['weight']:.0%})"


def _judge(judged: dict[str, Any] | None) -> str:
    if judged is None:
        return "none has valued the lists made in shadow; `degre rollout run --judge FOLDER` lets one"
    told = "too few users for an interval"
    if judged["low"] is not None:
        told = f"{judged['effect']:+.2%} ({judged['low']:+.2%} … {judged['high']:+.2%})"
    values = f"{judged['challenger']:.4g} a list against {judged['champion']:.4g}"
    return f"{values}, {told}; one request of each of {judged['users']:,} users"


def _change(plan: RolloutPlan) -> dict[str, Any]:
    change = plan.change
    return {
        "version": plan.version,
        "action": change.action if change else "unknown",
        "by": change.by if change else "",
        "why": change.why if change else "",
        "at": change.at.isoformat(timespec="seconds") if change else None,
        "experiment": change.experiment if change else None,
        "stage": plan.experiment.now.name if plan.experiment else None,
        "champion": plan.champion.manifest_sha256,
    }
