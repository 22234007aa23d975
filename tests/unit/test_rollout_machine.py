"""The machine: users' accounts from the streams, the rules, and that being killed anywhere changes nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import redis
from rollout_plans import T0, A, B, arm, design, feedback, follow, plan_at, report, served

from degre_prod.errors import MismatchError
from degre_prod.experiments.moments import moments_of
from orchestration.rollout import accounts, decide, moves
from orchestration.rollout.accounts import Accounts
from orchestration.rollout.controller import Controller, ended
from orchestration.rollout.decide import exceeds
from orchestration.rollout.evidence import Evidence, ShadowCounts, gather, read_shadow, results
from orchestration.rollout.lease import Lease
from orchestration.rollout.status import as_text, status
from orchestration.rollout.sums import crossed, read_moments
from serving.plan import RolloutPlan
from serving.plan_store import (
    LEASE_KEY,
    Author,
    history_gaps,
    holder,
    publish_plan,
    read_history,
    read_plan,
    redis_time,
)
from serving.shadow import SHADOW_KEY


@pytest.fixture
def client(clean_redis: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(accounts, "SETTLE_S", -1.0)  # feedback need not wait for its list: it is there
    with redis.Redis.from_url(clean_redis) as made:
        yield made


def shadow_counts(client: redis.Redis, **counts: float) -> None:
    for name, value in counts.items():
        client.hincrbyfloat(f"{SHADOW_KEY}trial", name, value)


def traffic(client: redis.Redis, stage: str, users: range, clicks: Callable[[str, int], int], **given: Any) -> None:
    """Two requests of every user, even users on the champion, with so many clicks each."""
    for user in users:
        who = "champion" if user % 2 == 0 and stage != "all" else "challenger"
        for visit in range(2):
            request_id = f"{stage}-{user}-{visit}"
            served(client, request_id, user, stage, who, **(given if who == "challenger" else {}))
            if count := clicks(who, user + visit):
                feedback(client, request_id, *(f"{request_id}-{k}" for k in range(count)))


def test_accounts_are_the_users_moments(client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against figures worked out from all users at once; in pieces, with repeats and strangers among them."""
    monkeypatch.setattr(accounts, "BATCH", 7)
    client.set(LEASE_KEY, "mine")
    plan = plan_at(1)
    assert plan.experiment is not None

    def catch_up() -> int:
        return Accounts(client, plan.experiment, T0, "mine").catch_up()  # type: ignore[arg-type]

    rng = np.random.default_rng(0)
    figures: dict[tuple[str, int], np.ndarray] = {}
    shadow: dict[int, tuple[float, float]] = {}
    number = 0
    for stage in ("shadow", "half"):
        for _ in range(120):
            user, count = int(rng.integers(30)), int(rng.integers(3))
            who = "champion" if stage == "shadow" or user % 2 == 0 else "challenger"
            slow, fell = bool(rng.random() < 0.2), bool(rng.random() < 0.2)
            request_id = f"r{number}"
            number += 1
            for _ in range(2):  # appended again after a lost reply
                served(
                    client,
                    request_id,
                    user,
                    stage,
                    who,
                    took_ms=80.0 if slow else 9.0,
                    source="fallback_score" if fell else "generator",
                    degraded=["model_error"] if fell else [],
                )
                feedback(client, request_id, *(f"{request_id}-{k}" for k in range(count)))
            row = figures.setdefault((stage, user), np.zeros(5))
            row += (1, count, fell, fell, slow)
            if stage == "shadow":
                shadow[user] = (row[1], row[0])
            if rng.random() < 0.1:
                catch_up()
        catch_up()
    served(client, "elsewhere", 1, "half", "champion", exposure=None)
    served(client, "other", 1, "half", "champion", exposure=["another", "half"])
    served(client, "crossing", 2, "half", "challenger")
    feedback(client, "unknown", "e1")
    client.xadd("degre:served:0", {"record": "no json"})
    client.xadd("degre:feedback:1", {"record": "[]"})
    catch_up()
    assert catch_up() == 0
    found = read_moments(client, "trial")["half"]
    for who, odd in (("champion", 0), ("challenger", 1)):
        rows = {u: r for (stage, u), r in figures.items() if stage == "half" and u % 2 == odd}
        requests, *columns = np.array(list(rows.values())).T
        before = np.array([shadow.get(u, (0, 0)) for u in rows])
        assert found[who]["primary"].flat() == pytest.approx(moments_of(columns[0], requests, before).flat())
        for metric, column in zip(("fallback", "error", "p99"), columns[1:], strict=True):
            assert found[who][metric].flat() == pytest.approx(moments_of(column, requests).flat())
    assert crossed(client, "trial") == 1


def test_accounts_need_the_lease(client: redis.Redis) -> None:
    served(client, "r", 1, "half", "champion")
    plan = plan_at(1)
    client.set(LEASE_KEY, "theirs")
    with pytest.raises(MismatchError, match="lease"):
        Accounts(client, plan.experiment, T0, "mine").catch_up()  # type: ignore[arg-type]
    assert read_moments(client, "trial") == {}


def test_one_controller_holds_the_lease(client: redis.Redis) -> None:
    first, second = Lease(client), Lease(client)
    assert first.hold()
    assert first.hold()
    assert not second.hold()
    second.release()  # not its own
    assert holder(client) == first.token.rpartition("/")[0]
    first.release()
    assert second.hold()


def test_evidence_of_a_share_above_its_bound() -> None:
    """Rarely a false alarm at any of 300 looks, soon an alarm when the share is three times the bound."""
    rng = np.random.default_rng(1)

    def alarmed(share: float) -> list[bool]:
        draws = rng.random((300, 300)) < share
        return [
            any(exceeds(int(seen), n + 1, 0.05) >= 20 for n, seen in enumerate(np.cumsum(row)) if n % 10 == 0)
            for row in draws
        ]

    assert np.mean(alarmed(0.05)) < 0.05
    assert np.mean(alarmed(0.15)) > 0.95
    assert exceeds(1, 1, 0.0) > 1000
    assert exceeds(0, 0, 0.01) == pytest.approx(1)


def evidence(plan: RolloutPlan, **given: Any) -> Evidence:
    values = {
        "now": T0 + timedelta(hours=1),
        "reports": (report(plan),),
        "shadow": ShadowCounts(lists=50, ok=50),
        "users": {"champion": 500, "challenger": 500},
        "results": None,
    }
    return Evidence(**(values | given))


def look(
    plan: RolloutPlan, effect: float, users: int = 400, slow: float = 0.0, seed: int = 0, sizes: Any = None
) -> Evidence:
    """Evidence of a stage in which the challenger's users click so much more."""
    assert plan.experiment is not None
    rng = np.random.default_rng(seed)
    moments: dict[str, Any] = {}
    for who, times, late in (("champion", 1.0, 0.0), ("challenger", 1 + effect, slow)):
        count = (sizes or {}).get(who, users)
        requests = rng.integers(1, 5, count)
        clicks, slows = rng.poisson(requests * 0.8 * times), rng.binomial(requests, late)
        none = moments_of(np.zeros(count), requests)
        moments[who] = {
            "primary": moments_of(clicks, requests),
            "fallback": none,
            "error": none,
            "p99": moments_of(slows, requests),
        }
    stage = plan.experiment.now.name
    here = {stage: moments} if plan.experiment.now.share < 1 else {"half": moments, stage: moments}
    counts = {who: int(m["primary"].count) for who, m in moments.items()}
    if plan.experiment.now.share == 1:
        counts["champion"] = 0
        here[stage] = {"challenger": moments["challenger"]}
    return evidence(plan, users=counts, results=results(plan.experiment, here))


def move(plan: RolloutPlan, found: Evidence) -> tuple[str, str]:
    decision = decide.decide(plan, found)
    return decision.move, " / ".join([decision.reason, *decision.waiting_for])


def test_shadow_passes_what_answers_and_rejects_what_does_not() -> None:
    plan = plan_at(0)
    assert move(plan, evidence(plan))[0] == "advance"
    assert move(plan, evidence(plan, shadow=ShadowCounts(lists=9, ok=9)))[1].endswith("9 of 10 lists in shadow")
    assert "3 of 3 lists failed" in move(plan, evidence(plan, shadow=ShadowCounts(lists=3, failed=3)))[1]
    assert move(plan, evidence(plan, shadow=ShadowCounts(lists=2, ok=1, failed=1)))[0] == "wait"
    late = ShadowCounts(lists=100, ok=80, late=20)
    assert move(plan, evidence(plan, shadow=late)) == ("rollback", "shadow: 20 of 100 lists were late, 5.0% may")
    # Redis's fault is not the challenger's.
    assert move(plan, evidence(plan, shadow=ShadowCounts(lists=99, other=99)))[0] == "wait"


def test_replicas_and_time_are_waited_for_and_a_refusal_ends_it() -> None:
    plan = plan_at(0)
    assert "a replica that reports" in move(plan, evidence(plan, reports=()))[1]
    behind = (report(plan), report(plan, "r2", version=1, challenger=None))
    assert "replica r2, which serves version 1" in move(plan, evidence(plan, reports=behind))[1]
    refused = (report(plan, refused=B, refused_because="hash"),)
    assert move(plan, evidence(plan, reports=refused)) == (
        "rollback",
        "shadow: replica r1 refuses the bundle: hash",
    )
    stages = tuple(s.model_copy(update={"min_seconds": 7200.0}) for s in design().stages)
    slow = plan_at(0, stages=stages)
    assert "3600 s more" in move(slow, evidence(slow))[1]


def test_figures_decide() -> None:
    plan = plan_at(1)
    assert move(plan, look(plan, 0.5))[0] == "advance"
    assert "10 of 40 users of the challenger" in move(plan, look(plan, 0.5, users=10))[1]
    verdict, why = move(plan, look(plan, -0.5))
    assert (verdict, "click is worse" in why) == ("rollback", True)
    verdict, why = move(plan, look(plan, 0.5, slow=0.9))
    assert (verdict, "p99 guardrail" in why) == ("rollback", True)
    verdict, why = move(plan, look(plan, 0.0, users=20_000))
    assert (verdict, "smallest worth having" in why) == ("rollback", True)
    verdict, why = move(plan, look(plan, 0.0, sizes={"champion": 900, "challenger": 500}))
    assert (verdict, "sample-ratio mismatch" in why) == ("rollback", True)
    verdict, why = move(plan, look(plan, 0.04, users=300))
    assert (verdict, "the primary metric" in why) == ("wait", True)
    equal = plan_at(1, primary={"smallest_effect": 0.1, "decision": "non_inferior"})
    assert move(equal, look(equal, 0.0, users=20_000))[0] == "advance"
    quarter = plan_at(0, stages=[{"name": "q", "share": 0.5, "min_seconds": 0}, {"name": "h", "share": 0.6}])
    assert "looks worse" in move(quarter, look(quarter, -0.3, users=60))[1]


def test_after_the_last_stage_it_is_promoted_or_left_to_people() -> None:
    plan = plan_at(2)
    assert move(plan, look(plan, -0.5))[0] == "promote"  # no fair comparison any more, and none is made
    verdict, why = move(plan, look(plan, 0.5, slow=0.9))
    assert (verdict, "p99 guardrail" in why) == ("rollback", True)
    by_hand = plan_at(2, promote=False)
    assert move(by_hand, look(by_hand, 0.5))[0] == "ready"
    held = plan_at(2, held=True)
    assert move(held, look(held, 0.5))[0] == "wait"
    assert move(held, look(held, 0.5, slow=0.9))[0] == "rollback"


class DiesError(BaseException):
    """What a SIGKILL does: nothing after it."""


class Mortal(redis.Redis):
    """Dies before the command or transaction with the number `left`, or after it (its reply is lost)."""

    left = 10**9
    after = False

    def execute_command(self, *args: Any, **options: Any) -> Any:
        return self._mortal(lambda: super(Mortal, self).execute_command(*args, **options))

    def _mortal(self, call: Callable[[], Any]) -> Any:
        Mortal.left -= 1
        if Mortal.left == 0 and not Mortal.after:
            raise DiesError
        result = call()
        if Mortal.left == 0:
            raise DiesError
        return result

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        made = super().pipeline(transaction, shard_hint)
        execute = made.execute
        made.execute = lambda *a, **k: self._mortal(lambda: execute(*a, **k))
        return made


def begin(client: redis.Redis) -> None:
    """Champion A, an experiment of B at shadow, one replica."""
    publish_plan(client, [arm(A)], 0)
    first = plan_at(0)
    assert first.experiment is not None
    experiment = first.experiment.model_copy(update={"since": redis_time(client)})
    publish_plan(client, first.arms, 1, experiment, Author("start"))


def drive(client: redis.Redis, controllers: Callable[[], Controller], clicks: Callable[[str, int], int]) -> Any:
    """Let the world answer every stage until the experiment is over; the controller is made anew after each death."""
    begin(client)
    shadow_counts(client, lists=20, ok=20)
    sent: set[str] = set()
    controller = controllers()
    for _ in range(60):
        plan = read_plan(client)
        assert plan is not None
        if plan.experiment is None:
            return ended(client)
        follow(client, plan)
        stage = plan.experiment.now.name
        if stage not in sent and stage != "shadow":
            sent.add(stage)
            traffic(client, stage, range(160), clicks)
        try:
            controller.step()
        except DiesError:
            client.delete(LEASE_KEY)  # it would expire
            controller = controllers()
    raise AssertionError("the experiment does not end")


@pytest.mark.parametrize(("gain", "ending"), [(2, "promoted"), (0, "rolled_back")])
def test_killed_at_any_point_it_ends_the_same(client: redis.Redis, clean_redis: str, gain: int, ending: str) -> None:
    def clicks(who: str, number: int) -> int:
        return (number % 3 == 0) + (gain if who == "challenger" else 1) * (number % 2)

    def compared(url: str) -> tuple[Any, ...]:
        with redis.Redis.from_url(url) as own:
            history = read_history(own)
            figures = {
                s: {a: m["primary"].flat() for a, m in arms.items()} for s, arms in read_moments(own, "trial").items()
            }
            return ended(own), [p.change.action for p in history if p.change], history_gaps(history), figures

    drive(client, lambda: Controller(client), clicks)
    expected = compared(clean_redis)
    assert expected[0].ending == ending
    assert expected[2] == []
    rng, deaths = random.Random(gain), []
    with Mortal.from_url(clean_redis) as mortal:

        def controllers() -> Controller:
            deaths.append(0)
            Mortal.left, Mortal.after = rng.randint(1, 60), rng.random() < 0.5
            return Controller(mortal)

        for _ in range(15):
            client.flushdb()
            drive(client, controllers, clicks)
            Mortal.left = 10**9
            assert compared(clean_redis) == expected
    assert len(deaths) > 30  # one controller is made for each of the 15 experiments, the others after a death


def test_a_person_may_act_while_the_machine_does(client: redis.Redis) -> None:
    begin(client)
    plan = read_plan(client)
    assert plan is not None
    follow(client, plan)
    moves.hold(client, Author(by="ann", why="sale"), held=True)
    with pytest.raises(MismatchError, match="held already"):
        moves.hold(client, Author(), held=True)
    controller = Controller(client)
    decision = controller.step()
    assert decision is not None
    assert decision.move == "wait"
    document = status(client)
    assert document["experiment"]["held"]
    assert document["behind"] == ["r1"]
    assert "held" in as_text(document)
    with pytest.raises(MismatchError, match="at version 3, not 2"):
        moves.advance(client, Author(), expected=2)
    moves.hold(client, Author(), held=False)
    assert moves.advance(client, Author(by="ann")).arms[1].weight == 0.5
    ended_by_hand = moves.abort(client, Author(by="ann", why="complaints"))
    assert (ended_by_hand.champion.manifest_sha256, ended_by_hand.experiment) == (A, None)
    outcome = ended(client, "trial")
    assert outcome is not None
    assert (outcome.ending, outcome.stage, outcome.why) == ("aborted", "half", "complaints")
    for again in (moves.advance, moves.abort, moves.promote):
        with pytest.raises(MismatchError, match="no experiment is under way"):
            again(client, Author())
    assert ended(client, "unknown").ending == "none"  # type: ignore[union-attr]


def test_going_back_is_one_step(client: redis.Redis) -> None:
    begin(client)
    assert moves.promote(client, Author()).champion.manifest_sha256 == B
    assert moves.rollback(client, Author(why="fell")).champion.manifest_sha256 == A
    client.flushdb()
    begin(client)
    assert moves.rollback(client, Author()).experiment is None
    with pytest.raises(MismatchError, match="no other champion"):
        moves.rollback(client, Author())


def test_two_controllers_take_turns(client: redis.Redis) -> None:
    begin(client)
    said: list[str] = []
    first, second = Controller(client), Controller(client, say=said.append)
    assert first.step() is not None
    assert second.step() is None
    assert said == ["another controller acts; waiting for its lease"]
    client.delete(LEASE_KEY)
    assert second.step() is not None
    assert first.step() is None


def test_shadow_counters_are_read_as_shares(client: redis.Redis) -> None:
    shadow_counts(client, lists=10, ok=8, late=2, compared=8, same=4, first=6, overlap=6.0, le_5=9, le_100=1)
    found = read_shadow(client, "trial")
    assert (found.judged, found.ms) == (10, (5.0, 100.0))
    told = found.as_dict()
    assert (told["same"], told["first"], told["overlap"], told["p99_ms"]) == (0.5, 0.75, 0.75, 100.0)
    plan = plan_at(0)
    assert gather(client, plan).shadow == replace(found)
