"""The training set: each logged request with the feature values that were known at its time, one nested row a request.

Feast's DuckDB offline store does the point-in-time join, for users and items apart: a user's columns are never repeated on
each item row. A value counts only if its event *and* its arrival (created_timestamp) are not after the request, so that a
back-fill does not leak, and only if it is not older than the table's ttl.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import Progress

from degre_prod.artefact import digest, file_digest, finished, publish, workplace, written_aside
from degre_prod.errors import DataError, FeatureError
from degre_prod.records import feature_type
from degre_prod.schema import DataSchema, FeatureTable, load_schema
from orchestration.features.store import apply, definitions, open_store

if TYPE_CHECKING:
    import pyarrow as pa
    from feast import FeatureStore

_FORMAT = 1


def build_training_set(
    dataset: Path,
    registry: Path | str,
    out: Path,
    *,
    log: Path | None = None,
    shard_rows: int = 2000,
    progress: bool = True,
) -> None:
    """Write folder `out` with parts of `shard_rows` requests each, in the order of the log.

    `log` is a parquet file or a folder of them (`impressions.parquet` of the data set when absent). A part has every
    column of the log, `user` (struct, one value a feature) and `items` (struct of lists aligned with `candidate_ids`).
    Does nothing when `out` was made from the same inputs; resumes at the first missing part after an interruption.

    Feast reads the feature tables anew for each shard, so small shards cost time; 2,000 requests × 50
    candidates needs about 1 GB.

    Raises DataError for a log without the columns of the join, FeatureError when Feast cannot give what the schema
    declares or changes the number of rows.
    """
    log = log or dataset / "impressions.parquet"
    schema = load_schema(dataset)
    made_from = _made_from(dataset, schema, log, shard_rows)
    if finished(out, made_from):
        return
    folder = workplace(out, made_from)
    for leftover in folder.glob(".part-*"):
        leftover.unlink()
    store = open_store(dataset, registry)
    apply(store, definitions(dataset, schema))
    total, shards = _shards(log, shard_rows)
    with Progress(console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("training set", total=total)
        for index, shard in enumerate(shards):
            _write_part(folder / f"part-{index:05d}.parquet", shard, store, schema)
            bar.advance(task, shard.num_rows)
    publish(out, made_from)


def _made_from(dataset: Path, schema: DataSchema, log: Path, shard_rows: int) -> str:
    logs = [log] if log.is_file() else sorted(log.glob("*.parquet"))
    if not logs:
        raise DataError("no impression log here", file=str(log))
    tables = [dataset / "user_features.parquet", dataset / "item_features.parquet"]
    return digest(
        "training_set", _FORMAT, schema.digest(), shard_rows, [file_digest(path) for path in (*logs, *tables)]
    )


def _shards(log: Path, rows: int) -> tuple[int, Iterator[pa.Table]]:
    """How many requests the log has, and an iterator of tables with `rows` requests each (the last may be shorter)."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    source = ds.dataset(log, format="parquet")
    if absent := [n for n in ("user_id", "candidate_ids", "event_timestamp") if n not in source.schema.names]:
        raise DataError(f"the log has no column {', '.join(absent)}", file=str(log))

    # A list whose showing nothing confirmed is not trained on; logs from elsewhere have no such column.
    shown = ds.field("confirmed").is_null() | ds.field("confirmed") if "confirmed" in source.schema.names else None

    def tables() -> Iterator[pa.Table]:
        held = source.schema.empty_table()
        for batch in source.to_batches(batch_size=rows, batch_readahead=1, fragment_readahead=1, filter=shown):
            held = pa.concat_tables([held, pa.Table.from_batches([batch])])
            while held.num_rows >= rows:
                yield held.slice(0, rows).combine_chunks()
                held = held.slice(rows)
        if held.num_rows:
            yield held.combine_chunks()

    return source.count_rows(filter=shown), tables()


def _write_part(path: Path, shard: pa.Table, store: FeatureStore, schema: DataSchema) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if path.exists():
        return
    moments = shard["event_timestamp"]
    lengths = pc.list_value_length(shard["candidate_ids"]).to_numpy()
    user = _as_known(store, schema, schema.user, "user", shard["user_id"], moments)
    per_item = moments.take(pa.array(np.repeat(np.arange(shard.num_rows), lengths)))
    item = _as_known(store, schema, schema.item, "item", pc.list_flatten(shard["candidate_ids"]), per_item)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    nested = [pa.ListArray.from_arrays(offsets, column.combine_chunks()) for column in item.columns]
    table = shard.append_column("user", user.to_struct_array().combine_chunks())
    table = table.append_column("items", pa.StructArray.from_arrays(nested, names=item.column_names))
    with written_aside(path) as aside:
        pq.write_table(table, aside, compression="zstd", compression_level=1)


def _as_known(
    store: FeatureStore,
    schema: DataSchema,
    features: FeatureTable,
    role: str,
    ids: pa.ChunkedArray,
    at: pa.ChunkedArray,
) -> pa.Table:
    """Feature values of each (id, moment), in the order given; null where nothing was known or it was too old."""
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    rows = len(ids)
    entities = pd.DataFrame(
        {
            f"{role}_id": ids.to_pandas(),
            "event_timestamp": at.to_pandas(),
            "row": np.arange(rows),  # a join keeps no order
        }
    )
    if entities.isna().any(axis=None):
        raise DataError(f"the log has a request without {role} id or time; `degre data validate` finds it")
    names = [feature.name for feature in features.features]
    job = store.get_historical_features(
        entity_df=entities,
        features=[f"{role}_features:{name}" for name in names],
        filter_by_created_timestamp=True,
    )
    known = job.to_arrow().sort_by("row")
    if known.num_rows != rows or not np.array_equal(known["row"].to_numpy(), np.arange(rows)):
        raise FeatureError(f"the point-in-time join turned {rows} {role} rows into {known.num_rows}")
    types = [pa.field(f.name, feature_type(f.kind, schema.id_type)) for f in features.features]
    return known.select(names).cast(pa.schema(types))
