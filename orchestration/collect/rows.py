"""A joined list as a row of the impression log: what a request left out is missing, what the encoder never reads is gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from degre_prod.records import impression_columns
from degre_prod.schema import DataSchema
from orchestration.collect.join import Joined


def collected_schema(schema: DataSchema) -> pa.Schema:
    """The impression log's columns, and which event ids a row has used up."""
    fields = [pa.field(c.name, c.type) for c in impression_columns(schema)]
    return pa.schema([*fields, pa.field("event_ids", pa.list_(pa.string()))])


def log_row(joined: Joined, schema: DataSchema) -> dict[str, Any]:
    """The columns of one row.

    Scores and candidate features that no candidate carried are a null for each. Recent events of undeclared types are left
    out: the service answers such a request (`unknown_event_types`) and its encoder does not read them, but the log's
    contract would reject the row.
    """
    row = dict(joined.row)
    count = len(row["candidate_ids"])
    row["context"] = _declared(row["context"], [f.name for f in schema.context], None)
    row["upstream_scores"] = _declared(row["upstream_scores"], schema.scores, [None] * count)
    names = [f.name for f in schema.candidate_features]
    row["candidate_features"] = _declared(row["candidate_features"], names, [None] * count)
    row["recent_events"] = [e for e in row["recent_events"] if e["type"] in schema.recent_event_types]
    row["created_timestamp"] = datetime.fromtimestamp(row["arrived_ms"] / 1000, UTC)
    row["event_ids"] = list(joined.event_ids)
    return row


def log_table(rows: Sequence[Joined], schema: DataSchema) -> tuple[pa.Table, dict[int, str]]:
    """The rows that fit the columns, and of the others their index and what is wrong."""
    columns, problems = collected_schema(schema), dict[int, str]()
    try:
        return _table([log_row(r, schema) for r in rows], columns), problems
    except _WRONG:
        fitting = []
        for index, joined in enumerate(rows):
            try:
                row = log_row(joined, schema)
                _table([row], columns)
            except _WRONG as error:
                problems[index] = f"does not fit schema.yaml: {error}"
            else:
                fitting.append(row)
        return _table(fitting, columns), problems


_WRONG = (pa.ArrowException, KeyError, TypeError, ValueError, OverflowError, AttributeError)


def _table(rows: list[dict[str, Any]], columns: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([{name: row.get(name) for name in columns.names} for row in rows], schema=columns)


def _declared(given: Mapping[str, Any], names: Sequence[str], absent: Any) -> dict[str, Any]:
    """Every declared name and no other: a bundle may read what this data set does not keep."""
    return {name: given.get(name, absent) for name in names}
