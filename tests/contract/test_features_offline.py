"""The point-in-time training set against a brute-force oracle, and what happens around it."""

from __future__ import annotations

import gc
import math
import random
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers import small_schema, write_dataset

from degre_prod.errors import DataError, FeatureError
from degre_prod.requests import FeatureColumns
from degre_prod.rows import read_rows
from degre_prod.schema import DataSchema, Feature, FeatureTable, IdType
from orchestration.features import training_set
from orchestration.features.store import open_store
from orchestration.features.training_set import build_training_set

SECOND = 1_000_000
START = 1_700_000_000 * SECOND
TTL = 5
IDS: dict[IdType, list[Any]] = {"int64": [1, 11, 111, -7, 2**62], "string": ["1", "11", "a b", "é:1", ""]}


def _values(rng: random.Random, ids: Sequence[Any]) -> dict[str, Any]:
    return {
        "amount": rng.choice([None, 0.0, -0.0, 0.1, 3.4e38, 1e-45, rng.random()]),
        "other_amount": rng.random(),
        "group": rng.choice([None, "", "a", "ü", "11"]),
        "position": rng.choice([None, [rng.random(), 0.1, -0.0]]),
        "history": rng.choice([None, [], [rng.choice(ids)], [rng.choice(ids), rng.choice(ids)]]),
    }


def crafted(ids: Sequence[Any], seed: int, role: str) -> list[dict[str, Any]]:
    """Several versions an entity within few seconds: ties in event time, late arrivals, corrections. The last id has none."""
    rng = random.Random(f"{seed} {role}")
    rows: dict[tuple[Any, int, int], dict[str, Any]] = {}
    for entity in ids[:-1]:
        for _ in range(rng.randint(1, 9)):
            event = START + rng.randint(0, 12) * SECOND + rng.choice([0, 0, 1])
            created = event + rng.choice([0, 0, 1, SECOND, 4 * SECOND])
            times = {"event_timestamp": event, "created_timestamp": created}
            rows[entity, event, created] = {f"{role}_id": entity, **times, **_values(rng, ids)}
    shuffled = list(rows.values())
    rng.shuffle(shuffled)
    return shuffled


def crafted_requests(ids: Sequence[Any], seed: int, count: int) -> list[dict[str, Any]]:
    """Requests on whole seconds, many of one user at one moment, 1 to 5 candidates each."""
    rng = random.Random(seed)
    out = []
    for number in range(count):
        candidates = rng.sample(list(ids), rng.randint(1, len(ids)))
        shown = candidates[:2]
        out.append(
            {
                "request_id": f"r{number}",
                "event_timestamp": START + rng.randint(-1, 18) * SECOND,
                "user_id": rng.choice(ids),
                "candidate_ids": candidates,
                "shown_ids": shown,
                "feedback": {"click": [float(number % 2)] * len(shown)},
            }
        )
    return out


def known(
    rows: Sequence[Mapping[str, Any]], role: str, entity: Any, at: int, ttl: int | None
) -> Mapping[str, Any] | None:
    """The oracle: the newest row that had happened and arrived, if it is not too old."""
    seen = [
        r for r in rows if r[f"{role}_id"] == entity and r["event_timestamp"] <= at and r["created_timestamp"] <= at
    ]
    if not seen:
        return None
    newest = max(seen, key=lambda r: (r["event_timestamp"], r["created_timestamp"]))
    return None if ttl is not None and at - newest["event_timestamp"] > ttl * SECOND else newest


def assert_columns(got: FeatureColumns, expected: Sequence[Mapping[str, Any] | None], table: FeatureTable) -> None:
    """Bit for bit: NaN for a missing number, NaN rows for a missing vector, None otherwise."""
    assert got.rows == len(expected)
    for feature in table.features:
        want = [None if row is None else row[feature.name] for row in expected]
        values = got.values[feature.name]
        if feature.kind in ("numeric", "vector"):
            missing: Any = math.nan if feature.kind == "numeric" else [math.nan] * (feature.size or 0)
            array = np.array([missing if v is None else v for v in want], np.float32).reshape(np.shape(values))
            assert isinstance(values, np.ndarray)
            assert values.dtype == np.float32
            assert values.tobytes() == array.tobytes(), feature.name
        else:
            assert values == want, feature.name


def _dataset(
    folder: Path, schema: DataSchema, seed: int, requests: int = 60
) -> tuple[Path, list[Any], list[Any], list[Any]]:
    ids = IDS[schema.id_type]
    users, items, log = crafted(ids, seed, "user"), crafted(ids, seed, "item"), crafted_requests(ids, seed, requests)
    return write_dataset(folder, schema, users, items, log), users, items, log


@pytest.mark.parametrize("ids", ["int64", "string"])
@pytest.mark.parametrize("ttl", [None, TTL])
def test_equals_brute_force(tmp_path: Path, ids: IdType, ttl: int | None) -> None:
    schema = small_schema(ids, ttl_seconds=ttl)
    dataset, users, items, log = _dataset(tmp_path / "data", schema, seed=1 if ttl else 2)
    build_training_set(dataset, tmp_path / "registry.db", tmp_path / "out", shard_rows=25, progress=False)
    rows = list(read_rows(tmp_path / "out", schema))
    assert [row.request.request_id for row in rows] == [request["request_id"] for request in log]
    expired = 0
    for row, request in zip(rows, log, strict=True):
        at = request["event_timestamp"]
        assert row.request.event_timestamp_us == at
        assert list(row.request.candidate_ids) == request["candidate_ids"]
        assert_columns(row.user, [known(users, "user", request["user_id"], at, ttl)], schema.user)
        expected = [known(items, "item", item, at, ttl) for item in request["candidate_ids"]]
        assert_columns(row.items, expected, schema.item)
        expired += sum(
            e is None and known(items, "item", i, at, None) is not None
            for e, i in zip(expected, request["candidate_ids"], strict=True)
        )
        assert row.shown_T.tolist() == list(range(len(request["shown_ids"])))
        assert row.feedback_OT.tolist() == [request["feedback"]["click"]]
        assert row.seen_T is None
    assert (expired > 0) == (ttl is not None)  # the crafted table does reach the ttl


def test_late_arrival_correction_and_boundaries(tmp_path: Path) -> None:
    """By hand, so that the oracle's own reading is pinned."""
    schema = small_schema("int64", ttl_seconds=TTL)
    second = [START + n * SECOND for n in range(20)]

    def row(event: int, created: int, amount: float) -> dict[str, Any]:
        return {"item_id": 1, "event_timestamp": event, "created_timestamp": created, "amount": amount}

    items = [
        row(second[0], second[0], 1.0),
        row(second[0], second[2], 2.0),  # a correction, two seconds later
        row(second[3], second[6], 3.0),  # arrives three seconds late
    ]
    user = {"user_id": 1, "event_timestamp": second[0], "created_timestamp": second[0], "amount": 0.0}
    expected = [
        (second[0] - 1, math.nan),
        (second[0], 1.0),
        (second[2] - 1, 1.0),
        (second[2], 2.0),
        (second[5], 2.0),  # exactly ttl old: fresh
        (second[5] + 1, math.nan),  # a microsecond more: stale, and the late row has not arrived
        (second[6], 3.0),
        (second[8], 3.0),
        (second[8] + 1, math.nan),
    ]
    log = [
        {"request_id": str(n), "event_timestamp": at, "user_id": 1, "candidate_ids": [1], "shown_ids": [1]}
        | {"feedback": {"click": [0.0]}}
        for n, (at, _) in enumerate(expected)
    ]
    dataset = write_dataset(tmp_path / "data", schema, [user], items, log)
    build_training_set(dataset, tmp_path / "registry.db", tmp_path / "out", progress=False)
    got = [row.items.values["amount"] for row in read_rows(tmp_path / "out", schema)]
    np.testing.assert_array_equal(got, [[amount] for _, amount in expected])


def test_resumes_by_part_and_does_nothing_when_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema = small_schema("int64")
    dataset, *_ = _dataset(tmp_path / "data", schema, seed=3, requests=30)
    whole = tmp_path / "whole"
    build_training_set(dataset, tmp_path / "registry.db", whole, shard_rows=10, progress=False)

    joined: list[int] = []
    join = training_set._as_known

    def counting(*arguments: Any) -> Any:
        if len(joined) == 2:  # users and items of the first part
            raise KeyboardInterrupt
        joined.append(1)
        return join(*arguments)

    out = tmp_path / "out"
    monkeypatch.setattr(training_set, "_as_known", counting)
    with pytest.raises(KeyboardInterrupt):
        build_training_set(dataset, tmp_path / "registry.db", out, shard_rows=10, progress=False)
    assert not out.exists()
    joined.clear()
    joined.extend([0] * 3)  # never interrupt again
    build_training_set(dataset, tmp_path / "registry.db", out, shard_rows=10, progress=False)
    assert len(joined) - 3 == 4  # the first part was not made again
    for part in sorted(whole.glob("part-*.parquet")):
        assert pq.read_table(part).equals(pq.read_table(out / part.name))

    joined.clear()
    build_training_set(dataset, tmp_path / "registry.db", out, shard_rows=10, progress=False)
    assert not joined


def test_unusable_tables_are_named(tmp_path: Path) -> None:
    schema = small_schema("int64")
    dataset, *_ = _dataset(tmp_path / "data", schema, seed=4, requests=3)

    def build(folder: Path = dataset) -> None:
        build_training_set(folder, tmp_path / "registry.db", tmp_path / "out", progress=False)

    path = dataset / "item_features.parquet"
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["amount"]), path)
    with pytest.raises(FeatureError, match=r"item_features\.parquet: no column amount"):
        build()
    at = table.schema.get_field_index("amount")
    pq.write_table(table.set_column(at, "amount", table["amount"].cast("float64")), path)
    with pytest.raises(FeatureError, match=r"column amount is double; schema\.yaml makes it float"):
        build()
    pq.write_table(table, path)
    with pytest.raises(DataError, match="no impression log"):
        build_training_set(
            dataset, tmp_path / "registry.db", tmp_path / "out", log=tmp_path / "nowhere", progress=False
        )


@pytest.mark.parametrize("name", ["price_y", "rn", "event_expire_timestamp"])
def test_names_that_the_join_would_lose_are_refused(tmp_path: Path, name: str) -> None:
    features = (Feature(name=name, kind="numeric"),)
    schema = small_schema("int64", item=FeatureTable(features=features))
    user = {"user_id": 1, "event_timestamp": START, "created_timestamp": START}
    item = {"item_id": 1, "event_timestamp": START, "created_timestamp": START, name: 1.0}
    dataset = write_dataset(tmp_path / "data", schema, [user], [item], crafted_requests([1], 0, 1))
    with pytest.raises(FeatureError, match=f"item feature {name}"):
        build_training_set(dataset, tmp_path / "registry.db", tmp_path / "out", progress=False)


def test_ttl_that_the_join_cannot_express_is_refused(tmp_path: Path) -> None:
    item = {"item_id": 1, "event_timestamp": START, "created_timestamp": START, "amount": 1.0}
    user = {"user_id": 1, "event_timestamp": START, "created_timestamp": START}
    request = {"request_id": "r", "user_id": 1, "candidate_ids": [1], "shown_ids": [1], "feedback": {"click": [0.0]}}
    for ttl, usable in ((86_400, True), (3 * 86_400, True), (86_399, True), (86_401, False)):
        schema = small_schema("int64", ttl_seconds=ttl)
        log = [request | {"event_timestamp": START + ttl * SECOND + late} for late in (0, 1)]
        dataset = write_dataset(tmp_path / str(ttl), schema, [user], [item], log)
        out = tmp_path / f"out-{ttl}"
        if usable:
            build_training_set(dataset, dataset / "registry.db", out, progress=False)
            amounts = [row.items.values["amount"] for row in read_rows(out, schema)]
            np.testing.assert_array_equal(amounts, [[1.0], [math.nan]])
        else:
            with pytest.raises(FeatureError, match="ttl_seconds 86401: at most a day, or whole days"):
                build_training_set(dataset, dataset / "registry.db", out, progress=False)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"shown_ids": [1, 9]}, "shown ⊆ candidates"),
        ({"feedback": {"click": [0.0]}}, "equal lengths"),
    ],
)
def test_broken_rows_are_named(tmp_path: Path, change: dict[str, Any], rule: str) -> None:
    schema = small_schema("int64")
    times = {"event_timestamp": START, "created_timestamp": START}
    request = {"user_id": 1, "event_timestamp": START, "candidate_ids": [1, 2], "shown_ids": [2, 1]}
    good = request | {"request_id": "a", "feedback": {"click": [0.0, 1.0]}}
    dataset = write_dataset(
        tmp_path / "data", schema, [{"user_id": 1} | times], [{"item_id": 1} | times], [good, good | change]
    )
    build_training_set(dataset, tmp_path / "registry.db", tmp_path / "out", progress=False)
    rows = read_rows(tmp_path / "out", schema)
    assert next(rows).shown_T.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"part-00000\.parquet") as caught:
        next(rows)
    assert (caught.value.row, caught.value.rule) == (1, rule)


def test_vectors_of_another_size_are_named(tmp_path: Path) -> None:
    schema = small_schema("int64")
    times = {"event_timestamp": START, "created_timestamp": START}
    request = {"request_id": "a", "user_id": 1, "event_timestamp": START, "candidate_ids": [1], "shown_ids": [1]}
    log = [request | {"feedback": {"click": [0.0]}}]
    item = {"item_id": 1, "position": [1.0, 2.0]} | times
    dataset = write_dataset(tmp_path / "data", schema, [{"user_id": 1} | times], [item], log)
    build_training_set(dataset, tmp_path / "registry.db", tmp_path / "out", progress=False)
    with pytest.raises(DataError, match="length is not 3") as caught:
        list(read_rows(tmp_path / "out", schema))
    assert caught.value.column == "position"


def test_nothing_of_a_store_outlives_it(tmp_path: Path) -> None:
    """Feast refreshes a registry by a thread that nobody ends."""
    before = set(threading.enumerate())
    store = open_store(tmp_path / "data", tmp_path / "registry.db")
    [refreshing] = set(threading.enumerate()) - before
    registry = weakref.ref(store.registry)
    del store
    gc.collect()
    refreshing.join(10)
    assert not refreshing.is_alive()
    del refreshing  # it holds what it would have called
    gc.collect()
    assert registry() is None
