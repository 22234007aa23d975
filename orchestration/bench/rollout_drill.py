"""`degre bench rollout`: four bundles try to reach simulated users, a real service and the real controller between them.

A better one gets there by itself. A worse, a slow and a broken one are sent back by themselves. Then an experiment at 50 % is
aborted, and with `kills` the drills are run again with a controller that is killed again and again.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import redis

from degre_prod.errors import ServiceError
from orchestration.bench.acting import acting_engine
from orchestration.bench.bed import Bed, bed, service, until
from orchestration.bench.report import machine
from orchestration.bench.rollout_traffic import CANDIDATES, LENGTH, Users
from orchestration.bench.swaps import renamed
from orchestration.rollout import moves
from orchestration.rollout.activate import activate
from orchestration.rollout.controller import ended
from serving.experiment import Design, Guardrail, PrimaryMetric, ShadowLimits, Stage
from serving.heap import settle_heap
from serving.plan_store import Author, history_gaps, read_history

USERS, ITEMS = 2000, 3000
RATE = 40.0
REPLICAS = 2
DRILL_S = 150.0  # a drill that takes longer has failed
WATCHED_S = 5.0  # after an abort
EXPECTED = {
    "better": "promoted",
    "worse": "rolled_back",
    "slow": "rolled_back",
    "broken": "rejected_in_shadow",
}
CONTROLLER = "import sys; from orchestration.cli import main; sys.argv[0] = 'degre'; main()"

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Drill:
    """One challenger: how its experiment ended, at which stage, how long it took, requests that failed meanwhile."""

    name: str
    outcome: str
    stage: str
    seconds: float
    failed_requests: int
    requests: int
    why: str
    kills: int


def bench_rollout(kills: int = 0, say: Say = lambda _: None) -> dict[str, Any]:
    """The four drills and the abort on two replicas; with `kills`, all drills again and again until as many were killed."""
    with drill_bed() as (made, url), Users(url, users=USERS, items=ITEMS, rate=RATE) as users:
        settle_heap()
        until(lambda: len(users.seen) >= RATE, "no answers")
        guided = partial(by_command, made.redis_url)
        drills = [run_drill(made, users, name, design(name), guided, say) for name in EXPECTED]
        abort_s = abort_drill(made, users)
        say(f"abort: {abort_s:.2f} s")
        again: list[Drill] = []
        chance = random.Random(0)
        while sum(d.kills for d in again) < kills:
            killed = partial(by_command, made.redis_url, chance=chance)
            again += [run_drill(made, users, n, design(f"{n}-{len(again)}"), killed, say) for n in EXPECTED]
        with redis.Redis.from_url(made.redis_url) as client:
            history = read_history(client)
        failed, requests = users.failed, len(users.seen)
    return {
        "bench": "rollout",
        "drills": [asdict(d) for d in drills],
        "abort_seconds": round(abort_s, 2),
        "requests": requests,
        "failed_requests": failed,
        "kills": sum(d.kills for d in again),
        "killed_drills": [asdict(d) for d in again],
        "same_end_states": all(d.outcome == EXPECTED[d.name] for d in again),
        "history": len(history),
        "history_gaps": history_gaps(history),
        "rate": RATE,
        "replicas": REPLICAS,
        "machine": machine(),
    }


@contextmanager
def drill_bed(**given: Any) -> Iterator[tuple[Bed, str]]:
    """A service of two replicas whose bundles play parts, its champion activated; yields the bed and the URL."""
    with (
        bed(candidates=CANDIDATES, length=LENGTH, users=USERS, items=ITEMS, count=1) as made,
        service(made, build=acting_engine, replicas=REPLICAS, **given) as url,
    ):
        activate(made.first.path, made.redis_url, by="bench")
        yield made, url


def design(name: str) -> Design:
    """Short stages for 40 requests a second of 2,000 users; the differences between the parts are large."""
    return Design(
        id=name,
        stages=(
            Stage(name="shadow", share=0.0, min_seconds=2, min_samples=20),
            Stage(name="1%", share=0.01, min_seconds=1, min_samples=1),
            Stage(name="5%", share=0.05, min_seconds=2, min_samples=5),
            Stage(name="25%", share=0.25, min_seconds=4, min_samples=60),
            Stage(name="50%", share=0.5, min_seconds=3, min_samples=60),
            Stage(name="100%", share=1.0, min_seconds=2, min_samples=40),
        ),
        primary=PrimaryMetric(objective="click", smallest_effect=0.25),
        guardrails=(
            Guardrail(metric="fallback", max_rise=0.2),
            Guardrail(metric="error", max_rise=0.2),
            Guardrail(metric="p99", max_rise=0.2, bound_ms=70.0),
        ),
        shadow=ShadowLimits(share=0.5, max_late=0.3),
        min_users=30,
        guardrail_min_users=15,
    )


def run_drill(
    made: Bed, users: Users, part: str, planned: Design, guide: Callable[[str], int], say: Say = lambda _: None
) -> Drill:
    """One challenger from its start to its end; `guide` takes an experiment to its end and says how often it was killed."""
    name, before = planned.id, len(users.seen)
    with redis.Redis.from_url(made.redis_url) as client:
        folder = renamed(made.second, made.folder / f"{part}-{name}")
        moves.start(client, folder, planned, Author(by="bench", why="drill"))
        began = time.monotonic()
        kills = guide(name)
        outcome = ended(client, name)
        assert outcome is not None
        seconds = time.monotonic() - began
        if outcome.ending == "promoted":
            activate(made.first.path, made.redis_url, by="bench", why="the next drill begins with the first champion")
    seen = users.seen[before:]
    drill = Drill(
        part,
        "rejected_in_shadow" if outcome.rejected else outcome.ending,
        outcome.stage,
        round(seconds, 1),
        sum(not s.ok for s in seen),
        len(seen),
        outcome.why,
        kills,
    )
    say(f"{name}: {drill.outcome} at {drill.stage} after {drill.seconds} s, {kills} kills: {drill.why}")
    return drill


def abort_drill(made: Bed, users: Users) -> float:
    """Seconds from an abort at 50 % to the last answer of the challenger."""
    with redis.Redis.from_url(made.redis_url) as client:
        folder = renamed(made.second, made.folder / "better-aborted")
        author = Author(by="bench", why="abort drill")
        moves.start(client, folder, design("aborted"), author)
        while (plan := moves.advance(client, author)).experiment and plan.arms[1].weight < 0.5:
            continue
        sha = plan.arms[1].manifest_sha256
        until(lambda: sum(s.bundle == sha for s in users.seen[-200:]) >= 20, "the challenger does not answer")
        aborted = time.monotonic()
        moves.abort(client, author)
    sent = len(users.seen)
    until(lambda: len(users.seen) >= sent + WATCHED_S * users.rate, "no answers after the abort")
    late = [s.at - aborted for s in users.seen if s.bundle == sha and s.at > aborted]
    return max(late, default=0.0)


def by_command(redis_url: str, name: str, *, chance: random.Random | None = None) -> int:
    """Run `degre rollout run` until the experiment is over, with `chance` killed at random moments; returns how often."""
    kills, began = 0, time.monotonic()
    while True:
        process = _controller(redis_url, name)
        try:
            limit_s = DRILL_S * (1 if chance is None else 3) - (time.monotonic() - began)
            process.wait(limit_s if chance is None else min(chance.uniform(0.5, 6.0), limit_s))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            if chance is None or time.monotonic() - began > DRILL_S * 3:
                raise ServiceError(f"the drill {name} did not end in {DRILL_S:.0f} s") from None
            kills += 1
            continue
        if process.returncode not in (0, 3):
            said = process.stderr.read().decode(errors="replace")[-500:] if process.stderr else ""
            raise ServiceError(f"the controller ended with {process.returncode}: {said}")
        return kills


def _controller(redis_url: str, name: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CONTROLLER, "rollout", "run", "--id", name, "--redis", redis_url]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
