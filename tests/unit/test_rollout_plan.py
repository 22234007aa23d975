"""The plan with an experiment: its document, its history, what replicas make of it."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
import redis
from pydantic import ValidationError
from rollout_plans import A, B, C, arm, design, plan_at
from serving_fakes import FakeBundle, fake_engine

from degre_prod.errors import BundleError, MismatchError
from serving.engine import Engine
from serving.engines import Engines
from serving.experiment import Experiment
from serving.metrics import Metrics
from serving.plan import PlanArm, PlanError, RolloutPlan, alone, parse_plan
from serving.plan_store import HISTORY_KEY, LEASE_KEY, PLAN_KEY, Author, history_gaps, publish_plan, read_history
from serving.protocol import RerankRequest
from serving.reports import REPLICA_KEY, read_reports
from serving.rollout import PlanFollower


def test_format_1_is_read_as_one_arm_and_kept_in_the_history(clean_redis: str) -> None:
    text = json.dumps({"format_version": 1, "version": 7, "arms": [arm(A).model_dump(exclude={"name"})]})
    assert parse_plan(text) == RolloutPlan(version=7, arms=(arm(A),))
    with pytest.raises(PlanError, match="format 1 has no experiment"):
        parse_plan(json.dumps(json.loads(text) | {"experiment": None}))
    with redis.Redis.from_url(clean_redis) as client:
        client.set(PLAN_KEY, text)
        publish_plan(client, [arm(B)], 7, None, Author("activate", "better", "ann"))
        history = read_history(client)
        assert [(p.version, p.champion.manifest_sha256) for p in history] == [(7, A), (8, B)]
        assert history_gaps(history) == []
        change = history[-1].change
        assert change is not None
        assert (change.action, change.by, change.why) == ("activate", "ann", "better")
        client.lrem(HISTORY_KEY, 1, client.lindex(HISTORY_KEY, 1))
        publish_plan(client, [arm(C)], 8)
        assert history_gaps(read_history(client)) == [9]


def test_a_lost_lease_publishes_nothing(clean_redis: str) -> None:
    with redis.Redis.from_url(clean_redis) as client:
        client.set(LEASE_KEY, "mine")
        assert publish_plan(client, [arm(A)], 0, None, Author(lease="mine")).version == 1
        client.set(LEASE_KEY, "theirs")
        with pytest.raises(MismatchError, match="lease"):
            publish_plan(client, [arm(B)], 1, None, Author(lease="mine"))


def test_a_plan_agrees_with_itself() -> None:
    plan = plan_at(1)
    values = json.loads(plan.model_dump_json())
    assert parse_plan(json.dumps(values)) == plan
    for change, complaint in (
        ({"experiment": None}, "one arm"),
        ({"arms": values["arms"][:1]}, "champion and challenger"),
        ({"arms": values["arms"][::-1]}, "champion and challenger"),
        ({"arms": [values["arms"][0], values["arms"][1] | {"weight": 0.1}]}, "gives the challenger 0.5"),
        ({"experiment": values["experiment"] | {"stage": 3}}, "stage 3 of 3"),
        ({"experiment": values["experiment"] | {"colour": "red"}}, "colour"),
    ):
        with pytest.raises(PlanError, match=complaint):
            parse_plan(json.dumps(values | change))


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"stages": [{"name": "a", "share": 0.5}, {"name": "b", "share": 0.5}]}, "must grow"),
        ({"stages": [{"name": "a", "share": 0.1}, {"name": "a", "share": 0.5}]}, "same name"),
        ({"guardrails": [{"metric": "p99"}]}, "p99 needs it"),
        ({"guardrails": [{"metric": "error", "bound_ms": 3}]}, "bound_ms belongs to p99"),
        ({"guardrails": [{"metric": "error"}, {"metric": "error"}]}, "same metric"),
        ({"overrides": {"1": "nobody"}}, "champion"),
    ],
)
def test_a_design_that_makes_no_sense_says_so(wrong: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        design(**wrong)


def engine(sha256: str) -> Engine:
    return fake_engine(bundle=FakeBundle(manifest_sha256=sha256))


class Follower:
    """A follower of the plan in Redis; `bad` bundles cannot be loaded, `while_loading` runs meanwhile."""

    def __init__(self, url: str) -> None:
        self.engines, self.metrics = Engines(), Metrics()
        self.engines.serve(engine(A))
        self.bad: set[str] = set()
        self.while_loading: Any = lambda: None
        self.loaded: list[str] = []
        self.follower = PlanFollower(redis.Redis.from_url(url), self.engines, self.load, self.metrics, None)

    def load(self, wanted: PlanArm) -> Engine:
        self.while_loading()
        if wanted.manifest_sha256 in self.bad:
            raise BundleError("its weights were changed")
        self.loaded.append(wanted.manifest_sha256[0])
        return engine(wanted.manifest_sha256)

    def arms(self) -> str:
        """First letters of what answers."""
        self.follower.step()
        trial, current = self.engines.trial, self.engines.current
        assert current is not None
        return current.bundle.manifest_sha256[0] + (trial.challenger.bundle.manifest_sha256[0] if trial else "")


def publish(client: redis.Redis, plan: RolloutPlan) -> RolloutPlan:
    return publish_plan(client, plan.arms, plan.version - 1, plan.experiment)


def test_a_replica_follows_an_experiment_to_its_end(clean_redis: str) -> None:
    replica = Follower(clean_redis)
    with redis.Redis.from_url(clean_redis) as client:
        publish_plan(client, [arm(A)], 0)
        assert replica.arms() == "a"
        publish(client, plan_at(0))
        assert replica.arms() == "ab"
        (told,) = read_reports(client)
        assert (told.version, told.champion, told.challenger, told.stage) == (2, A, B, "shadow")
        publish(client, plan_at(1, version=3))
        assert replica.arms() == "ab"
        assert replica.loaded == ["b"]
        assert replica.metrics.value("degre_bundle_info", sha256=B, role="challenger") == 1
        publish_plan(client, alone(arm(B)), 3)
        assert replica.arms() == "b"
        assert replica.metrics.value("degre_swaps_total", fate="promoted") == 1
        publish_plan(client, alone(arm(A)), 4)
        assert replica.arms() == "a"
        assert replica.loaded == ["b"]  # the champion before was still held
        replica.follower.close()
        assert read_reports(client) == []


def test_an_aborted_challenger_is_closed_and_may_come_back(clean_redis: str) -> None:
    replica = Follower(clean_redis)
    closed: list[str] = []
    with redis.Redis.from_url(clean_redis) as client:
        publish_plan(client, [arm(A)], 0)
        publish(client, plan_at(1))
        assert replica.arms() == "ab"
        trial = replica.engines.trial
        assert trial is not None
        trial.challenger.close = lambda: closed.append("b")  # type: ignore[method-assign]
        publish_plan(client, alone(arm(A)), 2)
        assert replica.arms() == "a"
        assert replica.engines.held(B) is trial.challenger  # requests under way may still need it
        publish(client, plan_at(1, version=4))
        assert replica.arms() == "ab"
        publish_plan(client, alone(arm(A)), 4)
        assert replica.arms() == "a"
        replica.engines._displaced = [(0.0, e) for _, e in replica.engines._displaced]
        assert replica.arms() == "a"
        assert closed == ["b"]
        assert replica.engines.held(B) is None
        assert replica.loaded == ["b"]


def test_a_refused_challenger_leaves_the_champion_alone(clean_redis: str) -> None:
    replica = Follower(clean_redis)
    replica.bad.add(B)
    with redis.Redis.from_url(clean_redis) as client:
        publish_plan(client, [arm(A)], 0)
        publish(client, plan_at(1))
        assert replica.arms() == "a"
        (told,) = read_reports(client)
        assert (told.version, told.challenger, told.refused) == (2, None, B)
        assert "weights were changed" in str(told.refused_because)
        replica.bad.clear()
        assert replica.arms() == "a"  # not tried again at once
        replica.follower._retry_at = 0.0
        assert replica.arms() == "ab"
        assert read_reports(client)[0].refused is None


def test_an_abort_while_the_challenger_is_loaded_keeps_it_out(clean_redis: str) -> None:
    replica = Follower(clean_redis)
    with redis.Redis.from_url(clean_redis) as client:
        publish_plan(client, [arm(A)], 0)
        publish(client, plan_at(1))
        replica.while_loading = lambda: publish_plan(client, alone(arm(A)), 2)
        assert replica.arms() == "a"
        replica.while_loading = lambda: None
        assert replica.arms() == "a"
        assert replica.follower.plan is not None
        assert replica.follower.plan.version == 3


def test_another_experiment_takes_the_first_one_off_before_it_loads(clean_redis: str) -> None:
    replica, seen = Follower(clean_redis), []
    with redis.Redis.from_url(clean_redis) as client:
        publish_plan(client, [arm(A)], 0)
        publish(client, plan_at(1))
        assert replica.arms() == "ab"
        replica.while_loading = lambda: seen.append(replica.engines.trial)
        other = plan_at(1, version=3)
        publish_plan(
            client, [other.arms[0], other.arms[1].model_copy(update={"manifest_sha256": C})], 2, other.experiment
        )
        assert replica.arms() == "ac"
        assert seen == [None]


def test_an_unreadable_plan_leaves_the_champion_alone_until_it_is_back(clean_redis: str) -> None:
    replica = Follower(clean_redis)
    with redis.Redis.from_url(clean_redis) as client:
        publish_plan(client, [arm(A)], 0)
        publish(client, plan_at(1))
        assert replica.arms() == "ab"
        text = client.get(PLAN_KEY)
        client.set(PLAN_KEY, "nonsense")
        assert replica.arms() == "ab"
        replica.follower._read_at -= 11
        client.delete(REPLICA_KEY + replica.follower.replica)  # its report before has expired
        assert replica.arms() == "a"
        assert [(r.champion, r.readable) for r in read_reports(client)] == [(A, False)]
        client.set(PLAN_KEY, text)
        assert replica.arms() == "ab"


def test_who_answers_whom() -> None:
    """By hash and countable, or a tester, held out, out of scope and not."""
    from serving.engines import Trial

    planned = design(overrides={"1": "challenger", "2": "champion"}, scopes={"country": ("DE",)}, holdout=0.3)

    def trial(stage: int) -> Trial:
        experiment = Experiment(**planned.model_dump(), stage=stage, since="2026-01-01T00:00:00Z")
        return Trial(engine(A), engine(B), experiment, experiment.allocation)

    def choose(stage: int, user: int, country: str = "DE") -> tuple[str, bool]:
        request = RerankRequest.model_validate(
            {"user_id": user, "candidates": [{"id": 1}], "context": {"country": country}}
        )
        chosen, name, exposure = trial(stage).choose(request)
        assert chosen.bundle.manifest_sha256 == {"champion": A, "challenger": B}[name]
        assert exposure is None or exposure == ("trial", ("shadow", "half", "all")[stage])
        return name, exposure is not None

    assert choose(0, 1) == ("challenger", False)
    assert choose(2, 2) == ("champion", False)
    assert choose(2, 3, "AT") == ("champion", False)
    users = range(10, 400)
    in_shadow, at_half, at_all = ([choose(stage, u) for u in users] for stage in (0, 1, 2))
    assert {name for name, _ in in_shadow} == {"champion"}
    assert 0.2 < sum(not counted for _, counted in at_all) / len(users) < 0.4  # the holdout
    assert {name for name, counted in at_all if counted} == {"challenger"}
    assert {name for name, counted in at_all if not counted} == {"champion"}
    assert 0.4 < sum(n == "challenger" for n, counted in at_half if counted) / sum(c for _, c in at_half) < 0.6


def test_one_writer_wins(clean_redis: str) -> None:
    """Many publish at once in the place of the same version: one does, and the history has no gap."""
    with redis.Redis.from_url(clean_redis) as client:
        publish_plan(client, [arm(A)], 0)
        won: list[int] = []

        def attempt(number: int) -> None:
            try:
                publish_plan(client, [arm(B)], 1, None, Author(by=str(number)))
                won.append(number)
            except MismatchError:
                pass

        threads = [threading.Thread(target=attempt, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        history = read_history(client)
        assert len(won) == 1
        assert [p.version for p in history] == [1, 2]
