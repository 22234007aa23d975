"""What earlier versions wrote is read by this one: plans, streams, collected files, the state of retraining.

`data/formats_1` was written by version 0.1.0 and is never written anew: a change that breaks it needs a migration. Bundles have
tests of their own (unit/test_bundle_formats.py), backups theirs (contract/test_backup.py).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import redis

from degre_prod.config import CollectConfig
from degre_prod.schema import load_schema
from orchestration.collect.collector import FOLDER, collect, collected
from orchestration.collect.files import known_events, last_commit
from orchestration.collect.rows import log_table
from orchestration.retrain.state import State
from serving.event_log import SHARDS, added_key, shard_of, stream_key
from serving.plan import PlanError, parse_plan

OLD = Path(__file__).parents[1] / "data" / "formats_1"
COLLECT = CollectConfig(remember_seconds=100 * 365 * 86_400)  # what that time wrote is known however old it has become


def entries(client: redis.Redis) -> list[dict[str, str]]:
    """Put the old records into the streams, as the replicas of that time did; returns them."""
    lines = [json.loads(line) for line in (OLD / "streams.jsonl").read_text().splitlines()]
    for line in lines:
        request_id = line["record"]["request_id"]
        client.xadd(stream_key(line["kind"], request_id), {"record": json.dumps(line["record"])})
        client.incr(added_key(line["kind"], shard_of(request_id)))
    return lines


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A data set of that time without its collected log."""
    shutil.copy(OLD / "schema.yaml", tmp_path / "schema.yaml")
    return tmp_path


def test_plans_of_both_formats_are_read_and_a_newer_one_is_refused() -> None:
    old, new = (parse_plan((OLD / f"plan_{n}.json").read_bytes()) for n in (1, 2))
    assert (old.version, old.champion.manifest_sha256, old.change) == (3, "a" * 64, None)
    assert new.change is not None
    assert (new.version, new.change.action) == (4, "activate")
    with pytest.raises(PlanError):
        parse_plan(json.dumps(json.loads((OLD / "plan_2.json").read_text()) | {"format_version": 3}))


def test_records_in_the_streams_are_collected(dataset: Path, clean_redis: str) -> None:
    with redis.Redis.from_url(clean_redis) as client:
        written = Counter(line["kind"] for line in entries(client))
        assert collect(client, dataset, COLLECT, flush=True) == written["served"] == 3
        found = collected(client, dataset / FOLDER)
    assert (found.counts.rejected, found.counts.feedback) == (0, written["feedback"])
    assert (found.lost, found.waiting_served) == (0, 0)


def test_collected_files_go_on_where_they_ended(dataset: Path, clean_redis: str) -> None:
    shutil.copytree(OLD / "collected", dataset / FOLDER)
    before = [last_commit(dataset / FOLDER, shard, 0.0) for shard in range(SHARDS)]
    known = {k: v for shard in range(SHARDS) for k, v in known_events(dataset / FOLDER, shard, 0).items()}
    assert set(known) == {"r0", "r1", "r2"}
    assert sum(commit.totals.served for commit in before) == 3
    with redis.Redis.from_url(clean_redis) as client:
        entries(client)
        assert collect(client, dataset, COLLECT, flush=True) == 0  # the lists are known: repeats
        counts = collected(client, dataset / FOLDER).counts
    assert (counts.served, counts.served_duplicated) == (3, 3)
    assert counts.duplicated >= 1


def test_the_columns_of_collected_files_are_still_the_contracts() -> None:
    now = log_table([], load_schema(OLD))[0].schema
    for file in OLD.glob("collected/day=*/*.parquet"):
        old = pq.read_schema(file)
        assert {f.name: f.type for f in old} == {name: now.field(name).type for name in old.names}


def test_nights_of_that_time_are_remembered() -> None:
    state = State(OLD / "retrain")
    (night,) = state.outcomes()
    assert (night.status, night.id, night.steps, night.gates[0].figures) == (
        "done",
        "0001-1a2b3c4d",
        {"mine": 1.5},
        {"requests": 5.0},
    )
    assert night.bundle == OLD / "retrain" / "0001-1a2b3c4d" / "bundle"  # wherever the folder has gone
    assert state.current() == state.inputs_of("0001-1a2b3c4d")
    champion = state.champion()
    assert champion is not None
    assert champion[1] == "a" * 64
