"""A day of confirmed served lists, as the collector leaves it, of a simulated data set."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from degre_prod.artefact import written_aside
from degre_prod.schema import load_schema
from degre_prod.worlds.drift import drifted
from degre_prod.worlds.simulate import START, draw_log, impressions
from degre_prod.worlds.truth import TRUTH_FILE, make_world
from orchestration.collect.collector import FOLDER
from orchestration.collect.files import COMMIT, Commit, last_commit, write_commit
from orchestration.collect.join import Counts
from orchestration.collect.rows import collected_schema


def collect_day(dataset: Path, day: int, requests: int, *, unconfirmed: int = 0, degrees: float = 0.0) -> Path:
    """Write one file of requests, the `unconfirmed` ones last, `day` days after the log began; returns it."""
    schema, truth = load_schema(dataset), json.loads((dataset / TRUTH_FILE).read_text())
    world = make_world(truth["world"], truth["size"], truth["seed"])
    log = draw_log(world, requests, np.random.default_rng([truth["seed"], 100 + day]), market=drifted(world, degrees))
    table = impressions(log, schema)
    later = pa.scalar(timedelta(days=day), pa.duration("us"))
    moments = pa.compute.add(table["event_timestamp"], later).cast(table["event_timestamp"].type)
    columns = {name: table[name] for name in table.column_names} | {
        "request_id": pa.array([f"d{day}-{r}" for r in range(requests)]),
        "event_timestamp": moments,
        "created_timestamp": moments,
        "confirmed": pa.array(np.arange(requests) < requests - unconfirmed),
    }
    target = collected_schema(schema)
    rows = [columns.get(f.name, pa.nulls(requests, f.type)) for f in target]
    whole = pa.Table.from_arrays([c.cast(f.type) for c, f in zip(rows, target, strict=True)], schema=target)
    before = last_commit(dataset / FOLDER, 0, 600.0)
    counts = Counts(served=requests, confirmed=requests - unconfirmed)
    commit = Commit(
        0, before.sequence + 1, (day, 0), (day, 0), frozenset(), 0, 0, 600.0, counts, before.totals + counts
    )
    day_ms = int((START + timedelta(days=day)).timestamp() * 1000)
    return write_commit(dataset / FOLDER, whole, commit, day_ms, [])


def rewrite(file: Path, change: dict[str, pa.Array]) -> None:
    """Put other columns into a collected file; its commit stays."""
    table = pq.read_table(file)
    commit = table.schema.metadata[COMMIT]
    for name, column in change.items():
        table = table.set_column(table.column_names.index(name), name, column)
    with written_aside(file) as aside:
        pq.write_table(table.replace_schema_metadata({COMMIT: commit}), aside)
