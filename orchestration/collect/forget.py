"""Erasing a user: streams, collected log, feature tables, online features, cached lists; and a record that it was done.

The impression log that a data set began with (`impressions.parquet`) is erased as well. What was learnt from the user's
lists stays in trained models until they are trained again; the record says when it was erased.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

import redis

from degre_prod.artefact import written_aside
from degre_prod.schema import load_schema
from degre_prod.validation import LOG
from orchestration.collect.collector import FOLDER, forgotten_key
from orchestration.collect.files import alone, collected_files, last_commit
from orchestration.collect.streams import ORIGIN, id_text, read_entries
from orchestration.features.materialize import EPOCH_KEY
from serving.event_log import SHARDS, shard_key
from serving.feature_wire import entity_keys

if TYPE_CHECKING:
    import pyarrow as pa

    from degre_prod.requests import Id

RECORD = "forgotten.jsonl"


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was erased of one user: entries of the streams, rows on disk, rows online."""

    served_entries: int
    feedback_entries: int
    logged_rows: int
    feature_rows: int
    online_rows: int


def forget(client: redis.Redis, dataset: Path, user_id: Id, now: datetime) -> Forgotten:
    """Erase a user everywhere; running it again erases what came since. Raises MismatchError while a collector works.

    Order: first the streams, so that nothing is collected afterwards, then the files, then what is online. Cached lists are
    made useless for everybody by a new feature epoch: a cache key does not tell whose it is.
    """
    schema, folder = load_schema(dataset), dataset / FOLDER
    with alone(folder):
        requests, rows = _logged(folder, dataset, user_id)
        served, feedback = _erase_entries(client, folder, user_id, requests)
        for file in [*collected_files(folder), dataset / LOG]:
            if file.is_file():
                _without(file, "user_id", user_id)
        features = _without(dataset / "user_features.parquet", "user_id", user_id)
        (key,) = entity_keys("user", [user_id], integers=schema.id_type == "int64")
        online = int(cast(int, client.delete(key)))
        client.incr(EPOCH_KEY)
        found = Forgotten(served, feedback, rows, features, online)
        _record(dataset / RECORD, user_id, now, found)
    return found


def _logged(folder: Path, dataset: Path, user_id: Id) -> tuple[set[str], int]:
    """The user's requests in the collected log, and how many rows of any log are the user's."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    requests: set[str] = set()
    rows = 0
    for file in [*collected_files(folder), dataset / LOG]:
        if file.is_file():
            table = pq.read_table(file, columns=["request_id", "user_id"])
            own = table.filter(pc.equal(table["user_id"], user_id))
            requests.update(own["request_id"].to_pylist())
            rows += own.num_rows
    return requests, rows


def _erase_entries(client: redis.Redis, folder: Path, user_id: Id, requests: set[str]) -> tuple[int, int]:
    served = feedback = 0
    for shard in range(SHARDS):
        key, own = shard_key("served", shard), set(requests)
        collected_to = last_commit(folder, shard, 0.0).served_to
        for entry in list(read_entries(client, key, ORIGIN)):
            if entry.record["user_id"] == user_id:
                own.add(entry.record["request_id"])
                with client.pipeline(transaction=True) as pipeline:
                    pipeline.xdel(key, id_text(entry.id))
                    if entry.id > collected_to:
                        pipeline.incr(forgotten_key(shard))  # or it would look lost
                    pipeline.execute()
                served += 1
        key = shard_key("feedback", shard)
        for entry in list(read_entries(client, key, ORIGIN)):
            if entry.record["request_id"] in own:
                feedback += cast(int, client.xdel(key, id_text(entry.id)))
    return served, feedback


def _without(file: Path, column: str, user_id: Id) -> int:
    """Rewrite a parquet file without the user's rows, its metadata kept; how many there were."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not file.is_file():
        return 0
    table: pa.Table = pq.read_table(file)
    kept = table.filter(pc.fill_null(pc.not_equal(table[column], user_id), True))
    gone = int(table.num_rows - kept.num_rows)
    if gone:
        with written_aside(file) as aside:
            pq.write_table(kept, aside)
    return gone


def _record(file: Path, user_id: Id, now: datetime, found: Forgotten) -> None:
    """Append that it was done: a hash of the id, not the id."""
    line = {
        "user_sha256": hashlib.sha256(str(user_id).encode()).hexdigest(),
        "erased": now.isoformat(),
        **asdict(found),
    }
    with file.open("a") as stream:
        stream.write(json.dumps(line) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
