"""What replicas say of themselves in Redis: which plan they follow and which bundles answer. Gone soon after they are."""

from __future__ import annotations

from typing import cast

import redis
from pydantic import BaseModel, ConfigDict, ValidationError

from serving.plan import RolloutPlan

REPLICAS_KEY = "degre:replicas"  # set of ids
REPLICA_KEY = "degre:replica:"  # and the report of each, until it expires
ALIVE_MS = 5000  # ten polls


class ReplicaReport(BaseModel):
    """`version`: of the plan followed, 0 without one; `stage`: of the experiment, if both arms answer. `refused`: the
    bundle that cannot serve here, and why. `metrics`: host and port where this replica shows its own."""

    model_config = ConfigDict(frozen=True)

    replica: str
    version: int
    readable: bool
    champion: str
    challenger: str | None = None
    stage: str | None = None
    loading: str | None = None
    refused: str | None = None
    refused_because: str | None = None
    metrics: str | None = None


def follows(report: ReplicaReport, plan: RolloutPlan) -> bool:
    """Whether a replica serves what the plan says."""
    challenger = plan.challenger.manifest_sha256 if plan.challenger else None
    return (report.version, report.champion, report.challenger) == (
        plan.version,
        plan.champion.manifest_sha256,
        challenger,
    )


def write_report(client: redis.Redis, report: ReplicaReport) -> None:
    """Put a report in the place of the one before; raises redis errors."""
    with client.pipeline(transaction=False) as pipeline:
        pipeline.sadd(REPLICAS_KEY, report.replica)
        pipeline.set(REPLICA_KEY + report.replica, report.model_dump_json(), px=ALIVE_MS)
        pipeline.execute()


def withdraw_report(client: redis.Redis, replica: str) -> None:
    """The replica ends."""
    with client.pipeline(transaction=False) as pipeline:
        pipeline.srem(REPLICAS_KEY, replica)
        pipeline.delete(REPLICA_KEY + replica)
        pipeline.execute()


def read_reports(client: redis.Redis) -> list[ReplicaReport]:
    """Of the replicas alive, by id; forgets those that are not."""
    ids = sorted(member.decode() for member in cast(set[bytes], client.smembers(REPLICAS_KEY)))
    if not ids:
        return []
    texts = cast(list[bytes | None], client.mget([REPLICA_KEY + i for i in ids]))
    if gone := [i for i, text in zip(ids, texts, strict=True) if text is None]:
        client.srem(REPLICAS_KEY, *gone)
    found = []
    for text in texts:
        try:
            found += [] if text is None else [ReplicaReport.model_validate_json(text)]
        except ValidationError:  # of another version of the service; it says nothing that we understand
            continue
    return found
