"""Short versions of `degre bench rollout`: real replicas, real Redis, simulated users, the controller in the test's process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest
import redis
from serving_server import poll

from orchestration.bench import rollout_drill
from orchestration.bench.bed import Bed, readyz, replica_urls
from orchestration.bench.rollout_drill import EXPECTED, abort_drill, design, drill_bed, run_drill
from orchestration.bench.rollout_traffic import Users
from orchestration.rollout import accounts, moves
from orchestration.rollout.controller import Controller
from orchestration.rollout.status import status
from serving.experiment import Design, Stage
from serving.plan_store import Author, history_gaps, read_history


@pytest.fixture(scope="module")
def world(
    ray_cluster: None,  # noqa: ARG001 - joins the session's cluster
    settled_heap: None,  # noqa: ARG001
) -> Iterator[tuple[Bed, Users]]:
    with ExitStack() as stack:
        patched = stack.enter_context(pytest.MonkeyPatch.context())
        patched.setattr(rollout_drill, "USERS", 600)
        patched.setattr(rollout_drill, "ITEMS", 300)
        patched.setattr(rollout_drill, "WATCHED_S", 1.5)
        patched.setattr(accounts, "SETTLE_S", 0.3)
        made, url = stack.enter_context(drill_bed())
        yield made, stack.enter_context(Users(url, users=600, items=300, rate=30.0))


def short(name: str) -> Design:
    stages = (
        Stage(name="shadow", share=0.0, min_seconds=0.5, min_samples=8),
        Stage(name="25%", share=0.25, min_seconds=0.5, min_samples=15),
        Stage(name="50%", share=0.5, min_seconds=0.5, min_samples=30),
        Stage(name="100%", share=1.0, min_seconds=0.5, min_samples=10),
    )
    return design(name).model_copy(update={"stages": stages, "min_users": 15, "guardrail_min_users": 10})


def guided(redis_url: str, name: str) -> int:
    with redis.Redis.from_url(redis_url) as client:
        Controller(client).run(name, look_s=0.1)
    return 0


@pytest.mark.parametrize("part", EXPECTED)
def test_a_challenger_gets_where_it_belongs(world: tuple[Bed, Users], part: str) -> None:
    made, users = world
    drill = run_drill(made, users, part, short(part), partial(guided, made.redis_url))
    assert drill.outcome == EXPECTED[part], drill
    assert drill.failed_requests == 0, drill
    if part == "slow":
        assert "p99 guardrail" in drill.why
    with redis.Redis.from_url(made.redis_url) as client:
        assert history_gaps(read_history(client)) == []


def test_an_aborted_challenger_answers_nobody_soon_after(world: tuple[Bed, Users]) -> None:
    made, users = world
    before = len(users.seen)
    assert abort_drill(made, users) <= 3.0
    assert all(s.ok for s in users.seen[before:])
    assert {s.arm for s in users.seen[before:]} == {"champion", "challenger"}


def test_replicas_follow_within_two_seconds_and_status_tells(world: tuple[Bed, Users]) -> None:
    made, _ = world
    with redis.Redis.from_url(made.redis_url) as client:
        poll(lambda: status(client)["agree"])
        moves.start(client, made.second.path, short("told"), Author(by="ann", why="look"))
        version = status(client)["plan"]["version"]
        started = time.monotonic()
        poll(lambda: status(client)["agree"])
        told = status(client)
        took_s = time.monotonic() - started
        assert len(told["replicas"]) == 2
        poll(lambda: len(replica_urls()) == 2)
        assert {r["version"] for r in told["replicas"]} == {version}
        assert (told["experiment"]["stage"], told["history"][-1]["by"]) == ("shadow", "ann")
        ready = readyz(replica_urls()[0])
        assert (ready["challenger"], ready["experiment"]["stage"]) == (made.second.manifest_sha256, "shadow")
        moves.abort(client, Author())
        began = time.monotonic()
        poll(lambda: status(client)["agree"])
        assert time.monotonic() - began < 2.0
        # Loading a bundle on a busy machine takes what it takes; following a plan whose bundles are loaded does not.
        assert took_s < 10.0
