"""An experiment over HTTP: who answers, what is logged, and a challenger in shadow that nobody notices."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import redis
from rollout_plans import A, B, arm, design, plan_at
from serving_fakes import FakeBundle, FakeFeatures, fake_engine
from serving_server import poll, served

from orchestration.rollout.evidence import ShadowCounts, read_shadow
from serving.engine import Engine
from serving.event_log import SHARDS, shard_key
from serving.metrics import Metrics
from serving.plan import PlanArm, RolloutPlan, alone
from serving.plan_store import publish_plan
from serving.reports import read_reports
from serving.shadow import Shadow


@dataclass
class Challenger(FakeBundle):
    """The lowest item first; `gate` held closed makes it hang."""

    gate: threading.Event | None = None

    def decode(self, encoded: Any, length: int, rules: Any = None) -> Any:
        if self.gate is not None:
            self.gate.wait(10)
        return super().decode({"ids": -encoded["ids"]}, length, rules)


@contextmanager
def trial(url: str, plan: RolloutPlan, bundle: FakeBundle, **serving: Any) -> Iterator[tuple[str, redis.Redis]]:
    """A service with champion A that has loaded challenger B; deadlines that the test's own pauses do not reach."""

    def load(_: PlanArm) -> Engine:
        return fake_engine(FakeFeatures(), bundle, deadline_ms=5000.0)

    with redis.Redis.from_url(url) as client:
        publish_plan(client, [arm(A)], 0)
        with served(fake_engine(FakeFeatures(), deadline_ms=5000.0), url, load=load, **serving) as base:
            publish_plan(client, plan.arms, 1, plan.experiment)
            poll(lambda: any(r.challenger == B for r in read_reports(client)))
            yield base, client


def ask(base: str, user: int, number: int = 0) -> dict[str, Any]:
    body = {"user_id": user, "request_id": f"r{user}-{number}", "candidates": [{"id": i} for i in (5, 9, 3, 4)]}
    answer = httpx.post(f"{base}/v1/rerank", json=body)
    assert answer.status_code == 200
    return dict(answer.json())


def ids(answer: dict[str, Any]) -> list[int]:
    return [item["id"] for item in answer["items"]]


def logged(client: redis.Redis) -> dict[str, dict[str, Any]]:
    records = [
        json.loads(fields[b"record"]) for s in range(SHARDS) for _, fields in client.xrange(shard_key("served", s))
    ]
    return {r["request_id"]: r for r in records}


def test_each_arm_answers_its_users_and_says_so(clean_redis: str) -> None:
    plan = plan_at(1, overrides={"7": "challenger"}, holdout=0.2)
    with trial(clean_redis, plan, Challenger(B)) as (base, client):
        answers = {user: ask(base, user) for user in range(40)}
        lists = {"champion": (A, [9, 5, 4]), "challenger": (B, [3, 4, 5])}
        for answer in answers.values():
            assert (answer["bundle"], ids(answer)) == lists[answer["arm"]]
        assert answers[7]["arm"] == "challenger"
        assert "experiment" not in answers[7]  # a tester does not count
        counted = {user for user, answer in answers.items() if answer.get("experiment") == "trial"}
        assert 20 < len(counted) < 40
        assert {answers[user]["arm"] for user in counted} == {"champion", "challenger"}
        assert {answers[user]["arm"] for user in set(answers) - counted - {7}} == {"champion"}
        poll(lambda: len(logged(client)) == 40)
        for user, answer in answers.items():
            record = logged(client)[f"r{user}-0"]
            assert (record["arm"], record["bundle"]) == (answer["arm"], answer["bundle"])
            assert record["exposure"] == (["trial", "half"] if user in counted else None)
            assert record["took_ms"] == answer["timings_ms"]["total"]
        metrics = httpx.get(f"{base}/metrics").text
        assert f'degre_bundle_info{{role="challenger",sha256="{B}"}} 1.0' in metrics
        challenged = sum(a["arm"] == "challenger" for a in answers.values())
        counted_as = 'degre_rerank_total{arm="challenger",source="generator",status="200"}'
        assert f"{counted_as} {challenged:.1f}" in metrics
        publish_plan(client, alone(arm(A)), 2)
        poll(lambda: ask(base, 7, 1)["arm"] == "champion")
        assert "experiment" not in ask(base, 8, 2)


@pytest.mark.parametrize(("broken", "outcome"), [("", "ok"), ("raises", "failed"), ("twice", "failed")])
def test_shadow_records_and_changes_nothing(clean_redis: str, broken: str, outcome: str) -> None:
    with trial(clean_redis, plan_at(0), Challenger(B, broken=broken), shadow_cpu_share=1.0) as (base, client):
        for user in range(12):
            answer = ask(base, user)
            assert (answer["arm"], answer["source"], ids(answer)) == ("champion", "generator", [9, 5, 4])
            assert answer["experiment"] == "trial"
        poll(lambda: read_shadow(client, "trial").lists == 12)
        found = read_shadow(client, "trial")
        assert getattr(found, outcome) == 12
        if not broken:
            # Two of the three items are the same, and never the first one.
            assert (found.compared, found.same, found.first, found.overlap) == (12, 0, 0, pytest.approx(12 * 2 / 3))
        assert f'degre_shadow_total{{outcome="{outcome}"}} 12.0' in httpx.get(f"{base}/metrics").text


def test_a_challenger_that_hangs_in_shadow_costs_nothing_and_is_counted_as_dropped(clean_redis: str) -> None:
    gate = threading.Event()
    with trial(clean_redis, plan_at(0), Challenger(B, gate=gate), shadow_queue=4) as (base, client):
        for user in range(12):
            assert ids(ask(base, user)) == [9, 5, 4]
        gate.set()
        poll(lambda: read_shadow(client, "trial").lists >= 5)
        found = read_shadow(client, "trial")
        assert found.dropped + found.lists == 12
        assert found.dropped >= 7  # one under way, four waiting


def test_a_stage_asks_for_its_share_in_shadow_and_for_none_when_users_see_it(clean_redis: str) -> None:
    with trial(clean_redis, plan_at(0, shadow=design().shadow.model_copy(update={"share": 0.3})), Challenger(B)) as (
        base,
        client,
    ):
        for number in range(60):
            ask(base, number)
        poll(lambda: read_shadow(client, "trial").lists >= 5)
        assert read_shadow(client, "trial").lists < 40
        plan = plan_at(1)
        publish_plan(client, plan.arms, 2, plan.experiment)
        poll(lambda: any(r.version == 3 for r in read_reports(client)))
        before = httpx.get(f"{base}/metrics").text
        for number in range(60, 80):
            ask(base, number)
        after = httpx.get(f"{base}/metrics").text
        # What still waited may be computed now; the newcomers ask for nothing.
        assert total(after, "degre_shadow_total") - total(before, "degre_shadow_total") <= 5


def total(text: str, name: str) -> float:
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"{name}{{"))


def test_the_budget_of_processor_time_holds(clean_redis: str) -> None:
    """A challenger that burns 20 ms a list gets about a tenth of a core."""
    import time

    @dataclass
    class Burner(Challenger):
        def decode(self, encoded: Any, length: int, rules: Any = None) -> Any:
            until = time.thread_time() + 0.02
            while time.thread_time() < until:
                pass
            return super().decode(encoded, length, rules)

    shadow = Shadow(clean_redis, cpu_share=0.1, queue=100, timeout_ms=1000.0, metrics=Metrics())
    engine = fake_engine(FakeFeatures(), Burner(B))
    from serving.protocol import RerankRequest

    received = RerankRequest.model_validate({"user_id": 1, "candidates": [{"id": i} for i in (1, 2, 3)]})
    started = time.monotonic()
    for _ in range(6):
        shadow.offer(engine, "trial", engine.prepare(received), [3, 2, 1], True)
    with redis.Redis.from_url(clean_redis) as client:
        poll(lambda: read_shadow(client, "trial").lists == 6)
        assert time.monotonic() - started >= 0.9  # 5 pauses of 180 ms
        assert read_shadow(client, "trial") != ShadowCounts()
    shadow.close()
