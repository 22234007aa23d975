"""`degre bench swaps`: hot swaps under load. Each loads a bundle the replicas have never seen; no request may notice."""

from __future__ import annotations

import hashlib
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import redis

from degre_prod.artefact import write_text
from degre_prod.bundle import Bundle
from degre_prod.bundle.manifest import MANIFEST, read_manifest
from degre_prod.requests import Id
from orchestration.bench.bed import Bed, bed, readyz, replica_urls, service, until
from orchestration.bench.load import Load, percentile
from orchestration.bench.report import machine
from serving.heap import settle_heap
from serving.plan import PlanArm
from serving.plan_store import publish_plan


def bench_swaps(swaps: int, rate: float, *, replicas: int = 1) -> dict[str, Any]:
    """Alternate two sets of weights; `mixed` counts answers whose list is not that of the bundle they name.

    `strangers` counts answers by a bundle that was not serving nor being swapped in, `degraded` those with a reason.
    """
    with bed() as made, service(made, replicas=replicas) as url:
        settle_heap()
        return swap_under_load(made, url, swaps, rate, replicas)


def swap_under_load(made: Bed, url: str, swaps: int, rate: float, replicas: int) -> dict[str, Any]:
    """The measurement on a running service."""
    weights = {made.first.manifest_sha256: made.first}
    order = [made.first.manifest_sha256]
    took_s = []
    with Load(url, made.requests, rate) as load, redis.Redis.from_url(made.redis_url) as client:
        until(lambda: len(load.samples) >= rate, "no answers")
        for swap in range(swaps):
            bundle = (made.second, made.first)[swap % 2]
            folder = renamed(bundle, made.folder / f"swap-{swap}")
            sha = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
            weights[sha] = bundle
            order.append(sha)
            publish_plan(client, [PlanArm(bundle_uri=str(folder), manifest_sha256=sha)], expected_version=swap)
            took_s.append(until(partial(_serving, sha, replicas), f"swap {swap} was not followed"))
        sent = len(load.samples)
        until(lambda: len(load.samples) >= sent + rate, "no answers after the last swap")
    expected = {
        sha: _offline(made, bundle) for sha, bundle in ((b.manifest_sha256, b) for b in (made.first, made.second))
    }
    answers = [s for s in load.samples if s.answered]
    by_model = [s for s in answers if s.source in ("generator", "cache") and s.bundle in weights]
    return {
        "bench": "swaps",
        "swaps": swaps,
        "requests": len(load.samples),
        "failed": sum(not s.answered or not s.valid for s in load.samples),
        "mixed": sum(s.ids != expected[weights[s.bundle].manifest_sha256][s.request] for s in by_model),
        "strangers": sum(s.bundle not in weights for s in answers),
        "fallbacks": sum(s.source.startswith("fallback") for s in answers),
        "bundles_seen": len({s.bundle for s in answers}),
        "p50_ms": round(percentile([s.took_ms for s in load.samples], 0.5), 2),
        "p99_ms": round(percentile([s.took_ms for s in load.samples], 0.99), 2),
        "seconds_to_swap": [round(s, 2) for s in took_s],
        "rate": rate,
        "replicas": replicas,
        "machine": machine(),
    }


def renamed(bundle: Bundle, folder: Path) -> Path:
    """A copy of a bundle under another name: another manifest, the same answers."""
    shutil.copytree(bundle.path, folder)
    manifest = read_manifest(folder).model_copy(update={"name": folder.name})
    write_text(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return folder


def _serving(sha256: str, replicas: int) -> bool:
    told = [readyz(url)["bundle"] for url in replica_urls()]
    return told == [sha256] * replicas


def _offline(made: Bed, bundle: Bundle) -> list[tuple[Id, ...]]:
    """The bundle's own answers to every request of the bed."""
    from degre_prod.requests import Request

    out = []
    for body in made.requests:
        ids = [c.id for c in body.candidates]
        request = Request(
            "offline",
            body.user_id,
            0,
            ids,
            body.context,
            {"upstream": [c.scores["upstream"] for c in body.candidates]},
        )
        user, items = (
            made.world.columns(role, np.array(asked)) for role, asked in (("user", [body.user_id]), ("item", ids))
        )
        out.append(tuple(bundle.answer(request, user, items, bundle.manifest.list_length)))
    return out
