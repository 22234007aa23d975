"""Items kept in the replica: equal to the store within the stated bounds, and bounded themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from helpers import small_schema, write_dataset
from test_features_offline import IDS, SECOND, START, TTL, assert_columns, crafted, known

from degre_prod.config import ServingConfig
from degre_prod.schema import IdType
from orchestration.features.materialize import EPOCH_KEY, materialize
from serving.feature_cache import ItemTable
from serving.feature_rows import Rows
from serving.features import FeatureReader, open_reader

LATER = START + 3600 * SECOND


def rows(*amounts: float) -> Rows:
    return Rows(np.ones(len(amounts), np.int64), np.array(amounts, np.float32)[:, None], [[f"v{a}" for a in amounts]])


class Time:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("ids", ["int64", "string"])
def test_warm_reads_equal_cold_ones_on_every_type(tmp_path: Path, clean_redis: str, ids: IdType) -> None:
    schema, names = small_schema(ids), IDS[ids]
    users, items = crafted(names, 7, "user"), crafted(names, 8, "item")
    dataset = write_dataset(tmp_path / "data", schema, users, items, [])
    materialize(dataset, tmp_path / "registry.db", clean_redis, progress=False)
    with closing(FeatureReader(schema, clean_redis, 1000, item_cache_ttl_seconds=60)) as reader:
        cached = []
        for asked in (names[:2], names, [*names, *names[::-1]], names[1:]):
            read = reader.read(names[0], asked, LATER)
            assert_columns(read.items, [known(items, "item", item, LATER, None) for item in asked], schema.item)
            assert read.unknown_items == asked.count(names[-1])
            cached.append(read.cached_items)
        assert cached == [0, 2, 2 * len(names), len(names) - 1]
        assert reader.table is not None
        assert (reader.table.hits, reader.table.misses) == (sum(cached), len(names))


@pytest.mark.parametrize(("age", "stale"), [(TTL * SECOND, False), (TTL * SECOND + 1, True)])
def test_staleness_is_judged_at_request_time(tmp_path: Path, clean_redis: str, age: int, stale: bool) -> None:
    schema = small_schema("int64", ttl_seconds=TTL)
    times = {"event_timestamp": START, "created_timestamp": START}
    dataset = write_dataset(
        tmp_path / "data", schema, [{"user_id": 1} | times], [{"item_id": 1, "amount": 2.0, "group": "a"} | times], []
    )
    materialize(dataset, tmp_path / "registry.db", clean_redis, progress=False)
    with closing(FeatureReader(schema, clean_redis, 1000, item_cache_ttl_seconds=60)) as reader:
        assert reader.read(1, [1], START).stale_items == 0
        read = reader.read(1, [1], START + age)
        assert (read.cached_items, read.stale_items) == (1, int(stale))
        assert read.items.values["group"] == [None if stale else "a"]
        assert reader.read(1, [1], START).items.values["group"] == ["a"]  # the table keeps what it had


@pytest.fixture
def pushed(tmp_path: Path, clean_redis: str) -> Iterator[Any]:
    """Materialises item 1 with an amount; each call writes a newer one, and puts the epoch back when told it is a push."""
    schema = small_schema("int64")

    def write(amount: float, *, epoch_rises: bool) -> None:
        times = {"event_timestamp": START + int(amount) * SECOND, "created_timestamp": START}
        item = {"item_id": 1, "amount": amount} | times
        dataset = write_dataset(tmp_path / f"data{amount}", schema, [{"user_id": 1} | times], [item], [])
        materialize(dataset, tmp_path / f"{amount}.db", clean_redis, progress=False)
        if not epoch_rises:
            with redis.Redis.from_url(clean_redis) as client:
                client.decr(EPOCH_KEY)

    return write


def test_a_push_is_seen_after_the_time_to_live_and_a_materialisation_at_once(pushed: Any, clean_redis: str) -> None:
    schema, clock = small_schema("int64"), Time()
    with closing(FeatureReader(schema, clean_redis, 1000, item_cache_ttl_seconds=5)) as reader:
        reader.table = ItemTable(5, 2, capacity=10, ttl_seconds=5, now=clock)

        def amount() -> float:
            return float(reader.read(1, [1], LATER).items.values["amount"][0])

        pushed(1.0, epoch_rises=True)
        assert amount() == 1.0
        pushed(2.0, epoch_rises=False)
        clock.now += 5.0
        assert amount() == 1.0  # within the bound, the older value may be served
        clock.now += 0.01
        assert amount() == 2.0  # past it, never
        pushed(3.0, epoch_rises=True)
        assert amount() == 3.0


def test_zero_seconds_keep_nothing_and_replays_bypass_the_table(clean_redis: str) -> None:
    schema = small_schema("int64")
    for settings in (ServingConfig(item_cache_ttl_seconds=0), ServingConfig(clock="request")):
        with closing(open_reader(schema, clean_redis, settings)) as reader:
            assert reader.table is None
    with closing(open_reader(schema, clean_redis, ServingConfig(item_cache_items=7))) as reader:
        assert reader.table is not None


def test_the_table_is_bounded_and_the_oldest_go_first() -> None:
    table = ItemTable(1, 1, capacity=3, ttl_seconds=5, now=Time())
    for start in range(0, 40, 2):
        table.keep([start, start + 1], rows(start, start + 1), None, 100.0)
        assert len(table) <= 3
    found = table.find([39, 38, 37, 36])
    assert found.missing == [3]
    assert found.rows.floats[:3, 0].tolist() == [39.0, 38.0, 37.0]
    assert found.rows.objects[0][:3] == ["v39", "v38", "v37"]


def test_what_was_found_is_a_copy() -> None:
    table = ItemTable(1, 1, capacity=3, ttl_seconds=5, now=Time())
    table.keep(["a"], rows(1.0), b"1", 100.0)
    found = table.find(["a", "a"])
    found.rows.floats[:] = np.nan
    found.rows.objects[0][0] = None
    assert table.find(["a"]).rows.floats.tolist() == [[1.0]]
    assert table.find(["a"]).rows.objects == [["v1.0"]]


def test_another_epoch_forgets_all() -> None:
    table = ItemTable(1, 1, capacity=3, ttl_seconds=5, now=Time())
    table.keep(["a", "b"], rows(1.0, 2.0), b"1", 100.0)
    table.keep(["c"], rows(3.0), b"2", 100.0)
    assert table.find(["a", "b", "c"]).missing == [0, 1]
