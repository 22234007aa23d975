"""Writing a converted data set: all of it or nothing, with the rejected source rows and the counts beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from degre_prod.artefact import MARK, digest, file_digest, finished, publish, workplace, write_json, write_text
from degre_prod.errors import DataError
from degre_prod.feature_tables import feature_table_schema
from degre_prod.schema import DataSchema

CONVERSION: Final = "conversion.json"
REJECTED: Final = "conversion_rejected.parquet"


@dataclass(frozen=True, slots=True)
class Converted:
    """What a converter made. `rejected`: reason, rule, row (of the source), original (that row as JSON)."""

    schema: DataSchema
    impressions: pa.Table
    user_features: pa.Table
    item_features: pa.Table
    rejected: pa.Table
    counts: dict[str, Any]


def convert_into(dst: Path, sources: Sequence[Path], version: str, make: Callable[[], Converted]) -> dict[str, Any]:
    """Publish what `make` returns as the folder `dst` and return its conversion.json.

    Nothing is done when `dst` was made from the same source files by the same converter `version`. Raises DataError
    when a source file is missing or `dst` holds something that is not a data set of ours.
    """
    dst = dst.resolve()
    for source in sources:
        if not source.is_file():
            raise DataError("no such source file", file=str(source))
    if dst.exists() and not (dst / MARK).is_file() and (not dst.is_dir() or any(dst.iterdir())):
        raise DataError(f"{dst} is neither empty nor a converted data set; choose another folder")
    key = digest(version, [file_digest(source) for source in sources])
    if not finished(dst, key):
        folder = workplace(dst, key)
        _write(folder, make(), sources)
        publish(dst, key)
    document: dict[str, Any] = json.loads((dst / CONVERSION).read_text())
    return document


def rejected_rows(source: pa.Table, rule_N: np.ndarray, rules: Mapping[str, str]) -> pa.Table:
    """The source rows whose entry in `rule_N` names a rule (empty: none), with the reason from `rules`."""
    bad = np.flatnonzero(rule_N != "")
    originals = [json.dumps(row, default=str) for row in source.take(pa.array(bad)).to_pylist()]
    return pa.table(
        {
            "reason": pa.array([rules[r] for r in rule_N[bad]], pa.string()),
            "rule": pa.array(rule_N[bad], pa.string()),
            "row": pa.array(bad, pa.int64()),
            "original": pa.array(originals, pa.string()),
        }
    )


def feature_table(schema: DataSchema, role: Any, columns: Mapping[str, Any]) -> pa.Table:
    """A feature table of `role` (user or item); created_timestamp = event_timestamp; NaN becomes null."""
    wanted = feature_table_schema(schema, role)
    filled = {**columns, "created_timestamp": columns["event_timestamp"]}
    return pa.table([_array(filled[field.name], field.type) for field in wanted], schema=wanted)


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values.cast(kind)
    if pa.types.is_floating(kind):
        return pa.array(np.asarray(values, np.float32), kind, from_pandas=True)
    return pa.array(values, kind)


def _write(folder: Path, made: Converted, sources: Sequence[Path]) -> None:
    rules = made.rejected["rule"].to_pylist()
    document = {
        "data_set": made.schema.name,
        "sources": {source.name: file_digest(source) for source in sources},
        "requests": made.impressions.num_rows,
        "user_feature_rows": made.user_features.num_rows,
        "item_feature_rows": made.item_features.num_rows,
        "rejected": len(rules),
        "rejected_by_rule": {rule: rules.count(rule) for rule in sorted(set(rules))},
        **made.counts,
    }
    write_text(folder / "schema.yaml", made.schema.to_yaml())
    pq.write_table(made.impressions, folder / "impressions.parquet")
    pq.write_table(made.user_features, folder / "user_features.parquet")
    pq.write_table(made.item_features, folder / "item_features.parquet")
    pq.write_table(made.rejected, folder / REJECTED)
    write_json(folder / CONVERSION, document)
