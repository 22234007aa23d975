"""Erasing a user: streams, collected log, feature tables, online features, cached lists; and a record that it was done.

The impression log that a data set began with (`impressions.parquet`) is erased as well, and what was rejected of either
log. What was made from the logs, in run folders and bundles, keeps the user until it is made again; the record says when
the user was erased.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

import redis

from degre_prod.schema import load_schema
from degre_prod.validation import LOG
from degre_prod.validation import REJECTED as REJECTED_ROWS
from orchestration.collect.collector import FOLDER, forgotten_key
from orchestration.collect.files import REJECTED, alone, collected_files, last_commit, replace_durably
from orchestration.collect.streams import ORIGIN, Entry, StreamId, feedback_entries, id_text, served_entries
from orchestration.features.materialize import EPOCH_KEY
from serving.event_log import SHARDS, shard_key
from serving.feature_wire import entity_keys
from serving.shadow import drop_lists

if TYPE_CHECKING:
    from degre_prod.requests import Id

RECORD = "forgotten.jsonl"


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was erased of one user: entries of the streams, rows on disk, rejected entries and rows, rows online."""

    served_entries: int
    feedback_entries: int
    logged_rows: int
    rejected: int
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
        drop_lists(client)
        for file in [*collected_files(folder), dataset / LOG]:
            if file.is_file():
                _without(file, "user_id", user_id)
        rejected = _erase_rejected(folder, dataset, user_id, requests)
        features = _without(dataset / "user_features.parquet", "user_id", user_id)
        (key,) = entity_keys("user", [user_id], integers=schema.id_type == "int64")
        online = int(cast(int, client.delete(key)))
        client.incr(EPOCH_KEY)
        found = Forgotten(served, feedback, rows, rejected, features, online)
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
    """How many served lists and deliveries; adds the requests of the lists to `requests`."""
    served = feedback = 0
    for shard in range(SHARDS):
        state = last_commit(folder, shard, 0.0)
        lists = [e for e in served_entries(client, shard, ORIGIN) if _of_user(e, user_id)]
        requests.update(e.record["request_id"] for e in lists if e.problem is None)
        own = [e for e in feedback_entries(client, shard, ORIGIN) if _of_request(e, requests)]
        waiting = [(e.id, e.id > state.feedback_to and e.id not in state.beyond) for e in own]
        # Before the lists, without which nobody would know whose it is.
        feedback += _erase(client, "feedback", shard, waiting)
        served += _erase(client, "served", shard, [(e.id, e.id > state.served_to) for e in lists])
    return served, feedback


def _erase(client: redis.Redis, kind: str, shard: int, entries: list[tuple[StreamId, bool]]) -> int:
    """Delete entries; those that wait for the collector are counted, or they would look lost."""
    for entry, waiting in entries:
        with client.pipeline(transaction=True) as pipeline:
            pipeline.xdel(shard_key(kind, shard), id_text(entry))
            if waiting:
                pipeline.incr(forgotten_key(kind, shard))
            pipeline.execute()
    return len(entries)


def _of_user(entry: Entry, user_id: Id) -> bool:
    """An entry that cannot be read is the user's if the id stands in it: rather one too many."""
    return str(user_id) in entry.text if entry.problem else bool(entry.record["user_id"] == user_id)


def _of_request(entry: Entry, requests: set[str]) -> bool:
    return any(r in entry.text for r in requests) if entry.problem else entry.record["request_id"] in requests


def _erase_rejected(folder: Path, dataset: Path, user_id: Id, requests: set[str]) -> int:
    """Entries the collector set aside, and rows that the validation of the data set's first log set aside."""
    found = 0
    files = sorted((folder / REJECTED).glob("shard-*.jsonl"))
    for file in files:  # first the requests of the user's lists, then what belongs to them
        requests = requests | {r for line in file.read_text().splitlines() if (r := _own_request(line, user_id))}
    for file in files:
        lines = file.read_text().splitlines(keepends=True)
        kept = [line for line in lines if not _mentions(json.loads(line)["text"], user_id, requests)]
        found += len(lines) - len(kept)
        if len(kept) < len(lines):
            replace_durably(file, lambda aside, kept=kept: aside.write_text("".join(kept)))  # type: ignore[misc]
    return found + _without(dataset / REJECTED_ROWS, "original", lambda text: _mentions(text, user_id, requests))


def _own_request(line: str, user_id: Id) -> str | None:
    try:
        record = json.loads(json.loads(line)["text"])
        return record.get("request_id") if str(record.get("user_id")) == str(user_id) else None
    except (ValueError, AttributeError):
        return None


def _mentions(text: str, user_id: Id, requests: set[str]) -> bool:
    """Whether a record is the user's, or one of the user's requests; if it is no record, whether the id stands in it."""
    try:
        record = json.loads(text)
        return bool(str(record.get("user_id")) == str(user_id) or record.get("request_id") in requests)
    except (ValueError, AttributeError):
        return str(user_id) in text


def _without(file: Path, column: str, gone: Id | Callable[[str], bool]) -> int:
    """Rewrite a parquet file without the rows whose `column` is `gone`, its metadata kept; how many there were."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if not file.is_file():
        return 0
    table = pq.read_table(file)
    if callable(gone):
        keep = pa.array([not gone(text) for text in table[column].to_pylist()], pa.bool_())
    else:
        keep = pc.fill_null(pc.not_equal(table[column], gone), True)
    kept = table.filter(keep)
    if kept.num_rows < table.num_rows:
        replace_durably(file, lambda aside: pq.write_table(kept, aside))
    return int(table.num_rows - kept.num_rows)


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
