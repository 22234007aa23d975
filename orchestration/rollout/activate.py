"""Publishing a rollout plan with one arm: what the replicas of a Redis serve from now on."""

from __future__ import annotations

from pathlib import Path

from degre_prod.errors import MismatchError, ServiceError
from serving.plan import PlanArm, RolloutPlan
from serving.plan_store import Author, publish_plan, read_plan


def activate(bundle: Path, redis_url: str, *, by: str = "", why: str = "") -> RolloutPlan:
    """Verify a bundle and let the plan name it as the one that serves; returns the plan.

    The folder must be readable by every replica under the same path. Raises BundleError when it must not serve,
    MismatchError while an experiment runs or when someone else publishes at the same time, PlanError for a malformed plan in
    Redis, ServiceError when Redis is away.
    """
    import redis

    from degre_prod.bundle import load_bundle

    loaded = load_bundle(bundle.resolve())
    arm = PlanArm(bundle_uri=loaded.path.as_uri(), manifest_sha256=loaded.manifest_sha256)
    try:
        with redis.Redis.from_url(redis_url, socket_timeout=5.0) as client:
            client.ping()
            before = read_plan(client)
            if before is not None and before.experiment is not None:
                raise MismatchError(f"experiment {before.experiment.id} is under way; promote or abort it first")
            return publish_plan(client, [arm], before.version if before else 0, None, Author("activate", why, by))
    except (redis.RedisError, OSError) as error:
        raise ServiceError(f"Redis did not take the rollout plan: {type(error).__name__}: {error}") from error
