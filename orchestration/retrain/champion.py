"""Which bundle serves now: what a night is compared with, starts from, and must not touch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from degre_prod.bundle.manifest import MANIFEST, read_manifest
from degre_prod.errors import MismatchError
from orchestration.retrain.state import State
from serving.bundles import fetch_local


@dataclass(frozen=True)
class Champion:
    """A bundle and its manifest's hash. What it was made with lies beside it, where it still does."""

    bundle: Path
    manifest_sha256: str

    @property
    def encoder(self) -> Path:
        """The bundle carries it."""
        return self.bundle / "encoder.json"

    @property
    def evaluator(self) -> Path | None:
        """The evaluator that taught it; None when another one or none lies beside the bundle."""
        from degre_prod.artefact import finished

        folder = self.bundle.parent / "evaluator"
        return folder if finished(folder, read_manifest(self.bundle).evaluator_made_from) else None


def find_champion(run: Path, state: State, redis_url: str | None, dataset_name: str) -> Champion | None:
    """The champion of the rollout plan; without Redis or plan the one activated last; else the bundle of the run itself.

    Raises MismatchError when the plan serves another data set, BundleError when its bundle cannot be read here, PlanError
    when Redis does not give the plan.
    """
    found = _from_plan(redis_url) if redis_url else None
    if found is None:
        remembered = state.champion()
        bundle = remembered[0] if remembered else run / "bundle"
        if not (bundle / MANIFEST).is_file():
            return None
        found = bundle
    manifest = read_manifest(found)
    if manifest.dataset != dataset_name:
        raise MismatchError(f"the champion {found} is of data set {manifest.dataset}, this run is of {dataset_name}")
    return Champion(found.resolve(), hashlib.sha256((found / MANIFEST).read_bytes()).hexdigest())


def _from_plan(redis_url: str) -> Path | None:
    import redis

    from serving.plan_store import read_plan

    with redis.Redis.from_url(redis_url, socket_timeout=5.0) as client:
        plan = read_plan(client)
    return None if plan is None else fetch_local(plan.champion.bundle_uri)
