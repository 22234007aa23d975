"""The registry follows the plan: its aliases name what serves and what is on trial."""

from __future__ import annotations

from orchestration.registry import CHALLENGER, CHAMPION, Registry
from serving.plan import RolloutPlan


def follow_plan(registry: Registry, plan: RolloutPlan) -> dict[str, int | None]:
    """Point both aliases at the plan's bundles; returns the versions, None where the registry does not know the bundle.

    Idempotent: a controller that died between a promotion and the alias does it when it comes back.
    """
    known = {v.manifest_sha256: v.version for v in registry.versions()}
    told: dict[str, int | None] = {}
    for name, arm in ((CHAMPION, plan.champion), (CHALLENGER, plan.challenger)):
        version = None if arm is None else known.get(arm.manifest_sha256)
        there = registry.alias(name)
        if version is None:
            # An alias that names another bundle than the one that serves would be worse than none.
            registry.withdraw(name)
        elif there is None or there.version != version:
            registry.point(name, version)
        told[name] = version
    return told
