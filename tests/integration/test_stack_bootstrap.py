"""The stack's bootstrap on a world so small that nothing is learnt: from nothing to a bundle that serves, and nothing twice."""

from __future__ import annotations

from pathlib import Path

import redis

from degre_prod.bundle import load_bundle
from degre_prod.config import load_settings
from orchestration.stack.bootstrap import World, bootstrap
from orchestration.stack.own_data import OWN
from serving.protocol import RerankRequest

SMALL = {
    "evaluator": {"prefix_state": "additive", "epochs": 1, "min_steps": 1, "togo_steps": 1, "width": 8},
    "mining": {"requests": 20, "beam_width": 2},
    "generator": {"epochs": 1, "width": 8},
}


def test_from_nothing_to_a_bundle_and_nothing_twice(tmp_path: Path, clean_redis: str) -> None:
    settings, world = load_settings(None, SMALL), World(train=300, validation=60, test=40)
    run, nothing = tmp_path / "run", tmp_path / "nothing"
    assert bootstrap(run, settings, clean_redis, nothing, world)["done"] == ["data", "features", "bundle"]
    bundle = load_bundle(run / "bundle")
    request = RerankRequest.model_validate_json((run / "request.json").read_text())
    assert len(request.candidates) <= bundle.manifest.max_candidates
    with redis.Redis.from_url(clean_redis) as client:
        assert client.get("degre:feature_epoch") == b"1"
        assert bootstrap(run, settings, clean_redis, nothing, world)["done"] == []
        assert load_bundle(run / "bundle").manifest_sha256 == bundle.manifest_sha256
        client.flushdb()  # Redis lost: its features come back, the bundle stays
        assert bootstrap(run, settings, clean_redis, nothing, world)["done"] == ["features"]
    own, other = run / "data", tmp_path / "own"
    assert all((own / name).exists() for name in OWN)
    assert bootstrap(other, settings, clean_redis, own, world)["done"] == ["data", "bundle"]
    assert (other / "data" / "schema.yaml").read_bytes() == (own / "schema.yaml").read_bytes()
