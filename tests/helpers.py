"""Tiny data sets for tests, and functions of test modules on Ray's workers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from degre_prod.records import TIMESTAMP, feature_type, id_type, impression_columns
from degre_prod.schema import DataSchema, Feature, FeatureTable, IdType, Objective

Rows = Sequence[Mapping[str, Any]]


def small_schema(ids: IdType, *, ttl_seconds: int | None = None, **changes: Any) -> DataSchema:
    """A schema with every kind of feature on both sides; one objective, lists of 2 out of at most 8 candidates."""
    features = (
        Feature(name="amount", kind="numeric"),
        Feature(name="other_amount", kind="numeric"),
        Feature(name="group", kind="categorical"),
        Feature(name="position", kind="vector", size=3),
        Feature(name="history", kind="id_sequence", max_length=4),
    )
    table = FeatureTable(features=features, ttl_seconds=ttl_seconds)
    settings: dict[str, Any] = {
        "name": "small",
        "id_type": ids,
        "list_length": 2,
        "max_candidates": 8,
        "objectives": (Objective(name="click"),),
        "user": table,
        "item": table,
    }
    return DataSchema(**(settings | changes))


def write_dataset(folder: Path, schema: DataSchema, users: Rows, items: Rows, impressions: Rows) -> Path:
    """Write a data set folder from plain rows; timestamps are µs since 1970 UTC, absent keys become null."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "schema.yaml").write_text(schema.to_yaml())
    for role, table, rows in (("user", schema.user, users), ("item", schema.item, items)):
        columns = pa.schema(
            [
                (f"{role}_id", id_type(schema.id_type)),
                ("event_timestamp", TIMESTAMP),
                ("created_timestamp", TIMESTAMP),
                *((feature.name, feature_type(feature.kind, schema.id_type)) for feature in table.features),
            ]
        )
        pq.write_table(
            pa.Table.from_pylist([dict(row) for row in rows], schema=columns), folder / f"{role}_features.parquet"
        )
    log = pa.schema([(column.name, column.type) for column in impression_columns(schema)])
    pq.write_table(pa.Table.from_pylist([dict(row) for row in impressions], schema=log), folder / "impressions.parquet")
    return folder


@contextmanager
def sent_by_value(module: str) -> Iterator[None]:
    """Ray's workers cannot import a test module: its functions are sent as they are."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[module])
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[module])
