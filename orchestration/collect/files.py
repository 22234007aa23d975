"""The collected log on disk: `day=YYYY-MM-DD/shard-S-NNNNNNNN.parquet`, each file one commit.

A file carries, in its metadata, the positions in both streams up to which everything is on disk, so that rows and position
appear in one rename. Files of a shard are numbered without gaps; the last one is the state. `day` is the UTC day of arrival.
What could not be used lies in `rejected/shard-S-NNNNNNNN.jsonl`, written before the file of that number, with the reason.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from degre_prod.artefact import written_aside
from degre_prod.errors import DataError, MismatchError
from orchestration.collect.join import Counts
from orchestration.collect.streams import ORIGIN, Entry, StreamId, id_text

COMMIT = b"degre.commit"
REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Commit:
    """What one file settles. `beyond`: feedback entries later than `feedback_to` that are settled all the same.

    `entries`, `feedback_entries`: taken from the streams so far, repeats included; `counts`: of this file alone; `totals`:
    of every file so far, those past their retention as well.
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
    totals: Counts

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
            "totals": Counts(**raw["totals"]),
        }
    )


def first_commit(shard: int, window_s: float) -> Commit:
    """Where a shard begins: nothing taken yet."""
    return Commit(shard, 0, ORIGIN, ORIGIN, frozenset(), 0, 0, window_s, Counts(), Counts())


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
    try:
        metadata = pq.read_metadata(file).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"not a whole parquet file: {error}", file=str(file)) from None
    if COMMIT not in metadata:
        raise DataError("not a collected file: it carries no commit", file=str(file))
    return parse_commit(metadata[COMMIT])


def last_commit(folder: Path, shard: int, window_s: float) -> Commit:
    """The state of a shard."""
    files = shard_files(folder, shard)
    return read_commit(files[-1]) if files else first_commit(shard, window_s)


def write_commit(
    folder: Path, table: pa.Table, commit: Commit, day_ms: int, rejected: Sequence[tuple[str, Entry]]
) -> Path:
    """Write rows and position as one file, durably; raises MismatchError when this sequence number is there already.

    `rejected`: what could not be used, each with `served` or `feedback`; its file is written first.
    """
    if rejected:
        _write_rejected(rejected_file(folder, commit.shard, commit.sequence), rejected)
    table = table.replace_schema_metadata({COMMIT: commit.to_json()})
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
        sync(day)
        sync(folder)  # the day may be new
    finally:
        aside.unlink(missing_ok=True)
    return final


def rejected_file(folder: Path, shard: int, sequence: int) -> Path:
    """Where the commit of this number put what it could not use, if anything."""
    return folder / REJECTED / f"shard-{shard}-{sequence:08d}.jsonl"


def _write_rejected(file: Path, rejected: Sequence[tuple[str, Entry]]) -> None:
    """A killed attempt may have left a file of this name: it is replaced by one of what is rejected now."""
    file.parent.mkdir(exist_ok=True)
    lines = [{"kind": kind, "entry": id_text(e.id), "reason": e.problem, "text": e.text} for kind, e in rejected]
    replace_durably(file, lambda aside: aside.write_text("".join(json.dumps(line) + "\n" for line in lines)))


def replace_durably(file: Path, write: Callable[[Path], object]) -> None:
    """`write` aside, then put it in the place of `file`; after a power failure it is the old one or the new one, whole."""
    with written_aside(file) as aside:
        write(aside)
        sync(aside)
    sync(file.parent)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; raises MismatchError while another process does. The lock dies with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise MismatchError(f"another process collects into {folder}; wait for it or stop it") from None
        for half_written in (*folder.glob("day=*/.shard-*"), *folder.glob(f"{REJECTED}/.shard-*")):
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


def sync(path: Path) -> None:
    """Wait until a file, or a folder's entries, are on the disk itself."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
