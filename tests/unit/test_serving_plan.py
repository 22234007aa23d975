"""The rollout plan: its document, compare-and-set, the copy on disk, fetching and refusing bundles."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from serving_fakes import FakeBundle, fake_engine

from degre_prod.errors import BundleError, MismatchError
from serving.bundles import fetch_local
from serving.engine import Engine
from serving.engines import Engines
from serving.metrics import Metrics
from serving.plan import LastGoodPlan, PlanArm, PlanError, RolloutPlan, parse_plan
from serving.plan_store import PLAN_KEY, publish_plan, read_plan
from serving.rollout import PlanFollower, first_engine

A, B, C, BAD = "a" * 64, "b" * 64, "c" * 64, "d" * 64


def arm(sha256: str) -> PlanArm:
    return PlanArm(bundle_uri=f"/bundles/{sha256[0]}", manifest_sha256=sha256)


def engine(sha256: str) -> Engine:
    return fake_engine(bundle=FakeBundle(manifest_sha256=sha256))


def load(wanted: PlanArm) -> Engine:
    if wanted.manifest_sha256 == BAD:
        raise BundleError("generator.onnx was changed")
    return engine(wanted.manifest_sha256)


def test_a_plan_replaces_only_the_version_it_was_made_for(clean_redis: str) -> None:
    with redis.Redis.from_url(clean_redis) as client:
        assert read_plan(client) is None
        first = publish_plan(client, [arm(A)], 0)
        assert (first.version, read_plan(client)) == (1, first)
        with pytest.raises(MismatchError, match="at version 1, not 0"):
            publish_plan(client, [arm(B)], 0)
        assert publish_plan(client, [arm(B)], 1).version == 2


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "{}",
        '{"version": 1, "arms": []}',
        '{"version": 0, "arms": [{"bundle_uri": "/b", "manifest_sha256": "' + A + '"}]}',
        '{"version": 1, "arms": [{"bundle_uri": "/b", "manifest_sha256": "short"}]}',
        '{"version": 1, "format_version": 3, "arms": [{"bundle_uri": "/b", "manifest_sha256": "' + A + '"}]}',
    ],
)
def test_what_is_no_plan_says_so(text: str) -> None:
    with pytest.raises(PlanError, match="malformed"):
        parse_plan(text)


def test_the_last_good_plan_survives_on_disk(tmp_path: Path) -> None:
    kept = LastGoodPlan(tmp_path / "state", "redis://:secret@127.0.0.1:1/0")
    assert kept.read() is None
    plan = RolloutPlan(version=3, arms=(arm(A),))
    kept.write(plan)
    assert LastGoodPlan(tmp_path / "state", "redis://:rotated@127.0.0.1:1/0").read() == plan
    assert "secret" not in str(kept.file)
    kept.file.write_text("{")
    with pytest.raises(PlanError):
        kept.read()


def test_a_replica_starts_with_the_plans_bundle(clean_redis: str, tmp_path: Path) -> None:
    kept = LastGoodPlan(tmp_path, clean_redis)

    def first(client: redis.Redis) -> str:
        return first_engine(lambda: engine(A), load, client, kept).bundle.manifest_sha256

    with redis.Redis.from_url(clean_redis) as client:
        assert first(client) == A  # no plan: the bundle given
        publish_plan(client, [arm(B)], 0)
        assert first(client) == B
        publish_plan(client, [arm(BAD)], 1)
        assert first(client) == A  # refused: better the given one than none
    with redis.Redis.from_url("redis://127.0.0.1:1") as away:
        assert first(away) == A
        kept.write(RolloutPlan(version=1, arms=(arm(C),)))
        assert first(away) == C


def test_following_swaps_goes_back_and_refuses(clean_redis: str, tmp_path: Path) -> None:
    engines, metrics, kept = Engines(), Metrics(), LastGoodPlan(tmp_path, clean_redis)
    engines.serve(engine(A))
    with redis.Redis.from_url(clean_redis) as client:
        follower = PlanFollower(redis.Redis.from_url(clean_redis), engines, load, metrics, kept)

        def follow(sha256: str, version: int) -> str:
            publish_plan(client, [arm(sha256)], version - 1)
            follower.step()
            assert engines.current is not None
            return engines.current.bundle.manifest_sha256

        follower.step()
        assert engines.current is not None
        assert engines.current.bundle.manifest_sha256 == A
        assert follow(B, 1) == B
        held = engines.held(A)
        assert follow(A, 2) == A
        assert engines.current is held  # going back loads nothing
        assert follow(BAD, 3) == A
        assert follower.refused is not None
        assert follower.refused.manifest_sha256 == BAD
        assert "was changed" in follower.refused.reason
        follower.step()  # not tried again at once
        assert metrics.value("degre_swaps_total", fate="refused") == 1
        assert kept.read() == follower.plan
        assert follower.plan is not None
        assert (follower.plan.version, follower.plan.arms) == (2, (arm(A),))
        assert follow(C, 4) == C
        assert follower.refused is None
        client.delete(PLAN_KEY)
        follower.step()
        assert engines.current.bundle.manifest_sha256 == C  # a plan that vanishes changes nothing
        client.set(PLAN_KEY, "nonsense")
        follower.step()
        assert follower.plan is not None
        assert (follower.plan.version, follower.readable()) == (4, True)
        follower._read_at -= 11
        follower.step()
        assert not follower.readable()
        assert metrics.value("degre_plan_readable") == 0
        assert metrics.value("degre_swaps_total", fate="loaded") == 2
        assert metrics.value("degre_swaps_total", fate="went_back") == 1
        assert metrics.value("degre_bundle_info", sha256=C, role="champion") == 1
        assert metrics.value("degre_bundle_info", sha256=A, role="champion") == 0
        follower.close()


def test_only_local_absolute_folders_are_fetched(tmp_path: Path) -> None:
    spaced = tmp_path / "a b"
    spaced.mkdir()
    assert fetch_local(spaced.as_uri()) == fetch_local(str(spaced)) == spaced
    for uri in ("s3://bucket/bundle", "file://elsewhere/bundle", "relative", str(tmp_path / "absent")):
        with pytest.raises(BundleError):
            fetch_local(uri)
