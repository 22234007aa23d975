"""What brings the alerts about, from inside the stack's network, for alert-drill.sh.

alert_provoke.py load KIND RATE   requests until it is killed; /out/load-KIND.json: what came back. `KINDS` says which there are;
                                  RATE: a second, of `flood` callers at once
alert_provoke.py shadow           a champion whose features have a time to live of a day, and a challenger in shadow
alert_provoke.py refuse           no experiment, and a champion whose file was cut short
alert_provoke.py unreadable       a plan that is no plan
alert_provoke.py mend             the plan before `refuse`, with which all was well
alert_provoke.py memory SHARE     values in Redis, so that SHARE of its memory is used; 0 takes them away
alert_provoke.py append yes|no    Redis' append-only file on or off
alert_provoke.py records          every night ended NIGHT_AGO_H ago, and one began BEGAN_AGO_H ago
alert_provoke.py backlog COUNT    so many entries in the streams of served lists, as many in each
alert_provoke.py cut              all but a few of them gone
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import redis
from stack_load import bodies, moment

from serving.event_log import SHARDS

RUN = Path("/srv/degre/run")
OUT = Path("/out")
TTL_S = 86_400
NIGHT_AGO_H, BEGAN_AGO_H = 49, 7
FILLER, FILLER_BYTES = "drill:filler", 1_000_000
STREAM, APPENDED = "degre:served:{}", "degre:added:served:{}"  # of each shard
MOST_UNDER_WAY = 300

Body = dict[str, Any]


def client() -> redis.Redis:
    """The stack's Redis."""
    return redis.Redis.from_url(os.environ["DEGRE_REDIS__URL"])


# Load


def well(body: Body) -> Body:
    """As an application sends it."""
    return body


def stranger(body: Body) -> Body:
    """Of a user whom nobody has seen before, so that no cache knows the answer."""
    return body | {"user_id": random.randrange(10**12, 10**13)}


def mixed(body: Body) -> Body:
    """Nineteen in twenty of strangers; one in twenty raises, one in six has a deadline of 1 ms, with the others the shadow raises."""
    body = stranger(body) if random.random() < 0.95 else body
    kind = random.random()
    if kind < 0.05:
        return body | {"request_id": f"drill-raise-{uuid.uuid4().hex}"}
    if kind < 0.22:
        return body | {"deadline_ms": 1.0}
    return body | {"request_id": f"drill-shadow-{uuid.uuid4().hex}"}


def flood(body: Body) -> Body:
    """That waits for its list."""
    return stranger(body) | {"deadline_ms": 3000.0}


def hanging(body: Body) -> Body:
    """That never ends."""
    return stranger(body) | {"request_id": f"drill-hang-{uuid.uuid4().hex}"}


# How a request of a kind is made, and of how many lists there is feedback.
KINDS: dict[str, tuple[Callable[[Body], Body], float]] = {
    "well": (well, 1.0),
    "mixed": (mixed, 0.8),
    "flood": (flood, 0.05),
    "hanging": (hanging, 0.0),
    "frozen": (stranger, 0.05),
}


class Load:
    """Requests of one kind, and what came back."""

    def __init__(self, kind: str, rate: float) -> None:
        self.kind, self.rate = kind, rate
        self.make, self.told = KINDS[kind]
        self.bodies = bodies()
        self.counts: Counter[str] = Counter()
        self.client = httpx.AsyncClient(
            base_url="http://gateway:8000",
            headers={"Authorization": f"Bearer {os.environ['SERVING_TOKEN']}"},
            limits=httpx.Limits(max_connections=500),
            timeout=5.0,
        )

    async def one(self) -> int:
        """One request, and feedback for its list now and then; returns the status, 0 without an answer."""
        try:
            answer = await self.client.post("/v1/rerank", json=self.make(random.choice(self.bodies)))
            document = answer.json() if answer.status_code == 200 else {}
            self.counts[document.get("source") or str(answer.status_code)] += 1
            if document and random.random() < self.told:
                await self.feedback(document["request_id"], [item["id"] for item in document["items"]])
        except httpx.HTTPError as error:
            self.counts[type(error).__name__] += 1
            return 0
        return answer.status_code

    async def feedback(self, request_id: str, ids: list[Any]) -> None:
        """A click on the first item."""
        event = {"event_id": uuid.uuid4().hex, "id": ids[0], "type": "click", "timestamp": moment()}
        body = {"request_id": request_id, "shown_ids": ids, "events": [event]}
        answer = await self.client.post("/v1/feedback", json=body)
        self.counts[f"feedback {answer.status_code}"] += 1

    async def by_the_clock(self) -> None:
        """`rate` a second, whatever becomes of them."""
        under_way: set[asyncio.Task[int]] = set()
        began, sent = time.monotonic(), 0
        while True:
            while sent < (time.monotonic() - began) * self.rate:
                sent += 1
                if len(under_way) < MOST_UNDER_WAY:
                    task = asyncio.create_task(self.one())
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
            await asyncio.sleep(0.5 / self.rate)

    async def caller(self) -> None:
        """One request after the other."""
        while True:
            if await self.one() != 200:
                await asyncio.sleep(0.05)

    async def tell(self) -> None:
        """What came back so far, each second."""
        while True:
            await asyncio.sleep(1.0)
            (OUT / f"load-{self.kind}.json").write_text(json.dumps(self.counts) + "\n")

    async def run(self) -> None:
        """Until it is killed."""
        load = [self.caller() for _ in range(int(self.rate))] if self.kind == "flood" else [self.by_the_clock()]
        await asyncio.gather(self.tell(), *load)


# Bundles and plans


def variant(name: str, change: Callable[[Path, dict[str, Any]], None]) -> Path:
    """A copy of the first bundle with another manifest, changed by `change(folder, manifest)`."""
    folder = RUN / name
    shutil.copytree(RUN / "bundle", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(folder, manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def with_ttl(folder: Path, manifest: dict[str, Any]) -> None:
    """Features have a time to live: those of the simulated world are older."""
    from degre_prod.artefact import file_digest

    file = folder / "encoder.json"
    encoder = json.loads(file.read_text())
    for table in ("user", "item"):
        encoder["data_schema"][table]["ttl_seconds"] = TTL_S
    file.write_text(json.dumps(encoder))
    manifest["files"][file.name] = manifest["encoder_sha256"] = file_digest(file)


def cut_short(folder: Path, manifest: dict[str, Any]) -> None:
    """As a copy that did not end; of another name, for replicas keep the bundle before the champion loaded."""
    manifest["name"] = folder.name
    os.truncate(folder / "generator.onnx", 1000)


def shadow() -> None:
    """See above."""
    from orchestration.rollout import activate, moves
    from serving.experiment import Design, ShadowLimits
    from serving.plan_store import Author

    activate(variant("drill-champion", with_ttl), os.environ["DEGRE_REDIS__URL"])
    design = Design(id="alert-drill", shadow=ShadowLimits(share=1.0))
    moves.start(client(), variant("drill-challenger", lambda *_: None), design, Author())


def refuse() -> None:
    """See above."""
    from degre_prod.artefact import file_digest
    from serving.moves import abort
    from serving.plan import PlanArm
    from serving.plan_store import Author, publish_plan

    plan = abort(client(), Author())
    (OUT / "plan").write_text(plan.model_dump_json())
    folder = variant("drill-damaged", cut_short)
    arm = PlanArm(bundle_uri=folder.as_uri(), manifest_sha256=file_digest(folder / "manifest.json"))
    publish_plan(client(), [arm], plan.version)


def unreadable() -> None:
    """See above."""
    client().set("degre:plan", "{")


def mend() -> None:
    """See above."""
    client().set("degre:plan", (OUT / "plan").read_text())


# Redis, the log, nights


def memory(share: str) -> None:
    """See above."""
    server, number = client(), 0
    while server.delete(f"{FILLER}:{number}"):
        number += 1
    number = 0
    while (found := server.info("memory"))["used_memory"] < float(share) * found["maxmemory"]:
        server.setrange(f"{FILLER}:{number}", FILLER_BYTES - 1, b"x")
        number += 1


def append(wanted: str) -> None:
    """See above."""
    client().config_set("appendonly", wanted)


def records() -> None:
    """See above."""
    state = RUN / "retrain"
    ended = (datetime.now(UTC) - timedelta(hours=NIGHT_AGO_H)).isoformat(timespec="seconds")
    outcomes = json.loads((state / "outcomes.json").read_text())
    (state / "outcomes.json").write_text(json.dumps([outcome | {"ended": ended} for outcome in outcomes]))
    newest = max(state.glob("*/inputs.json"))
    began_us = int((time.time() - BEGAN_AGO_H * 3600) * 1e6)
    (state / "current.json").write_text(json.dumps(json.loads(newest.read_text()) | {"began_us": began_us}))


def backlog(count: str) -> None:
    """See above."""
    script = "for _ = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'record', '{}') end redis.call('INCRBY', KEYS[2], ARGV[1])"
    server = client()
    for shard in range(SHARDS):  # a replica that appends cuts a stream to its share of a million
        left = int(count) // SHARDS + 1
        while left:
            server.eval(script, 2, STREAM.format(shard), APPENDED.format(shard), min(left, 10_000))
            left -= min(left, 10_000)


def cut() -> None:
    """See above."""
    for shard in range(SHARDS):
        client().xtrim(STREAM.format(shard), maxlen=10, approximate=False)


COMMANDS: dict[str, Callable[..., None]] = {
    f.__name__: f for f in (shadow, refuse, unreadable, mend, memory, append, records, backlog, cut)
}

if __name__ == "__main__":
    command, *given = sys.argv[1:]
    if command == "load":
        asyncio.run(Load(given[0], float(given[1])).run())
    else:
        COMMANDS[command](*given)
