"""The collected log on disk: `day=YYYY-MM-DD/shard-S-NNNNNNNN.parquet`, each file one commit.

A file carries, in its metadata, the positions in both streams up to which everything is on disk, so that rows and position
appear in one rename. Files of a shard are numbered without gaps; the last one is the state. `day` is the UTC day of arrival.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from degre_prod.errors import DataError, MismatchError
from degre_prod.records import impression_columns
from degre_prod.schema import DataSchema
from orchestration.collect.join import Counts, Joined
from orchestration.collect.streams import ORIGIN, StreamId

COMMIT = b"degre.commit"
ROWS_A_FILE = 50_000


@dataclass(frozen=True, slots=True)
class Commit:
    """What one file settles. `beyond`: feedback entries later than `feedback_to` that are settled all the same.

    `entries`: served entries taken from the stream so far, repeats included; `counts`: of this file alone.
    """

    shard: int
    sequence: int
    served_to: StreamId
    feedback_to: StreamId
    beyond: frozenset[StreamId]
    entries: int
    feedback_entries: int
    window_s: float
    counts: Counts

    def to_json(self) -> bytes:
        """Canonical JSON."""
        return json.dumps({**asdict(self), "beyond": sorted(self.beyond)}, sort_keys=True).encode()


def parse_commit(text: bytes) -> Commit:
    """What `to_json` wrote."""
    raw = json.loads(text)
    return Commit(
        **{
            **raw,
            "served_to": tuple(raw["served_to"]),
            "feedback_to": tuple(raw["feedback_to"]),
            "beyond": frozenset(tuple(b) for b in raw["beyond"]),
            "counts": Counts(**raw["counts"]),
        }
    )


def first_commit(shard: int, window_s: float) -> Commit:
    """Where a shard begins: nothing taken yet."""
    return Commit(shard, 0, ORIGIN, ORIGIN, frozenset(), 0, 0, window_s, Counts())


def shard_files(folder: Path, shard: int) -> list[Path]:
    """Files of a shard in the order of their commits; raises DataError where one is missing in between.

    Old files may be gone from the front (retention).
    """
    files = sorted(folder.glob(f"day=*/shard-{shard}-*.parquet"), key=_sequence)
    numbers = [_sequence(f) for f in files]
    if numbers and numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise DataError(f"files of shard {shard} are not numbered without gaps; was one deleted?", file=str(folder))
    return files


def collected_files(folder: Path) -> list[Path]:
    """Every committed file, by day, shard and sequence."""
    return sorted(folder.glob("day=*/shard-*.parquet"), key=lambda f: (f.parent.name, f.name))


def read_commit(file: Path) -> Commit:
    """The commit a file carries; raises DataError when it is not one of ours."""
    metadata = pq.read_metadata(file).metadata or {}
    if COMMIT not in metadata:
        raise DataError("not a collected file: it carries no commit", file=str(file))
    return parse_commit(metadata[COMMIT])


def last_commit(folder: Path, shard: int, window_s: float) -> Commit:
    """The state of a shard."""
    files = shard_files(folder, shard)
    return read_commit(files[-1]) if files else first_commit(shard, window_s)


def collected_schema(schema: DataSchema) -> pa.Schema:
    """The impression log's columns, and which event ids a row has used up."""
    fields = [pa.field(c.name, c.type) for c in impression_columns(schema)]
    return pa.schema([*fields, pa.field("event_ids", pa.list_(pa.string()))])


def write_commit(folder: Path, schema: DataSchema, rows: Sequence[Joined], commit: Commit, day_ms: int) -> Path:
    """Write rows and position as one file, durably; raises MismatchError when this sequence number is there already."""
    columns = collected_schema(schema)
    records = [
        {
            **{name: r.row.get(name) for name in columns.names},
            "created_timestamp": _moment(r.row["arrived_ms"]),
            "event_ids": list(r.event_ids),
        }
        for r in rows
    ]
    table = pa.Table.from_pylist(records, schema=columns).replace_schema_metadata({COMMIT: commit.to_json()})
    day = folder / f"day={_moment(day_ms):%Y-%m-%d}"
    day.mkdir(parents=True, exist_ok=True)
    final = day / f"shard-{commit.shard}-{commit.sequence:08d}.parquet"
    handle, name = tempfile.mkstemp(prefix=f".{final.name}.", dir=day)
    aside = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            pq.write_table(table, stream)
            stream.flush()
            os.fsync(stream.fileno())
        aside.chmod(0o644)
        try:
            os.link(aside, final)  # unlike a rename it never replaces
        except FileExistsError:
            raise MismatchError(f"{final} is there already: another collector writes to {folder}") from None
        _sync(day)
    finally:
        aside.unlink(missing_ok=True)
    return final


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; raises MismatchError while another process does. The lock dies with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MismatchError(f"another process collects into {folder}; wait for it or stop it") from None
        for half_written in folder.glob("day=*/.shard-*"):
            half_written.unlink()
        yield


def known_events(folder: Path, shard: int, since_ms: int) -> dict[str, frozenset[str]]:
    """Event ids by request of every list that was written on a day from `since_ms` on."""
    first = f"day={_moment(since_ms):%Y-%m-%d}"
    out: dict[str, frozenset[str]] = {}
    for file in shard_files(folder, shard):
        if file.parent.name >= first:
            table = pq.read_table(file, columns=["request_id", "event_ids"])
            ids, events = table["request_id"].to_pylist(), table["event_ids"].to_pylist()
            out.update(zip(ids, map(frozenset, events), strict=True))
    return out


def _sequence(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
