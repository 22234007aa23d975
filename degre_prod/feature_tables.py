"""Checks of user_features.parquet and item_features.parquet, which the feature store reads as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from degre_prod.conform import read_parquet
from degre_prod.errors import DataError
from degre_prod.records import TIMESTAMP, feature_type, id_type
from degre_prod.schema import DataSchema, FeatureTable


class FeatureReport(BaseModel):
    """Counts of one feature table. Times are ISO 8601, UTC."""

    model_config = ConfigDict(frozen=True)

    rows: int
    entities: int
    first: str | None
    last: str | None


def feature_table_schema(schema: DataSchema, role: Literal["user", "item"]) -> pa.Schema:
    """The parquet schema of a feature table."""
    return pa.schema(
        [
            (f"{role}_id", id_type(schema.id_type)),
            ("event_timestamp", TIMESTAMP),
            ("created_timestamp", TIMESTAMP),
            *((f.name, feature_type(f.kind, schema.id_type)) for f in _table(schema, role).features),
        ]
    )


def validate_features(folder: Path, schema: DataSchema, role: Literal["user", "item"], *, now_us: int) -> FeatureReport:
    """Check one feature table; raises DataError naming file, row, column and rule of the first thing wrong."""
    file = folder / f"{role}_features.parquet"
    table = read_parquet(file)
    wanted = feature_table_schema(schema, role)
    for field in wanted:
        if field.name not in table.column_names:
            raise DataError(
                f"required column is missing; {field.type} is needed",
                file=str(file),
                column=field.name,
                rule="missing_column",
            )
        have = table.schema.field(field.name).type
        if not _same_type(have, field.type):
            raise DataError(
                f"is {have}, but {field.type} is needed (the feature store reads the file as it is)",
                file=str(file),
                column=field.name,
                rule="wrong_type",
            )
    _check_keys(table, f"{role}_id", str(file), now_us)
    for feature in _table(schema, role).features:
        column = table.column(feature.name)
        if feature.kind == "numeric":
            _refuse(~pc.fill_null(pc.is_finite(column), True).to_numpy(), "NaN or infinite; a missing value is null",
                    str(file), feature.name, "not_finite")  # fmt: skip
        elif feature.kind == "vector":
            lengths = pc.fill_null(pc.list_value_length(column), feature.size).to_numpy()
            _refuse(
                lengths != feature.size, f"a vector needs {feature.size} values", str(file), feature.name, "vector_size"
            )
            _refuse_vector_values(column, str(file), feature.name)
        elif feature.kind == "id_sequence":
            lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
            _refuse(
                lengths > (feature.max_length or 0),
                f"more ids than max_length {feature.max_length} in schema.yaml",
                str(file),
                feature.name,
                "sequence_too_long",
            )
    times = pc.min_max(table["event_timestamp"])
    return FeatureReport(
        rows=table.num_rows,
        entities=pc.count_distinct(table[f"{role}_id"]).as_py(),
        first=times["min"].as_py().isoformat() if table.num_rows else None,
        last=times["max"].as_py().isoformat() if table.num_rows else None,
    )


def _check_keys(table: pa.Table, ident: str, file: str, now_us: int) -> None:
    for name, rule in ((ident, "null_id"), ("event_timestamp", "null_value"), ("created_timestamp", "null_value")):
        _refuse(table[name].is_null().to_numpy(), "is null; every row needs one", file, name, rule)
    for name in ("event_timestamp", "created_timestamp"):
        late = table[name].cast(pa.int64()).to_numpy() > now_us
        _refuse(late, "the timestamp lies in the future", file, name, "future_timestamp")
    keys = (
        [table[ident].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)]
        if table.num_rows
        else []
    )
    keys += [table[name].cast(pa.int64()).to_numpy() for name in ("event_timestamp", "created_timestamp")]
    order = np.lexsort(keys)
    same = np.ones(max(len(order) - 1, 0), bool)
    for key in keys:
        same &= key[order][1:] == key[order][:-1]
    twice = np.zeros(len(order), bool)
    twice[order[1:][same]] = True
    what = "a second row of this id with the same event_timestamp and created_timestamp; which one holds cannot be told"
    _refuse(twice, what, file, ident, "duplicate_row")


def _refuse_vector_values(column: pa.ChunkedArray, file: str, name: str) -> None:
    array = column.combine_chunks()
    values = pc.list_flatten(array)
    bad = ~pc.fill_null(pc.is_finite(values), False).to_numpy(zero_copy_only=False)
    rows = np.zeros(len(array), bool)
    rows[pc.list_parent_indices(array).to_numpy()[bad]] = True
    _refuse(
        rows, "NaN, infinite or null inside a vector; a missing vector is null as a whole", file, name, "not_finite"
    )


def _refuse(bad: np.ndarray, what: str, file: str, column: str, rule: str) -> None:
    if bad.any():
        raise DataError(f"{what}; {int(bad.sum())} rows", file=file, row=int(bad.argmax()), column=column, rule=rule)


def _table(schema: DataSchema, role: Literal["user", "item"]) -> FeatureTable:
    return schema.user if role == "user" else schema.item


def _same_type(have: pa.DataType, want: pa.DataType) -> bool:
    """Equal but for the name of a list's element and for how UTC is spelled."""
    if pa.types.is_list(have) and pa.types.is_list(want):
        return bool(have.value_type.equals(want.value_type))
    if pa.types.is_timestamp(have) and pa.types.is_timestamp(want):
        return have.unit == want.unit and have.tz in ("UTC", "Etc/UTC", "+00:00")
    return bool(have.equals(want))
