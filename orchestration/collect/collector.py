"""One pass over the streams: what is settled becomes files, what is safely on disk leaves Redis.

A served list is settled once its window and a grace time have passed since it arrived in Redis, so that nearly all its
feedback is there. Killed at any point, the next pass goes on from the last file: nothing is lost and nothing is twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from pathlib import Path
from typing import cast

import redis

from degre_prod.config import CollectConfig
from degre_prod.schema import DataSchema, load_schema
from orchestration.collect.files import (
    Commit,
    alone,
    known_events,
    last_commit,
    rejected_file,
    shard_files,
    write_commit,
)
from orchestration.collect.join import Counts, Joined, join, units, without_list
from orchestration.collect.rows import log_table
from orchestration.collect.streams import (
    Entry,
    StreamId,
    appended_and_held,
    feedback_entries,
    forget_entries,
    ids_up_to,
    last_ms,
    served_entries,
)
from serving.event_log import SHARDS, shard_key

FOLDER = "collected"
ROWS_A_FILE = 10_000  # some hundred MB of memory with a hundred candidates a list
_DAY_MS = 86_400_000

Known = dict[str, frozenset[str]]  # event ids by request of the lists that are on disk


@dataclass(frozen=True, slots=True)
class Collected:
    """What was ever written into a folder and what still waits in Redis. `lost`, `lost_feedback`: entries that replicas
    appended and that Redis cut from its streams, or forgot, before anyone took them; None where nobody counted appends."""

    counts: Counts
    files: int
    waiting_served: int
    waiting_feedback: int
    lost: int | None
    lost_feedback: int | None


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
            for count in _settle(client, folder, shard, schema, settings, flush):
                written += count
                done(count)
            commit = last_commit(folder, shard, settings.window_seconds)
            forget_entries(client, shard_key("served", shard), commit.served_to)
            forget_entries(client, shard_key("feedback", shard), commit.feedback_to)
    return written


def collected(client: redis.Redis, folder: Path) -> Collected:
    """The accounts of a folder and its streams. What waits is counted, not read: it may be gigabytes."""
    counts, files = Counts(), 0
    waiting = {"served": 0, "feedback": 0}
    lost: dict[str, int | None] = {"served": 0, "feedback": 0}
    for shard in range(SHARDS):
        files += len(shard_files(folder, shard))
        commit, streams = _shard_accounts(client, folder, shard)
        counts += commit.totals
        for kind, (here, gone) in streams.items():
            before = lost[kind]
            waiting[kind] += here
            lost[kind] = None if gone is None or before is None else before + gone
    return Collected(counts, files, waiting["served"], waiting["feedback"], lost["served"], lost["feedback"])


def _shard_accounts(client: redis.Redis, folder: Path, shard: int) -> tuple[Commit, dict[str, tuple[int, int | None]]]:
    """A shard's last file, and by kind of stream how many entries wait and how many are lost."""
    while True:
        commit = last_commit(folder, shard, 0.0)
        streams: dict[str, tuple[int, int | None]] = {}
        for kind, taken, position, settled in (
            ("served", commit.entries, commit.served_to, frozenset()),
            ("feedback", commit.feedback_entries, commit.feedback_to, commit.beyond),
        ):
            added, held = appended_and_held(client, kind, shard)
            early = list(ids_up_to(client, shard_key(kind, shard), max(settled, default=position)))
            here = held - sum(i <= position or i in settled for i in early)
            forgotten = int(cast(bytes, client.get(forgotten_key(kind, shard))) or 0)
            streams[kind] = here, None if added is None else added - taken - here - forgotten
        if last_commit(folder, shard, 0.0).sequence == commit.sequence:
            return commit, streams  # else a collector took entries meanwhile, which would look lost


def forgotten_key(kind: str, shard: int) -> str:
    """How many entries of a stream were erased on a user's wish before they were collected."""
    return f"degre:forgotten:{kind}:{shard}"


def _expire(folder: Path, client: redis.Redis, settings: CollectConfig) -> None:
    """Delete days past their retention; the last file of a shard stays, it holds the position."""
    if settings.retention_days is None:
        return
    seconds, _ = cast(tuple[int, int], client.time())
    oldest = f"day={datetime.fromtimestamp(seconds, UTC) - timedelta(days=settings.retention_days):%Y-%m-%d}"
    for shard in range(SHARDS):
        # From the front only: a gap would be taken for a lost file.
        for file in takewhile(lambda f: f.parent.name < oldest, shard_files(folder, shard)[:-1]):
            rejected_file(folder, shard, int(file.stem.rpartition("-")[2])).unlink(missing_ok=True)
            file.unlink()
    for day in folder.glob("day=*"):
        if not any(day.iterdir()):
            day.rmdir()


def _settle(
    client: redis.Redis, folder: Path, shard: int, schema: DataSchema, settings: CollectConfig, flush: bool
) -> Iterator[int]:
    """Write the files of a shard; yields the lists of each."""
    state = last_commit(folder, shard, settings.window_seconds)
    now_ms = _now_ms(client)
    cut_ms = now_ms - int((settings.window_seconds + settings.grace_seconds) * 1000)
    if flush:
        cut_ms = max(now_ms, last_ms(client, shard))
    # Read after the cut was set, so that whatever came before it is here.
    feedback = [e for e in feedback_entries(client, shard, state.feedback_to) if e.id not in state.beyond]
    known = known_events(folder, shard, now_ms - int(settings.remember_seconds * 1000))
    while True:
        closed = _closed(client, shard, state.served_to, cut_ms)
        found = _join_all(closed, feedback, known, schema, settings.window_seconds)
        served_to = closed[-1].id if closed else state.served_to
        left = [e for e in feedback if e.id not in found.settled]
        found.take(_without_lists(client, shard, served_to, left, known, cut_ms))
        if not closed and not found.settled:
            return
        feedback_to, beyond = _position(state, feedback, found.settled)
        table, unfit = log_table([row for row, _, _ in found.rows], schema)
        for index, problem in unfit.items():
            found.reject(index, problem)
        state = replace(
            state,
            sequence=state.sequence + 1,
            served_to=served_to,
            feedback_to=feedback_to,
            beyond=beyond,
            entries=state.entries + len(closed),
            feedback_entries=state.feedback_entries + len(found.settled),
            window_s=settings.window_seconds,
            counts=found.counts,
            totals=state.totals + found.counts,
        )
        day_ms = (closed[0].id if closed else min(found.settled))[0]
        write_commit(folder, table, state, day_ms, found.rejected)
        feedback = [e for e in feedback if e.id not in found.settled]
        written = (row for index, (row, _, _) in enumerate(found.rows) if index not in unfit)
        known |= {row.row["request_id"]: frozenset(row.event_ids) for row in written}
        yield table.num_rows


def _now_ms(client: redis.Redis) -> int:
    seconds, micros = cast(tuple[int, int], client.time())
    return seconds * 1000 + micros // 1000


def _closed(client: redis.Redis, shard: int, after: StreamId, cut_ms: int) -> list[Entry]:
    """The first entries that are settled, all of one UTC day of arrival, at most ROWS_A_FILE."""
    served = list(islice(served_entries(client, shard, after, up_to_ms=cut_ms), ROWS_A_FILE))
    return [e for e in served if e.id[0] // _DAY_MS == served[0].id[0] // _DAY_MS]


@dataclass(slots=True)
class _Found:
    """What one file settles: rows with their list and deliveries, feedback entries, counts, and what can't be used."""

    rows: list[tuple[Joined, Entry, Sequence[Entry]]]
    settled: set[StreamId]
    counts: Counts
    rejected: list[tuple[str, Entry]]

    def take(self, other: _Found) -> None:
        """Add what another one settles."""
        self.settled |= other.settled
        self.counts += other.counts
        self.rejected += other.rejected

    def reject(self, index: int, problem: str) -> None:
        """A row cannot be written: as if nobody had served the list."""
        row, entry, own = self.rows[index]
        self.rejected.append(("served", replace(entry, problem=problem)))
        self.counts = self.counts - row.counts + Counts(rejected=1, orphaned=sum(units(d.record) for d in own))


def _join_all(
    closed: Sequence[Entry], feedback: Sequence[Entry], known: Known, schema: DataSchema, window_s: float
) -> _Found:
    """Rows of the closed lists, the feedback entries they used, and the counts of both."""
    deliveries: dict[str, list[Entry]] = defaultdict(list)
    for entry in feedback:
        if entry.problem is None:
            deliveries[entry.record["request_id"]].append(entry)
    objectives = [o.name for o in schema.objectives]
    found = _Found([], set(), Counts(), [])
    here: set[str] = set()
    for entry in closed:
        if entry.problem is not None:
            found.rejected.append(("served", entry))
            found.counts += Counts(rejected=1)
            continue
        request_id = entry.record["request_id"]
        if request_id in here or request_id in known:  # appended again after a reply was lost
            found.counts += Counts(served_duplicated=1)
            continue
        here.add(request_id)
        own = deliveries.get(request_id, [])
        row = join(entry, own, objectives, window_s)
        found.rows.append((row, entry, own))
        found.settled.update(e.id for e in own)
        found.counts += row.counts
    return found


def _without_lists(
    client: redis.Redis, shard: int, served_to: StreamId, feedback: Sequence[Entry], known: Known, cut_ms: int
) -> _Found:
    """The fate of feedback whose list is not among those being closed: it is on disk, or nobody served it."""
    found = _Found([], set(), Counts(), [])
    strangers: list[Entry] = []
    for entry in feedback:
        if entry.problem is not None:
            found.rejected.append(("feedback", entry))
            found.counts += Counts(rejected=1)
            found.settled.add(entry.id)
        elif entry.record["request_id"] in known:
            found.counts += without_list(entry.record, known[entry.record["request_id"]])
            found.settled.add(entry.id)
        elif entry.id[0] <= cut_ms:
            strangers.append(entry)
    if strangers:  # rare; all that waits is read to know it
        later = {e.record.get("request_id") for e in served_entries(client, shard, served_to)}
        for entry in strangers:
            if entry.record["request_id"] not in later:
                found.counts += without_list(entry.record, None)
                found.settled.add(entry.id)
    return found


def _position(state: Commit, feedback: Sequence[Entry], settled: set[StreamId]) -> tuple[StreamId, frozenset[StreamId]]:
    """Up to where all feedback is settled, and which later entries are as well."""
    done = state.beyond | settled
    open_ids = [e.id for e in feedback if e.id not in settled]
    last = max([state.feedback_to, *done])
    up_to = max((i for i in (*done, state.feedback_to) if not open_ids or i < open_ids[0]), default=state.feedback_to)
    return (up_to, frozenset(i for i in done if i > up_to)) if open_ids else (last, frozenset())
