"""Collecting from a real Redis: nothing lost, nothing twice, whatever dies in between."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis

from degre_prod.config import CollectConfig
from degre_prod.errors import MismatchError
from degre_prod.schema import DataSchema, FeatureTable, Objective
from degre_prod.validation import check_log
from orchestration.collect.collector import FOLDER, collect, collected
from orchestration.collect.files import REJECTED, alone, collected_files
from orchestration.collect.forget import RECORD, forget
from serving.event_log import SHARDS, added_key, shard_key, shard_of, stream_key
from serving.shadow import lists_key

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
_number = itertools.count()
WINDOWS = CollectConfig(window_seconds=600, grace_seconds=60)
SCHEMA = DataSchema(
    name="shop",
    id_type="int64",
    list_length=3,
    max_candidates=5,
    objectives=(Objective(name="click"),),
    user=FeatureTable(features=()),
    item=FeatureTable(features=()),
    scores=("rank",),
)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    (tmp_path / "schema.yaml").write_text(SCHEMA.to_yaml())
    users = pa.table({"user_id": [1, 2], "event_timestamp": [AT, AT], "created_timestamp": [AT, AT]})
    pq.write_table(users, tmp_path / "user_features.parquet")
    return tmp_path


@pytest.fixture
def client(clean_redis: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(clean_redis) as opened:
        yield opened


def append(client: redis.Redis, kind: str, request: str, record: object, ms: int | None = None) -> None:
    """As a replica appends, at a moment of choice."""
    text = record if isinstance(record, str) else json.dumps(record)
    client.xadd(stream_key(kind, request), {"record": text}, id=f"{ms}-{next(_number)}" if ms else "*")
    client.incr(added_key(kind, shard_of(request)))


def serve(client: redis.Redis, request: str, *, ms: int | None = None, user: int = 1, **changes: Any) -> None:
    record = {
        "request_id": request,
        "event_timestamp": AT.isoformat(),
        "user_id": user,
        "context": {},
        "candidate_ids": [1, 2, 3, 4],
        "upstream_scores": {"rank": [0.4, 0.3, 0.2, 0.1]},
        "candidate_features": {},
        "recent_events": [],
        "shown_ids": [3, 1, 2],
        "bundle": "b",
        "arm": "champion",
        "source": "generator",
        "degraded": [],
        **changes,
    }
    append(client, "served", request, record, ms)


def feed(
    client: redis.Redis,
    request: str,
    *events: tuple[str, int],
    after_s: float = 5,
    ms: int | None = None,
    kind: str = "click",
) -> None:
    moment = (AT + timedelta(seconds=after_s)).isoformat()
    record: dict[str, Any] = {
        "request_id": request,
        "shown_ids": None,
        "events": [{"event_id": e, "id": item, "type": kind, "timestamp": moment} for e, item in events],
        "received_timestamp": moment,
    }
    append(client, "feedback", request, record, ms)


def rows(dataset: Path) -> dict[str, dict[str, Any]]:
    tables = [pq.read_table(f) for f in collected_files(dataset / FOLDER)]
    return {r["request_id"]: r for t in tables for r in t.to_pylist()}


def test_the_log_keeps_the_contract(client: redis.Redis, dataset: Path) -> None:
    for n in range(20):
        serve(client, f"r{n}")
    feed(client, "r3", ("a", 1))
    feed(client, "r4")
    assert collect(client, dataset, WINDOWS, flush=True) == 20
    found = rows(dataset)
    assert len(found) == 20
    assert found["r3"]["feedback"] == {"click": [0.0, 1.0, 0.0]}
    assert [r for r, row in found.items() if row["confirmed"]] == sorted(["r3", "r4"], key=list(found).index)
    for file in collected_files(dataset / FOLDER):
        checked = check_log(file, SCHEMA, now_us=int(datetime.now(UTC).timestamp() * 1e6) + 10**9)
        assert checked.report.rejected == 0
    assert collected(client, dataset / FOLDER).lost == 0


def test_a_list_waits_for_its_window(client: redis.Redis, dataset: Path) -> None:
    now_ms = int(time.time() * 1000)
    serve(client, "old", ms=now_ms - 700_000)
    serve(client, "new", ms=now_ms)
    feed(client, "new", ("a", 1), ms=now_ms)
    feed(client, "old", ("b", 1), ms=now_ms)
    assert collect(client, dataset, WINDOWS) == 1
    assert list(rows(dataset)) == ["old"]
    accounts = collected(client, dataset / FOLDER)
    assert (accounts.waiting_served, accounts.waiting_feedback) == (1, 1)
    assert collect(client, dataset, WINDOWS) == 0  # a second pass changes nothing
    assert collect(client, dataset, WINDOWS, flush=True) == 1
    assert rows(dataset)["new"]["feedback"] == {"click": [0.0, 1.0, 0.0]}


def test_every_unit_of_feedback_has_one_fate(client: redis.Redis, dataset: Path) -> None:
    serve(client, "r1")
    serve(client, "r1")  # a batch whose reply was lost
    feed(client, "r1", ("a", 1))
    feed(client, "r1", ("a", 1), ("b", 2))
    collect(client, dataset, WINDOWS, flush=True)
    feed(client, "r1", ("b", 2), ("c", 3))  # after the list was written
    feed(client, "stranger", ("d", 1))
    serve(client, "r1")
    collect(client, dataset, WINDOWS, flush=True)
    counts = collected(client, dataset / FOLDER).counts
    assert (counts.joined, counts.late, counts.orphaned, counts.duplicated) == (2, 1, 1, 2)
    assert (counts.served, counts.served_duplicated) == (1, 2)
    assert len(rows(dataset)) == 1


def test_feedback_may_come_before_its_list(client: redis.Redis, dataset: Path) -> None:
    feed(client, "r1", ("a", 1))
    assert collect(client, dataset, WINDOWS) == 0
    assert collected(client, dataset / FOLDER).waiting_feedback == 1
    serve(client, "r1")
    collect(client, dataset, WINDOWS, flush=True)
    assert rows(dataset)["r1"]["feedback"] == {"click": [0.0, 1.0, 0.0]}


def test_streams_are_trimmed_only_behind_the_files(client: redis.Redis, dataset: Path) -> None:
    now_ms = int(time.time() * 1000)
    serve(client, "old", ms=now_ms - 700_000)
    serve(client, "new", ms=now_ms)
    collect(client, dataset, WINDOWS)
    left = [e for s in range(SHARDS) for e in client.xrange(shard_key("served", s))]
    assert [json.loads(fields[b"record"])["request_id"] for _, fields in left] == ["new"]


def test_what_redis_cut_away_is_counted_as_lost(client: redis.Redis, dataset: Path) -> None:
    for n in range(5):
        serve(client, "r1")
        feed(client, "r1", (f"e{n}", 1))
    client.xtrim(stream_key("served", "r1"), maxlen=2, approximate=False)
    client.xtrim(stream_key("feedback", "r1"), maxlen=4, approximate=False)
    before = collected(client, dataset / FOLDER)
    collect(client, dataset, WINDOWS, flush=True)
    after = collected(client, dataset / FOLDER)
    assert (before.lost, before.lost_feedback) == (after.lost, after.lost_feedback) == (3, 1)
    client.delete(*(added_key("served", shard) for shard in range(SHARDS)))  # appended by something that did not count
    assert collected(client, dataset / FOLDER).lost is None


def test_what_waits_is_counted_without_reading_it(client: redis.Redis, dataset: Path) -> None:
    now_ms = int(time.time() * 1000)
    new = next(f"new{n}" for n in itertools.count() if shard_of(f"new{n}") == shard_of("old"))
    feed(client, new, ("x", 1), ms=now_ms - 5)  # waits before deliveries that are settled
    for n in range(3):
        serve(client, "old", ms=now_ms - 700_000 + n)
        feed(client, "old", (f"e{n}", 1), ms=now_ms + n)
    assert collect(client, dataset, WINDOWS) == 1
    for _ in range(50):
        append(client, "served", new, "x" * 10_000)
    sent = client.info("stats")["total_net_output_bytes"]
    accounts = collected(client, dataset / FOLDER)
    assert client.info("stats")["total_net_output_bytes"] - sent < 50_000
    assert (accounts.waiting_served, accounts.waiting_feedback) == (50, 1)
    assert (accounts.lost, accounts.lost_feedback) == (0, 0)


def test_what_a_request_left_out_is_missing_not_a_broken_row(client: redis.Redis, dataset: Path) -> None:
    serve(client, "bare", upstream_scores={})
    serve(client, "more", upstream_scores={"rank": [0.1, None, 0.2, 0.3], "newer": [1, 1, 1, 1]}, context={"newer": 1})
    serve(client, "odd", recent_events=[{"item_id": 1, "type": "hover", "timestamp": AT.isoformat()}])
    serve(client, "ruled", constraints='{"exclude":[4]}')
    assert collect(client, dataset, WINDOWS, flush=True) == 4
    for file in collected_files(dataset / FOLDER):
        checked = check_log(file, SCHEMA, now_us=int(datetime.now(UTC).timestamp() * 1e6) + 10**9)
        assert checked.report.rejected == 0
    assert rows(dataset)["bare"]["upstream_scores"] == {"rank": [None] * 4}
    assert rows(dataset)["ruled"]["constraints"] == '{"exclude":[4]}'


def test_what_cannot_be_used_is_set_aside_and_stops_nothing(client: redis.Redis, dataset: Path) -> None:
    append(client, "served", "r1", "no record: 1")
    serve(client, "r1", candidate_ids=["one", "two"])  # of a data set with other ids
    feed(client, "r1", ("a", 1))
    serve(client, "r1b")
    append(client, "feedback", "r1", {"request_id": "r1"})
    serve(client, "good")
    feed(client, "good", ("b", 1))
    feed(client, "good", ("c", 1), kind="order")  # no objective of this data set
    assert collect(client, dataset, WINDOWS, flush=True) == 2
    accounts = collected(client, dataset / FOLDER)
    counts = accounts.counts
    assert set(rows(dataset)) == {"r1b", "good"}
    assert (counts.served, counts.joined, counts.orphaned, counts.rejected) == (2, 1, 2, 3)
    assert (accounts.waiting_served, accounts.waiting_feedback, accounts.lost, accounts.lost_feedback) == (0, 0, 0, 0)
    lines = [json.loads(li) for f in (dataset / FOLDER / REJECTED).iterdir() for li in f.read_text().splitlines()]
    assert sorted((line["kind"], line["text"][:9]) for line in lines) == [
        ("feedback", '{"request'),
        ("served", "no record"),
        ("served", '{"request'),
    ]
    assert all(line["reason"] for line in lines)
    assert forget(client, dataset, 1, AT).rejected == 3  # the unreadable one may be anybody's
    assert collect(client, dataset, WINDOWS, flush=True) == 0


def test_two_collectors_do_not_meet(client: redis.Redis, dataset: Path) -> None:
    with alone(dataset / FOLDER), pytest.raises(MismatchError, match="another process collects"):
        collect(client, dataset, WINDOWS)


def test_old_days_are_deleted_but_not_the_position(client: redis.Redis, dataset: Path) -> None:
    now_ms = int(time.time() * 1000)
    for days in (9, 8, 1):
        serve(client, "same-shard", ms=now_ms - days * 86_400_000)
        collect(client, dataset, WINDOWS)
    kept = CollectConfig(window_seconds=600, grace_seconds=60, retention_days=5)
    assert len(collected_files(dataset / FOLDER)) == 3
    before = collected(client, dataset / FOLDER).counts
    collect(client, dataset, kept)
    assert len(collected_files(dataset / FOLDER)) == 1
    assert collect(client, dataset, kept) == 0
    assert collected(client, dataset / FOLDER).counts == before


def test_a_user_is_forgotten_everywhere(client: redis.Redis, dataset: Path) -> None:
    for n in range(6):
        serve(client, f"r{n}", user=1 + n % 2)
        feed(client, f"r{n}", (f"e{n}", 1))
    collect(client, dataset, WINDOWS, flush=True)
    serve(client, "later", user=1)
    feed(client, "later", ("x", 1))
    feed(client, "r0", ("y", 2))
    client.xadd(lists_key("trial"), {"record": "of any user"})
    found = forget(client, dataset, 1, AT)
    assert (found.served_entries, found.feedback_entries, found.logged_rows, found.feature_rows) == (1, 2, 3, 1)
    assert not client.exists(lists_key("trial"))
    collect(client, dataset, WINDOWS, flush=True)
    assert {row["user_id"] for row in rows(dataset).values()} == {2}
    assert pq.read_table(dataset / "user_features.parquet")["user_id"].to_pylist() == [2]
    assert collected(client, dataset / FOLDER).lost == 0
    line = json.loads((dataset / RECORD).read_text())
    assert line["logged_rows"] == 3
    assert line["user_sha256"] == hashlib.sha256(b"1").hexdigest()
    again = forget(client, dataset, 1, AT)
    assert (again.served_entries, again.logged_rows) == (0, 0)


PASSES = """
import sys
from pathlib import Path
import redis
from degre_prod.config import CollectConfig
from orchestration.collect.collector import collect
import orchestration.collect.collector as c
c.ROWS_A_FILE = 10
print("ready", flush=True)
with redis.Redis.from_url(sys.argv[1]) as client:
    collect(client, Path(sys.argv[2]), CollectConfig(window_seconds=600, grace_seconds=60), flush=True)
"""


def test_killed_anywhere_it_neither_loses_nor_doubles(client: redis.Redis, clean_redis: str, dataset: Path) -> None:
    chance = random.Random(0)
    for n in range(300):
        serve(client, f"r{n}")
        feed(client, f"r{n}", (f"e{n}", 1))
        if n % 7 == 0:
            feed(client, f"r{n}", (f"e{n}", 1))
    kills = 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    while True:
        command = [sys.executable, "-c", PASSES, clean_redis, str(dataset)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            process.stdout.readline()
            if kills == 5:
                assert process.wait(60) == 0
                break
            time.sleep(chance.uniform(0.0, 0.15))
            process.send_signal(signal.SIGKILL)
        kills += 1
    found = [r for f in collected_files(dataset / FOLDER) for r in pq.read_table(f)["request_id"].to_pylist()]
    assert sorted(found) == sorted(f"r{n}" for n in range(300))
    counts = collected(client, dataset / FOLDER).counts
    assert (counts.served, counts.joined, counts.duplicated, counts.late, counts.orphaned) == (300, 300, 43, 0, 0)
