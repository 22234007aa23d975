"""Load for stack-drill.sh, from inside the stack's network: lists by the clock, feedback for each, and what came of them.

stack_load.py load OUT RATE          until SIGTERM; OUT/records.jsonl, and OUT/state.json twice a second
stack_load.py accounts OUT           every acknowledged event is in the streams or in the collected log; prints JSON
stack_load.py summary OUT MARKS      what happened around each mark (JSON lines: service, killed, back); prints JSON
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import uuid
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq

DATA = Path("/srv/degre/run/data")
REPLICAS = 2
TICK_S = 0.5
PATIENCE_S = 2.0
SLACK = 0.1  # of the answers of half a second: a busy machine misses a deadline now and then


class Load:
    """What is sent and what came back. `good_since`: since when (nearly) every answer was the model's and all feedback taken, and all
    replicas ran; 0 while something is wrong."""

    def __init__(self, out: Path, rate: float) -> None:
        self.rate, self.out = rate, out
        self.records = (out / "records.jsonl").open("a", buffering=1)
        self.bad, self.done, self.good_since, self.replicas = 0, 0, 0.0, -1
        self.client = httpx.AsyncClient(
            base_url="http://gateway:8000",
            headers={"Authorization": f"Bearer {os.environ['SERVING_TOKEN']}"},
            limits=httpx.Limits(max_connections=200),
        )
        self.bodies = bodies()

    def note(self, kind: str, began: float, good: bool, **more: Any) -> None:
        took = round((time.time() - began) * 1000, 1)
        self.records.write(json.dumps({"t": round(began, 3), "kind": kind, "ms": took, "good": good} | more) + "\n")
        self.done += 1
        self.bad += not good

    async def one(self, body: dict[str, Any]) -> None:
        began = time.time()
        try:
            answer = await self.client.post("/v1/rerank", json=body, timeout=PATIENCE_S)
        except httpx.HTTPError as error:
            self.note("rerank", began, False, status=0, source=type(error).__name__)
            return
        document = answer.json() if answer.status_code == 200 else {}
        source = document.get("source", "")
        ids = [item["id"] for item in document.get("items", [])]
        offered = {candidate["id"] for candidate in body["candidates"]}
        valid = bool(ids) and len(set(ids)) == len(ids) and set(ids) <= offered
        best = source in ("generator", "cache") and valid
        self.note("rerank", began, best, status=answer.status_code, source=source, valid=valid or not document)
        if valid:
            await self.feedback(document["request_id"], ids)

    async def feedback(self, request_id: str, ids: list[Any]) -> None:
        event = {"event_id": uuid.uuid4().hex, "id": ids[0], "type": "click", "timestamp": moment()}
        body = {"request_id": request_id, "shown_ids": ids, "events": [event]}
        began = time.time()
        try:
            status = (await self.client.post("/v1/feedback", json=body, timeout=PATIENCE_S)).status_code
        except httpx.HTTPError:
            status = 0
        self.note("feedback", began, status == 202, status=status, event_id=event["event_id"])

    async def watch(self) -> None:
        token = os.environ["RAY_AUTH_TOKEN"]
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(base_url="http://ray-head:8265", headers=headers, timeout=PATIENCE_S) as api:
            while True:
                try:
                    found = (await api.get("/api/serve/applications/")).json()["applications"]["rerank"]["deployments"]
                    states = [r["state"] for d in found.values() for r in d["replicas"]]
                    now = states.count("RUNNING")
                except (httpx.HTTPError, ValueError, KeyError):
                    now = -1
                if now != self.replicas:
                    self.records.write(
                        json.dumps({"t": round(time.time(), 3), "kind": "replicas", "running": now}) + "\n"
                    )
                    self.replicas = now
                await asyncio.sleep(TICK_S)

    async def tell(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            good = self.done > 0 and self.bad <= SLACK * self.done and self.replicas == REPLICAS
            self.done = self.bad = 0
            if not good:
                self.good_since = 0.0
            elif not self.good_since:
                self.good_since = time.time() - TICK_S
            aside = self.out / "state.tmp"
            aside.write_text(f"{time.time():.2f} {self.good_since:.2f}\n")
            aside.replace(self.out / "state")

    async def run(self) -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        background = [asyncio.create_task(self.watch()), asyncio.create_task(self.tell())]
        under_way: set[asyncio.Task[None]] = set()
        began, sent = time.monotonic(), 0
        while not stop.is_set():
            while sent < (time.monotonic() - began) * self.rate:
                task = asyncio.create_task(self.one(self.bodies[sent % len(self.bodies)]))
                under_way.add(task)
                task.add_done_callback(under_way.discard)
                sent += 1
            await asyncio.sleep(0.5 / self.rate)
        await asyncio.gather(*under_way)
        for task in background:
            task.cancel()


def bodies(count: int = 500) -> list[dict[str, Any]]:
    """Requests of the log, as an application would send them."""
    out = []
    for row in pq.read_table(DATA / "impressions.parquet").slice(0, count).to_pylist():
        scores, features = row.get("upstream_scores") or {}, row.get("candidate_features") or {}
        candidates = [
            {
                "id": item,
                "scores": {n: v[i] for n, v in scores.items()},
                "features": {n: v[i] for n, v in features.items()},
            }
            for i, item in enumerate(row["candidate_ids"])
        ]
        out.append({"user_id": row["user_id"], "candidates": candidates, "context": row.get("context") or {}})
    return out


def moment() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


def accounts(out: Path) -> dict[str, Any]:
    """Acknowledged events against those that Redis and the collected log hold."""
    import redis

    acknowledged = {r["event_id"] for r in records(out) if r["kind"] == "feedback" and r["status"] == 202}
    held: set[str] = set()
    with redis.Redis.from_url(os.environ["DEGRE_REDIS__URL"]) as client:
        for shard in range(4):
            for _, fields in client.xrange(f"degre:feedback:{shard}"):
                held |= {event["event_id"] for event in json.loads(fields[b"record"])["events"]}
        served = sum(client.xlen(f"degre:served:{shard}") for shard in range(4))
        epoch = int(client.get("degre:feature_epoch") or 0)
    for file in (DATA / "collected").glob("day=*/shard-*.parquet"):
        for events in pq.read_table(file, columns=["event_ids"])["event_ids"].to_pylist():
            held |= set(events or ())
    lost = acknowledged - held
    return {
        "acknowledged": len(acknowledged),
        "held": len(held),
        "lost": len(lost),
        "served_lists": served,
        "epoch": epoch,
    }


def summary(out: Path, marks: Path) -> dict[str, Any]:
    """For each kill: seconds until the container ran, until everything was well, and what was answered in between."""
    found, kills = records(out), [json.loads(line) for line in marks.read_text().splitlines()]
    told = {}
    for mark in kills:
        until = mark["well"]
        own = [r for r in found if mark["killed"] - 0.2 <= r["t"] <= until]
        lists, feedback = ([r for r in own if r["kind"] == kind] for kind in ("rerank", "feedback"))
        bad = [r["t"] + r["ms"] / 1000 for r in lists if r["status"] != 200]
        told[mark["service"]] = {
            "container_seconds": round(mark["back"] - mark["killed"], 1),
            "recovery_seconds": round(max(mark["good_since"], mark["back"]) - mark["killed"], 1),
            "unanswered_seconds": round(max(bad) - mark["killed"], 1) if bad else 0.0,
            "requests": len(lists),
            "not_200": len(bad),
            "sources": dict(Counter(r["source"] for r in lists if r["status"] == 200)),
            "invalid": sum(not r.get("valid", True) for r in lists),
            "feedback": len(feedback),
            "feedback_refused": sum(r["status"] != 202 for r in feedback),
            "fewest_replicas": fewest(found, mark["killed"], until),
        }
    return told


def fewest(found: list[dict[str, Any]], began: float, until: float) -> int | None:
    """The fewest replicas that the cluster reported; None where it never said, as while its head is away."""
    reports = [r for r in found if r["kind"] == "replicas"] + [{"t": float("inf"), "running": None}]
    known = [a["running"] for a, b in pairwise(reports) if a["t"] <= until and b["t"] > began and a["running"] >= 0]
    return min(known, default=None)


if __name__ == "__main__":
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "load":
        asyncio.run(Load(folder, float(sys.argv[3])).run())
    else:
        print(json.dumps(accounts(folder) if what == "accounts" else summary(folder, Path(sys.argv[3]))))
