"""What a data set holds for training though every row keeps the rules: requests by split, users and items known in time."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from degre_prod.encoding.splits import SPLITS, boundaries_in, split_of
from degre_prod.schema import DataSchema


class Coverage(BaseModel):
    """Accepted requests by split; shares of requests and candidates that had a feature row by the time of the request.

    A row that is older than `ttl_seconds` counts as there: whether values are fresh is another question.
    """

    model_config = ConfigDict(frozen=True)

    requests_by_split: dict[str, int]
    known_users: float
    known_candidates: float


def coverage(log: pa.Table, folder: Path, schema: DataSchema) -> Coverage:
    """Coverage of an accepted log by the feature tables of its data set `folder`; shares of an empty log are 0."""
    at_R = log["event_timestamp"].cast(pa.int64()).to_numpy()
    counts = dict.fromkeys(SPLITS, 0)
    if len(at_R):
        boundaries = boundaries_in(schema, at_R)
        for at in at_R:
            counts[split_of(int(at), boundaries)] += 1
    candidates = log["candidate_ids"].combine_chunks()
    of_C = pc.list_parent_indices(candidates).to_numpy()
    return Coverage(
        requests_by_split={str(name): count for name, count in counts.items()},
        known_users=_known(log["user_id"].combine_chunks(), at_R, folder, "user"),
        known_candidates=_known(pc.list_flatten(candidates), at_R[of_C], folder, "item"),
    )


def _known(ids: pa.Array, at_N: np.ndarray, folder: Path, role: Literal["user", "item"]) -> float:
    """The share of `ids` with a row that was both true and written by `at_N` (µs)."""
    ident, times = f"{role}_id", ["event_timestamp", "created_timestamp"]
    table = pq.read_table(folder / f"{role}_features.parquet", columns=[ident, *times])
    since = pc.max_element_wise(*(table[name].cast(pa.int64()) for name in times))
    first = pa.table({ident: table[ident], "since": since}).group_by(ident).aggregate([("since", "min")])
    if not len(ids) or not first.num_rows:
        return 0.0
    where = pc.index_in(ids, value_set=first[ident].combine_chunks())
    row_N = pc.fill_null(where, 0).to_numpy(zero_copy_only=False)
    there_N = where.is_valid().to_numpy(zero_copy_only=False)
    return float(np.mean(there_N & (first["since_min"].to_numpy()[row_N] <= at_N)))
