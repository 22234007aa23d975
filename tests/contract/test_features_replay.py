"""A replay in the log's own time reads online, bit for bit, what the point-in-time join gives."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from helpers import small_schema, write_dataset
from test_features_offline import IDS, SECOND, START, TTL, crafted, crafted_requests

from degre_prod.requests import FeatureColumns
from degre_prod.rows import read_rows
from degre_prod.schema import IdType
from orchestration.features.materialize import materialize
from orchestration.features.replay import OnlineFeed
from orchestration.features.store import open_store
from orchestration.features.training_set import build_training_set
from serving.features import FeatureReader


def _bits(columns: FeatureColumns) -> dict[str, object]:
    return {n: v.tobytes() if isinstance(v, np.ndarray) else v for n, v in columns.values.items()} | {
        "rows": columns.rows
    }


@pytest.mark.parametrize("ids", ["int64", "string"])
@pytest.mark.parametrize("ttl", [None, TTL])
def test_online_equals_point_in_time(tmp_path: Path, clean_redis: str, ids: IdType, ttl: int | None) -> None:
    schema = small_schema(ids, ttl_seconds=ttl)
    log = sorted(crafted_requests(IDS[ids], 5, 120), key=lambda request: request["event_timestamp"])
    users, items = crafted(IDS[ids], 5, "user"), crafted(IDS[ids], 6, "item")
    dataset = write_dataset(tmp_path / "data", schema, users, items, log)
    registry = tmp_path / "registry.db"
    build_training_set(dataset, registry, tmp_path / "out", progress=False)
    materialize(dataset, registry, clean_redis, progress=False)  # the future is online already: the feed takes it back

    feed = OnlineFeed(dataset, open_store(dataset, registry, clean_redis), START + 2 * SECOND)
    written = compared = 0
    with closing(FeatureReader(schema, clean_redis, timeout_ms=1000)) as reader:
        for row in read_rows(tmp_path / "out", schema):
            request = row.request
            if request.event_timestamp_us < START + 2 * SECOND:
                continue
            written += feed.advance(request.event_timestamp_us)
            read = reader.read(request.user_id, request.candidate_ids, request.event_timestamp_us)
            assert _bits(read.user) == _bits(row.user)
            assert _bits(read.items) == _bits(row.items)
            compared += 1
    assert compared > 60
    assert written > 10


def test_time_goes_forward_only(tmp_path: Path, clean_redis: str) -> None:
    schema = small_schema("int64")
    rows = [
        {"event_timestamp": START + n * SECOND, "created_timestamp": START + n * SECOND, "amount": float(n)}
        for n in range(4)
    ]
    dataset = write_dataset(
        tmp_path / "data", schema, [{"user_id": 1} | row for row in rows], [{"item_id": 1} | row for row in rows], []
    )
    feed = OnlineFeed(dataset, open_store(dataset, tmp_path / "registry.db", clean_redis), START - 1)
    with closing(FeatureReader(schema, clean_redis, timeout_ms=1000)) as reader:
        assert reader.read(1, [1], START).unknown_items == 1
        assert feed.advance(START) == 2
        assert feed.advance(START) == 0
        assert feed.advance(START + 2 * SECOND) == 2  # only the latest row of each entity
        assert feed.advance(START) == 0
        assert reader.read(1, [1], START).items.values["amount"] == [2.0]
