"""Features read online: equal to Feast's own reading, honest about what is missing, quick when Redis is not there."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from helpers import small_schema, write_dataset
from test_features_offline import IDS, SECOND, START, TTL, assert_columns, crafted, known

from degre_prod.errors import ConfigurationError, FeatureError
from degre_prod.requests import FeatureColumns
from degre_prod.schema import DataSchema, FeatureTable, IdType
from orchestration.features.materialize import EPOCH_KEY, materialize
from orchestration.features.store import open_store
from orchestration.redis_server import running_redis
from serving.features import FeatureReader, feast_connection

LATER = START + 3600 * SECOND


def _moment(us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)


@pytest.fixture(params=["int64", "string"])
def online(
    request: pytest.FixtureRequest, tmp_path: Path, clean_redis: str
) -> Iterator[tuple[DataSchema, Path, Any, Any, str]]:
    ids: IdType = request.param
    schema = small_schema(ids)
    users, items = crafted(IDS[ids], 7, "user"), crafted(IDS[ids], 8, "item")
    dataset = write_dataset(tmp_path / "data", schema, users, items, [])
    materialize(dataset, tmp_path / "registry.db", clean_redis, progress=False)
    return schema, dataset, users, items, clean_redis


def test_equals_the_tables_and_feasts_own_reading(online: tuple[Any, ...], tmp_path: Path) -> None:
    schema, dataset, users, items, url = online
    ids = IDS[schema.id_type]
    asked = [*ids, *ids[:2]]  # the last id has no rows; two are asked twice
    store = open_store(dataset, tmp_path / "registry.db", url)
    service = store.get_feature_service("rerank_v1")
    with closing(FeatureReader(schema, url, timeout_ms=1000)) as reader:
        for user in ids:
            read = reader.read(user, asked, LATER)
            want_user = known(users, "user", user, LATER, None)
            assert_columns(read.user, [want_user], schema.user)
            assert_columns(read.items, [known(items, "item", item, LATER, None) for item in asked], schema.item)
            assert read.unknown_user == (want_user is None)
            assert (read.unknown_items, read.stale_items, read.stale_user) == (1, 0, False)
            rows = [{"user_id": user, "item_id": item} for item in asked]
            theirs = store.get_online_features(features=service, entity_rows=rows, full_feature_names=True).to_dict()
            _assert_equal(read.user, {k: v[:1] for k, v in theirs.items()}, "user", schema.user)
            _assert_equal(read.items, theirs, "item", schema.item)


def _assert_equal(ours: FeatureColumns, theirs: dict[str, list[Any]], role: str, table: FeatureTable) -> None:
    for feature in table.features:
        values = theirs[f"{role}_features__{feature.name}"]
        if feature.kind in ("numeric", "vector"):
            missing: Any = math.nan if feature.kind == "numeric" else [math.nan] * (feature.size or 0)
            np.testing.assert_array_equal(
                ours.values[feature.name], np.array([missing if v is None else v for v in values], np.float32)
            )
        else:
            assert ours.values[feature.name] == values


def test_materialises_everything_up_to_until_and_counts_up(tmp_path: Path, clean_redis: str) -> None:
    """More rows than one write batch, so that a batch left out would show."""
    schema = small_schema("int64")
    users = [
        {
            "user_id": n,
            "event_timestamp": START + version * SECOND,
            "created_timestamp": START + version * SECOND,
            "amount": n + version / 2,
        }
        for n in range(6000)
        for version in range(2)
    ]
    item = {"item_id": 1, "event_timestamp": START, "created_timestamp": START}
    dataset = write_dataset(tmp_path / "data", schema, users, [item], [])
    registry = tmp_path / "registry.db"
    with closing(FeatureReader(schema, clean_redis, timeout_ms=1000)) as reader:

        def amounts() -> list[float]:
            return [reader.read(n, [], LATER).user.values["amount"][0] for n in (0, 4999, 5000, 5999)]

        assert materialize(dataset, registry, clean_redis, _moment(START), progress=False) == 1
        assert amounts() == [0.0, 4999.0, 5000.0, 5999.0]
        assert materialize(dataset, registry, clean_redis, progress=False) == 2
        assert amounts() == [0.5, 4999.5, 5000.5, 5999.5]
    with redis.Redis.from_url(clean_redis) as client:
        assert client.dbsize() == 6000 + 1 + 1
        assert client.get(EPOCH_KEY) == b"2"


def test_until_must_be_a_past_moment(tmp_path: Path) -> None:
    for wrong in (datetime.now(UTC) + timedelta(minutes=1), datetime(2020, 1, 1)):
        with pytest.raises(FeatureError, match="not in the future"):
            materialize(tmp_path, tmp_path / "registry.db", "redis://localhost", wrong, progress=False)


@pytest.mark.parametrize(("age", "stale"), [(TTL * SECOND, False), (TTL * SECOND + 1, True), (-SECOND, False)])
def test_stale_is_older_than_ttl_and_has_no_values(tmp_path: Path, clean_redis: str, age: int, stale: bool) -> None:
    schema = small_schema("int64", ttl_seconds=TTL)
    event = START + 123_457  # odd microseconds: the boundary is exact
    row = {
        "event_timestamp": event,
        "created_timestamp": event,
        "amount": 1.0,
        "group": "a",
        "position": [0.0, 1.0, 2.0],
    }
    dataset = write_dataset(
        tmp_path / "data", schema, [{"user_id": 1} | row], [{"item_id": n} | row for n in (1, 2)], []
    )
    materialize(dataset, tmp_path / "registry.db", clean_redis, progress=False)
    with closing(FeatureReader(schema, clean_redis, timeout_ms=1000)) as reader:
        read = reader.read(1, [1, 2, 3], event + age)
    assert (read.stale_user, read.stale_items, read.unknown_user, read.unknown_items) == (stale, 2 * stale, False, 1)
    fresh = None if stale else {"other_amount": None, "history": None} | row
    assert_columns(read.user, [fresh], schema.user)
    assert_columns(read.items, [fresh, fresh, None], schema.item)


def test_nothing_materialised_is_all_unknown(clean_redis: str) -> None:
    schema = small_schema("string")
    with closing(FeatureReader(schema, clean_redis, timeout_ms=1000)) as reader:
        read = reader.read("nobody", ["a", "b"], LATER)
        assert (read.unknown_user, read.unknown_items, read.stale_user, read.stale_items) == (True, 2, False, 0)
        assert_columns(read.items, [None, None], schema.item)
        assert reader.read("nobody", [], LATER).items.rows == 0


def test_many_threads_read_the_same(online: tuple[Any, ...]) -> None:
    schema, _, _, items, url = online
    ids = IDS[schema.id_type]
    expected = [known(items, "item", item, LATER, None) for item in ids]
    with closing(FeatureReader(schema, url, timeout_ms=2000)) as reader, ThreadPoolExecutor(8) as pool:
        for read in pool.map(lambda _: reader.read(ids[0], ids, LATER), range(100)):
            assert_columns(read.items, expected, schema.item)


def test_redis_down_or_silent_fails_within_the_timeout() -> None:
    schema = small_schema("int64")
    with running_redis() as url:
        reader = FeatureReader(schema, url, timeout_ms=50)
        reader.read(1, [1], LATER)
        with redis.Redis.from_url(url) as client:
            client.execute_command("CLIENT PAUSE", 5000)
        assert _seconds_to_fail(reader) < 1.0
    assert _seconds_to_fail(reader) < 1.0  # gone
    reader.close()


def _seconds_to_fail(reader: FeatureReader) -> float:
    start = time.perf_counter()
    with pytest.raises(FeatureError, match="Redis did not give user_features"):
        reader.read(1, [1, 2, 3], LATER)
    return time.perf_counter() - start


def test_connections_that_were_cut_are_made_anew(clean_redis: str) -> None:
    schema = small_schema("int64")
    with closing(FeatureReader(schema, clean_redis, timeout_ms=1000)) as reader:
        assert reader.read(1, [1], LATER).unknown_user
        with redis.Redis.from_url(clean_redis) as client:
            client.client_kill_filter(_type="normal", skipme=True)
        with suppress(FeatureError):  # one request may notice, if the news is still on its way
            reader.read(1, [1], LATER)
        assert reader.read(1, [1], LATER).unknown_user


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://localhost", "localhost:6379,db=0"),
        ("redis://h:1/3", "h:1,db=3"),
        ("redis://:12345@h:1", 'h:1,password="12345",db=0'),
        (
            "rediss://me:p%40s=s@h:1/2?ssl_ca_certs=/ca.pem",
            'h:1,ssl_ca_certs=/ca.pem,username="me",password="p@s=s",db=2,ssl=true',
        ),
    ],
)
def test_connection_string(url: str, expected: str) -> None:
    from feast.infra.online_stores.redis import RedisOnlineStore

    connection = feast_connection(url)
    assert connection == expected
    _, options = RedisOnlineStore._parse_connection_string(connection)
    if "12345" in url:
        assert options["password"] == "12345"


@pytest.mark.parametrize(
    "url",
    ["localhost:6379", "unix:///tmp/x", "redis://:secret,word@h", "redis://:secret@[::1]:6379", "redis://:secret@h/x"],
)
def test_urls_that_feast_cannot_express(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        feast_connection(url)
    assert "secret" not in str(caught.value)
