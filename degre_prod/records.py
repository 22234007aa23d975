"""The impression-log contract: one list of columns, from which the parquet schema and the pydantic model both come.

One row a request. Upstream order is the order of `candidate_ids`, so prior rank = index there. Which columns a data set
has follows from its schema.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import GenericAlias
from typing import Any, Final

import pyarrow as pa
from pydantic import AwareDatetime, BaseModel, ConfigDict, create_model

from degre_prod.schema import DataSchema, Feature, IdType, Kind

TIMESTAMP: Final = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the log. `required`: it must be there and no row may be null; any other may be absent."""

    name: str
    type: pa.DataType
    required: bool


def id_type(kind: IdType) -> pa.DataType:
    """The arrow type of every id of a data set."""
    return pa.int64() if kind == "int64" else pa.string()


def feature_type(kind: Kind, ids: IdType) -> pa.DataType:
    """The arrow type of one feature value."""
    return {
        "numeric": pa.float32(),
        "categorical": pa.string(),
        "vector": pa.list_(pa.float32()),
        "id_sequence": pa.list_(id_type(ids)),
    }[kind]


def impression_columns(schema: DataSchema) -> tuple[Column, ...]:
    """The columns of this data set's impression log, in file order."""
    ident = id_type(schema.id_type)

    def features(declared: tuple[Feature, ...], *, per_candidate: bool) -> pa.DataType:
        types = [(f.name, feature_type(f.kind, schema.id_type)) for f in declared]
        return pa.struct([(name, pa.list_(kind) if per_candidate else kind) for name, kind in types])

    event = pa.struct([("item_id", ident), ("type", pa.string()), ("timestamp", TIMESTAMP)])
    columns = [
        Column("request_id", pa.string(), True),
        Column("event_timestamp", TIMESTAMP, True),
        Column("user_id", ident, True),
        Column("context", features(schema.context, per_candidate=False), True),
        Column("candidate_ids", pa.list_(ident), True),
        Column("upstream_scores", pa.struct([(name, pa.list_(pa.float32())) for name in schema.scores]), True),
        Column("candidate_features", features(schema.candidate_features, per_candidate=True), True),
        Column("recent_events", pa.list_(event), False),
        Column("shown_ids", pa.list_(ident), True),
        Column("feedback", pa.struct([(o.name, pa.list_(pa.float32())) for o in schema.objectives]), True),
        Column("seen", pa.list_(pa.bool_()), False),
        Column("propensity", pa.list_(pa.float32()), False),
        Column("list_propensity", pa.float32(), False),
        Column("bundle", pa.string(), False),
        Column("arm", pa.string(), False),
        Column("source", pa.string(), False),
        Column("constraints", pa.string(), False),
        Column("confirmed", pa.bool_(), False),
        Column("created_timestamp", TIMESTAMP, False),
    ]
    undeclared = {c.name for c in columns if pa.types.is_struct(c.type) and c.type.num_fields == 0}
    if not schema.recent_event_types:
        undeclared.add("recent_events")
    return tuple(c for c in columns if c.name not in undeclared)


def impression_schema(schema: DataSchema) -> pa.Schema:
    """The parquet schema of the impression log, optional columns included."""
    return pa.schema([pa.field(c.name, c.type, nullable=not c.required) for c in impression_columns(schema)])


@lru_cache(maxsize=32)
def impression_model(schema: DataSchema) -> type[BaseModel]:
    """A pydantic model of one row (frozen, no unknown keys); values inside lists and structs may be null."""
    fields: dict[str, Any] = {}
    for column in impression_columns(schema):
        kind = _python_type(column.type, column.name)
        fields[column.name] = (kind, ...) if column.required else (kind | None, None)
    return create_model("Impression", __config__=_ROW, **fields)


_ROW = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _python_type(kind: pa.DataType, name: str) -> Any:
    if pa.types.is_struct(kind):
        fields: dict[str, Any] = {f.name: (_python_type(f.type, f.name) | None, None) for f in kind}
        return create_model(name.title().replace("_", ""), __config__=_ROW, **fields)
    if pa.types.is_list(kind):
        return GenericAlias(list, (_python_type(kind.value_type, name) | None,))
    if pa.types.is_timestamp(kind):
        return AwareDatetime
    return {pa.int64(): int, pa.string(): str, pa.float32(): float, pa.bool_(): bool}[kind]
