"""How long the collector tells late feedback of a list from a stranger's: `collect.remember_seconds`, on a real Redis."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis
from helpers import small_schema

from degre_prod.config import CollectConfig
from orchestration.collect.collector import FOLDER, collect, collected
from serving.event_log import shard_key, shard_of

DAY_S = 86_400


@pytest.mark.parametrize(("remember_s", "late", "orphaned"), [(30 * DAY_S, 1, 0), (2 * DAY_S, 0, 1)])
def test_feedback_of_a_list_of_a_week_ago(
    clean_redis: str, tmp_path: Path, remember_s: int, late: int, orphaned: int
) -> None:
    (tmp_path / "schema.yaml").write_text(small_schema("int64", list_length=2).to_yaml())
    settings = CollectConfig(remember_seconds=remember_s)
    with redis.Redis.from_url(clean_redis) as client:
        seconds, _ = client.time()
        at = datetime.fromtimestamp(seconds - 7 * DAY_S, UTC).isoformat()
        served = {
            "request_id": "r",
            "event_timestamp": at,
            "user_id": 1,
            "context": {},
            "candidate_ids": [1, 2],
            "upstream_scores": {},
            "candidate_features": {},
            "recent_events": [],
            "shown_ids": [2, 1],
        }
        event = {"event_id": "e", "id": 1, "type": "click", "timestamp": at}
        feedback = {"request_id": "r", "shown_ids": None, "events": [event]}
        shard = shard_of("r")
        client.xadd(shard_key("served", shard), {"record": json.dumps(served)}, id=f"{(seconds - 7 * DAY_S) * 1000}-1")
        assert collect(client, tmp_path, settings) == 1
        client.xadd(shard_key("feedback", shard), {"record": json.dumps(feedback)})
        collect(client, tmp_path, settings, flush=True)
        counts = collected(client, tmp_path / FOLDER).counts
    assert (counts.served, counts.joined, counts.late, counts.orphaned) == (1, 0, late, orphaned)
