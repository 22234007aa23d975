"""Plans, designs and replicas' records, made by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import redis

from serving.event_log import stream_key
from serving.experiment import Design, Experiment, Guardrail, PrimaryMetric, ShadowLimits, Stage
from serving.plan import PlanArm, RolloutPlan, weighted
from serving.reports import ReplicaReport, write_report

A, B, C = "a" * 64, "b" * 64, "c" * 64
T0 = datetime(2026, 1, 1, tzinfo=UTC)


def arm(sha256: str, folder: Path | str = "/bundles") -> PlanArm:
    return PlanArm(bundle_uri=f"{folder}/{sha256[0]}", manifest_sha256=sha256)


def design(**given: Any) -> Design:
    """Shadow, half, all; no times to wait for."""
    values: dict[str, Any] = {
        "id": "trial",
        "stages": (
            Stage(name="shadow", share=0.0, min_seconds=0, min_samples=10),
            Stage(name="half", share=0.5, min_seconds=0, min_samples=40),
            Stage(name="all", share=1.0, min_seconds=0, min_samples=20),
        ),
        "primary": PrimaryMetric(smallest_effect=0.1),
        "guardrails": (
            Guardrail(metric="fallback", max_rise=0.3),
            Guardrail(metric="error", max_rise=0.3),
            Guardrail(metric="p99", max_rise=0.3, bound_ms=50.0),
        ),
        "shadow": ShadowLimits(share=1.0),
        "min_users": 30,
        "guardrail_min_users": 20,
    }
    return Design.model_validate(values | given)


def plan_at(stage: int, version: int = 2, held: bool = False, **given: Any) -> RolloutPlan:
    """An experiment of B against A at a stage."""
    planned = design(**given)
    experiment = Experiment(**planned.model_dump(), stage=stage, since=T0, held=held)
    return RolloutPlan(version=version, arms=weighted(arm(A), arm(B), experiment.now.share), experiment=experiment)


def report(plan: RolloutPlan, replica: str = "r1", **given: Any) -> ReplicaReport:
    """A replica that follows a plan."""
    values: dict[str, Any] = {
        "replica": replica,
        "version": plan.version,
        "readable": True,
        "champion": plan.champion.manifest_sha256,
        "challenger": plan.challenger.manifest_sha256 if plan.challenger else None,
        "stage": plan.experiment.now.name if plan.experiment else None,
    }
    return ReplicaReport.model_validate(values | given)


def follow(client: redis.Redis, plan: RolloutPlan) -> None:
    """Let one replica report that it follows a plan."""
    write_report(client, report(plan))


def served(client: redis.Redis, request_id: str, user: int, stage: str, who: str, **given: Any) -> None:
    """One list in the stream, as a replica logs it."""
    record = {
        "request_id": request_id,
        "user_id": user,
        "arm": who,
        "exposure": ["trial", stage],
        "took_ms": 5.0,
        "source": "generator",
        "degraded": [],
    } | given
    client.xadd(stream_key("served", request_id), {"record": json.dumps(record)})


def feedback(client: redis.Redis, request_id: str, *events: str) -> None:
    """Clicks with these event ids on a list."""
    record = {"request_id": request_id, "events": [{"event_id": e, "id": 1, "type": "click"} for e in events]}
    client.xadd(stream_key("feedback", request_id), {"record": json.dumps(record)})
