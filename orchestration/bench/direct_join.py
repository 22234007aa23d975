"""A training set by looking features up by id: enough where a feature never changes, as in the simulated worlds.

The project's own path joins point in time through Feast; this one reads the same tables in a second and writes the same
nested rows. Refuses tables in which an entity has two versions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from degre_prod.errors import DataError
from degre_prod.schema import FeatureTable, load_schema

_PART_ROWS = 4096


def join_by_id(dataset: Path, out: Path) -> None:
    """Write part-NNNNN.parquet of every logged request into the folder `out`, in the log's order."""
    schema = load_schema(dataset)
    log = pq.read_table(dataset / "impressions.parquet")
    users, items = (
        _Lookup(dataset / f"{role}_features.parquet", role, table)
        for role, table in (("user", schema.user), ("item", schema.item))
    )
    for index, start in enumerate(range(0, log.num_rows, _PART_ROWS)):
        part = log.slice(start, _PART_ROWS).combine_chunks()
        candidates = part["candidate_ids"].combine_chunks()
        offsets = pa.array(np.concatenate([[0], np.cumsum(pc.list_value_length(candidates).to_numpy())]), pa.int32())
        columns = users.rows(part["user_id"].combine_chunks())
        lists = [pa.ListArray.from_arrays(offsets, column) for column in items.rows(candidates.flatten())]
        part = part.append_column("user", pa.StructArray.from_arrays(columns, names=users.names))
        part = part.append_column("items", pa.StructArray.from_arrays(lists, names=items.names))
        pq.write_table(part, out / f"part-{index:05d}.parquet", compression="zstd", compression_level=1)


class _Lookup:
    """A feature table by id; unknown ids have every value missing."""

    def __init__(self, file: Path, role: str, table: FeatureTable) -> None:
        self.names = [feature.name for feature in table.features]
        rows = pq.read_table(file, columns=[f"{role}_id", *self.names]).combine_chunks()
        self._ids = rows[f"{role}_id"].combine_chunks()
        if pc.count_distinct(self._ids).as_py() != len(self._ids):
            raise DataError(f"a {role} has two rows; features that change need the point-in-time join", file=str(file))
        self._columns = [rows[name].combine_chunks() for name in self.names]

    def rows(self, ids: pa.Array) -> list[pa.Array]:
        """One array a feature, in the order of `ids`."""
        index = pc.index_in(ids, value_set=self._ids)
        return [column.take(index) for column in self._columns]
