"""One pass over the streams: what is settled becomes files, what is safely on disk leaves Redis.

A served list is settled once its window and a grace time have passed since it arrived in Redis, so that nearly all its
feedback is there. Killed at any point, the next pass goes on from the last file: nothing is lost and nothing is twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import redis

from degre_prod.config import CollectConfig
from degre_prod.schema import DataSchema, load_schema
from orchestration.collect.files import (
    ROWS_A_FILE,
    Commit,
    alone,
    known_events,
    last_commit,
    read_commit,
    shard_files,
    write_commit,
)
from orchestration.collect.join import Counts, Joined, join, without_list
from orchestration.collect.streams import Entry, StreamId, entries_added, forget_entries, read_entries, waiting
from serving.event_log import SHARDS, shard_key

FOLDER = "collected"
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Collected:
    """What a folder holds and what still waits in Redis. `lost`: served entries that Redis cut from its streams before
    anyone took them; None where the server can't tell (before Redis 7)."""

    counts: Counts
    files: int
    waiting_served: int
    waiting_feedback: int
    lost: int | None


def collect(
    client: redis.Redis,
    dataset: Path,
    settings: CollectConfig,
    *,
    flush: bool = False,
    done: Callable[[int], None] = lambda _: None,
) -> int:
    """Settle what can be settled into `dataset/collected`; returns how many lists were written.

    `flush` settles everything there is, without waiting for windows: for the end of a test or a shutdown. `done` is told
    the lists of each file. Raises MismatchError while another collector is at work, DataError for a damaged folder,
    redis errors when Redis is away.
    """
    schema, folder = load_schema(dataset), dataset / FOLDER
    written = 0
    with alone(folder):
        _expire(folder, client, settings)
        for shard in range(SHARDS):
            while (count := _settle(client, folder, shard, schema, settings, flush)) is not None:
                written += count
                done(count)
            commit = last_commit(folder, shard, settings.window_seconds)
            forget_entries(client, shard_key("served", shard), commit.served_to)
            forget_entries(client, shard_key("feedback", shard), commit.feedback_to)
    return written


def collected(client: redis.Redis, folder: Path) -> Collected:
    """The accounts of a folder and its streams."""
    counts, files = Counts(), 0
    held_served = held_feedback = 0
    lost: int | None = 0
    for shard in range(SHARDS):
        commits = [read_commit(f) for f in shard_files(folder, shard)]
        files += len(commits)
        counts = sum((c.counts for c in commits), counts)
        taken = commits[-1].entries if commits else 0
        key = shard_key("served", shard)
        position = last_commit(folder, shard, 0.0)
        here = waiting(client, key, position.served_to)
        held_served, held_feedback = held_served + here, held_feedback + open_feedback(client, shard, position)
        added, forgotten = entries_added(client, key), int(cast(bytes, client.get(forgotten_key(shard))) or 0)
        if added is not None and lost is not None:
            lost += added - taken - here - forgotten
        elif client.exists(key):
            lost = None
    return Collected(counts, files, held_served, held_feedback, lost)


def forgotten_key(shard: int) -> str:
    """How many served entries were erased on a user's wish before they were collected."""
    return f"degre:forgotten:{shard}"


def open_feedback(client: redis.Redis, shard: int, state: Commit) -> int:
    """Feedback entries that are not settled."""
    entries = read_entries(client, shard_key("feedback", shard), state.feedback_to)
    return sum(e.id not in state.beyond for e in entries)


def _expire(folder: Path, client: redis.Redis, settings: CollectConfig) -> None:
    """Delete days past their retention; the last file of a shard stays, it holds the position."""
    if settings.retention_days is None:
        return
    seconds, _ = cast(tuple[int, int], client.time())
    oldest = f"day={datetime.fromtimestamp(seconds, UTC) - timedelta(days=settings.retention_days):%Y-%m-%d}"
    for shard in range(SHARDS):
        for file in shard_files(folder, shard)[:-1]:
            if file.parent.name < oldest:
                file.unlink()
    for day in folder.glob("day=*"):
        if not any(day.iterdir()):
            day.rmdir()


def _settle(
    client: redis.Redis, folder: Path, shard: int, schema: DataSchema, settings: CollectConfig, flush: bool
) -> int | None:
    """Write one file of a shard; None when there is nothing to settle."""
    state = last_commit(folder, shard, settings.window_seconds)
    seconds, _ = cast(tuple[int, int], client.time())
    cut_ms = seconds * 1000 - int((settings.window_seconds + settings.grace_seconds) * 1000)
    feedback = [
        e for e in read_entries(client, shard_key("feedback", shard), state.feedback_to) if e.id not in state.beyond
    ]
    served = list(read_entries(client, shard_key("served", shard), state.served_to))
    closed = _closed(served, None if flush else cut_ms)
    later = {e.record["request_id"] for e in served[len(closed) :]}
    since_ms = seconds * 1000 - int(settings.remember_seconds * 1000)
    known = known_events(folder, shard, since_ms)
    rows, settled, counts = _join_all(closed, feedback, known, schema, settings.window_seconds)
    for entry in feedback:
        request_id = entry.record["request_id"]
        if entry.id in settled or request_id in later:
            continue
        if request_id in known or flush or entry.id[0] <= cut_ms:
            counts += without_list(entry.record, known.get(request_id))
            settled.add(entry.id)
    if not closed and not settled:
        return None
    feedback_to, beyond = _position(state, feedback, settled)
    commit = replace(
        state,
        sequence=state.sequence + 1,
        served_to=closed[-1].id if closed else state.served_to,
        feedback_to=feedback_to,
        beyond=beyond,
        entries=state.entries + len(closed),
        feedback_entries=state.feedback_entries + len(settled),
        window_s=settings.window_seconds,
        counts=counts,
    )
    write_commit(folder, schema, rows, commit, (closed[0].id if closed else min(settled))[0])
    return len(rows)


def _closed(served: Sequence[Entry], cut_ms: int | None) -> Sequence[Entry]:
    """The first entries that are settled, all of one UTC day of arrival, at most ROWS_A_FILE."""
    if not served:
        return served
    day = served[0].id[0] // _DAY_MS
    count = 0
    for entry in served[:ROWS_A_FILE]:
        if entry.id[0] // _DAY_MS != day or (cut_ms is not None and entry.id[0] > cut_ms):
            break
        count += 1
    return served[:count]


def _join_all(
    closed: Sequence[Entry],
    feedback: Sequence[Entry],
    known: dict[str, frozenset[str]],
    schema: DataSchema,
    window_s: float,
) -> tuple[list[Joined], set[StreamId], Counts]:
    """Rows of the closed lists, the feedback entries they used, and the counts of both."""
    deliveries: dict[str, list[Entry]] = defaultdict(list)
    for entry in feedback:
        deliveries[entry.record["request_id"]].append(entry)
    objectives = [o.name for o in schema.objectives]
    rows: list[Joined] = []
    settled: set[StreamId] = set()
    counts = Counts()
    here: set[str] = set()
    for entry in closed:
        request_id = entry.record["request_id"]
        if request_id in here or request_id in known:  # appended again after a reply was lost
            counts += Counts(served_duplicated=1)
            continue
        here.add(request_id)
        own = deliveries.get(request_id, [])
        row = join(entry, own, objectives, window_s)
        rows.append(row)
        settled.update(e.id for e in own)
        counts += row.counts
    return rows, settled, counts


def _position(state: Commit, feedback: Sequence[Entry], settled: set[StreamId]) -> tuple[StreamId, frozenset[StreamId]]:
    """Up to where all feedback is settled, and which later entries are as well."""
    done = state.beyond | settled
    open_ids = [e.id for e in feedback if e.id not in settled]
    last = max([state.feedback_to, *done])
    up_to = max((i for i in (*done, state.feedback_to) if not open_ids or i < open_ids[0]), default=state.feedback_to)
    return (up_to, frozenset(i for i in done if i > up_to)) if open_ids else (last, frozenset())
