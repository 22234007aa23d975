"""One tar file with a run folder and all of Redis, and back. For the stack, and for any Redis that a URL reaches.

    run/…            the run folder: data, collected log, bundles, nights, registries
    redis.jsonl      one line a key: name, milliseconds to live, Redis's own DUMP of the value, in base64
    backup.json      last: format, when, and sha256 of everything before it

The folder comes before Redis: what the streams hold beyond the folder's positions is collected again after a restore, and
nothing is missing. SQLite files are copied by SQLite. A night must not be under way.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from degre_prod import __version__
from degre_prod.artefact import replace_folder
from degre_prod.errors import DataError
from orchestration.retrain.lock import alone
from orchestration.retrain.state import State

if TYPE_CHECKING:
    import redis

FORMAT = 1
RUN, REDIS, MANIFEST = "run/", "redis.jsonl", "backup.json"
_PAGE = 500
_LEFT_OUT = frozenset({"lock", "lost+found"})
# Of Redis: what is worth nothing a moment later, and Ray's own state, which belongs to one cluster.
_PASSING = (b"degre:replica:", b"degre:replicas", b"degre:rollout:lease", b"RAY")


def back_up(run: Path, client: redis.Redis, out: IO[bytes]) -> dict[str, Any]:
    """Write a backup to `out`, which need not be seekable; returns its manifest.

    Raises MismatchError while a night is under way, OSError, redis errors.
    """
    digests: dict[str, str] = {}
    with (
        tarfile.open(fileobj=out, mode="w|") as tar,
        tempfile.TemporaryDirectory() as scratch,
        alone(State(run / "retrain").lock),
    ):
        for file in run_files(run):
            source = file
            if file.suffix == ".db":
                source = _sqlite_copy(file, Path(scratch) / "copy.db")
            name = RUN + file.relative_to(run).as_posix()
            with source.open("rb") as stream:
                digests[name] = _add(tar, name, stream, source.stat().st_size)
        dumped, keys = Path(scratch) / REDIS, 0
        with dumped.open("wb") as stream:
            for line in dump_redis(client):
                stream.write(line)
                keys += 1
        with dumped.open("rb") as stream:
            digests[REDIS] = _add(tar, REDIS, stream, dumped.stat().st_size)
        made = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = {"format": FORMAT, "version": __version__, "made": made, "keys": keys, "files": digests}
        text = json.dumps(manifest).encode()
        _add(tar, MANIFEST, io.BytesIO(text), len(text))
    return manifest


def restore(run: Path, client: redis.Redis, source: IO[bytes], *, replace: bool = False) -> dict[str, Any]:
    """Put a backup in the place of what is there; returns its manifest. Nothing is touched before all of it is read and whole.

    Without `replace` there must be nothing: no file in the run folder, no key of ours in Redis. Raises DataError.
    """
    run.mkdir(parents=True, exist_ok=True)
    there = any(f for f in run.iterdir() if f.name not in _LEFT_OUT and not f.name.startswith("."))
    kept = any(True for _ in our_keys(client))
    if (there or kept) and not replace:
        what = " and ".join(["files in the run folder"] * there + ["keys in Redis"] * kept)
        raise DataError(f"there are {what}; --replace puts the backup in their place", file=str(run))
    aside = run / ".restoring"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        manifest = _unpack(aside, source)
        keys = aside / REDIS
        _clear(run, client)
        with keys.open("rb") as stream:
            load_redis(client, stream)
        for entry in sorted((aside / RUN).iterdir()) if (aside / RUN).is_dir() else []:
            if entry.is_dir():
                replace_folder(entry, run / entry.name)
            else:
                entry.replace(run / entry.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return manifest


def run_files(run: Path) -> Iterator[Path]:
    """Files of a run folder without what is half written. Newer folders come before older ones: of files that are numbered without
    gaps over the days, as the collector's, none is then missing before one that is there."""
    for entry in sorted(run.iterdir(), reverse=True):
        if entry.name.startswith(".") or entry.name in _LEFT_OUT or entry.is_symlink():
            continue
        if entry.is_dir():
            yield from run_files(entry)
        elif entry.is_file():
            yield entry


def our_keys(client: redis.Redis) -> Iterator[bytes]:
    """Keys worth keeping."""
    found = cast(Iterator[bytes], client.scan_iter(count=_PAGE))
    return (key for key in found if not key.startswith(_PASSING))


def dump_redis(client: redis.Redis) -> Iterator[bytes]:
    """Every key worth keeping, a line each."""
    page: list[bytes] = []
    for key in our_keys(client):
        page.append(key)
        if len(page) == _PAGE:
            yield from _dump(client, page)
            page = []
    yield from _dump(client, page)


def load_redis(client: redis.Redis, lines: IO[bytes]) -> int:
    """Write dumped keys; returns how many. Raises DataError where Redis is older than the one they come from."""
    from redis import ResponseError

    pipeline, count = client.pipeline(transaction=False), 0
    try:
        for count, line in enumerate(lines, start=1):
            key, ttl_ms, value = json.loads(line)
            pipeline.restore(base64.b64decode(key), max(ttl_ms, 0), base64.b64decode(value), replace=True)
            if count % _PAGE == 0:
                pipeline.execute()
        pipeline.execute()
    except ResponseError as error:
        raise DataError(
            f"Redis does not take the backup's values, is it older than the one backed up? {error}"
        ) from None
    return count


def _dump(client: redis.Redis, keys: list[bytes]) -> Iterator[bytes]:
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.pttl(key)
        pipeline.dump(key)
    replies = pipeline.execute()
    for key, ttl_ms, value in zip(keys, replies[::2], replies[1::2], strict=True):
        if value is not None:  # it may have expired meanwhile
            text = [base64.b64encode(key).decode(), ttl_ms, base64.b64encode(value).decode()]
            yield json.dumps(text).encode() + b"\n"


def _clear(run: Path, client: redis.Redis) -> None:
    page: list[bytes] = list(our_keys(client))
    for start in range(0, len(page), _PAGE):
        client.unlink(*page[start : start + _PAGE])
    for entry in run.iterdir():
        if entry.name == ".restoring" or entry.name in _LEFT_OUT:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _add(tar: tarfile.TarFile, name: str, stream: IO[bytes], size: int) -> str:
    """Add `size` bytes as a member; their sha256."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    hashing = _Hashing(stream)
    tar.addfile(member, cast(IO[bytes], hashing))
    return hashing.sha256.hexdigest()


class _Hashing:
    """A stream that hashes what is read of it."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.sha256 = stream, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """As the stream's."""
        data = self._stream.read(size)
        self.sha256.update(data)
        return data


def _sqlite_copy(file: Path, copy: Path) -> Path:
    """A consistent copy of a database that may be in use."""
    copy.unlink(missing_ok=True)
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as theirs, closing(sqlite3.connect(copy)) as ours:
        theirs.backup(ours)
    return copy


def _unpack(aside: Path, source: IO[bytes]) -> dict[str, Any]:
    """Write every member into `aside` and check it against the manifest, which comes last. Raises DataError."""
    digests: dict[str, str] = {}
    manifest: dict[str, Any] | None = None
    try:
        with tarfile.open(fileobj=source, mode="r|") as tar:
            for member in tar:
                stream = tar.extractfile(member) if member.isreg() else None
                if stream is None or Path(member.name).is_absolute() or ".." in Path(member.name).parts:
                    raise DataError(f"{member.name!r} is no file of a backup")
                if member.name == MANIFEST:
                    manifest = json.loads(stream.read())
                    continue
                target, hashing = aside / member.name, _Hashing(stream)
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    shutil.copyfileobj(cast(IO[bytes], hashing), file)
                digests[member.name] = hashing.sha256.hexdigest()
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise DataError(f"not a whole backup: {error}") from None
    if manifest is None:
        raise DataError(f"not a whole backup: it does not end with {MANIFEST}")
    if manifest.get("format") != FORMAT:
        raise DataError(f"a backup of format {manifest.get('format')}; this version reads format {FORMAT}")
    if changed := [n for n in {*digests, *manifest["files"]} if digests.get(n) != manifest["files"].get(n)]:
        raise DataError(f"not what was backed up: {', '.join(sorted(changed)[:5])}")
    return manifest
