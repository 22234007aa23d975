"""Backup and restore of a run folder and a real Redis; what is damaged or in the way is refused before anything is touched."""

from __future__ import annotations

import io
import json
import sqlite3
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from degre_prod.errors import DataError, MismatchError
from orchestration.redis_server import running_redis
from orchestration.retrain.lock import alone
from orchestration.stack.backup import FORMAT, MANIFEST, REDIS, back_up, restore


@pytest.fixture
def client(clean_redis: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(clean_redis) as connected:
        yield connected


def fill(run: Path, client: redis.Redis) -> None:
    (run / "data" / "collected" / "day=2026-01-02").mkdir(parents=True)
    (run / "data" / "collected" / "day=2026-01-02" / "shard-0-00000001.parquet").write_bytes(b"rows")
    (run / "data" / ".half-written").write_bytes(b"x")
    (run / "bundle").mkdir()
    (run / "bundle" / "manifest.json").write_text("{}")
    with sqlite3.connect(run / "registry.db") as database:
        database.execute("create table t (a)")
        database.execute("insert into t values (42)")
    client.set("degre:plan", "the plan")
    client.set("degre:cached", "a list", px=60_000)
    client.hset(b"\x00\x01feast", mapping={b"f\xff": b"\x80value"})
    client.xadd("degre:feedback:0", {"record": "{}"}, id="5-1")
    client.set("degre:replica:x", "alive")
    client.set("RAYdegre-stack-a@NODE", "state")


def read(run: Path, client: redis.Redis) -> dict[str, object]:
    with sqlite3.connect(run / "registry.db") as database:
        rows = database.execute("select a from t").fetchall()
    return {
        "files": sorted(p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file() and p.name != "lock"),
        "rows": rows,
        "plan": client.get("degre:plan"),
        "cached": (client.get("degre:cached"), 0 < client.pttl("degre:cached") <= 60_000),
        "feast": client.hgetall(b"\x00\x01feast"),
        "stream": client.xrange("degre:feedback:0"),
    }


def backed_up(run: Path, client: redis.Redis) -> bytes:
    out = io.BytesIO()
    back_up(run, client, out)
    return out.getvalue()


def test_what_was_backed_up_comes_back_elsewhere(tmp_path: Path, client: redis.Redis) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    run.mkdir()
    fill(run, client)
    saved = backed_up(run, client)
    expected = read(run, client)
    with running_redis() as url, redis.Redis.from_url(url) as elsewhere:
        manifest = restore(other, elsewhere, io.BytesIO(saved))
        found = read(other, elsewhere)
        assert elsewhere.exists("degre:replica:x", "RAYdegre-stack-a@NODE") == 0
        with pytest.raises(redis.ResponseError, match="equal or smaller"):  # the stream goes on behind what it held
            elsewhere.xadd("degre:feedback:0", {"record": "{}"}, id="5-0")
    assert found == expected | {"files": [f for f in expected["files"] if f != "data/.half-written"]}  # type: ignore[union-attr]
    assert (manifest["format"], manifest["keys"]) == (FORMAT, 4)


def test_it_is_put_in_the_place_of_something_only_when_asked(tmp_path: Path, client: redis.Redis) -> None:
    fill(tmp_path, client)
    saved = backed_up(tmp_path, client)
    (tmp_path / "newer.txt").write_text("x")
    client.set("degre:plan", "a newer plan")
    client.set("degre:newer", "x")
    with pytest.raises(DataError, match="files in the run folder and keys in Redis; --replace"):
        restore(tmp_path, client, io.BytesIO(saved))
    assert (tmp_path / "newer.txt").exists()
    restore(tmp_path, client, io.BytesIO(saved), replace=True)
    assert client.get("degre:plan") == b"the plan"
    assert not client.exists("degre:newer")
    assert not (tmp_path / "newer.txt").exists()
    assert client.get("RAYdegre-stack-a@NODE") == b"state"  # of a cluster that runs


@pytest.mark.parametrize("damage", ["cut", "changed", "format", "outside", "unlisted"])
def test_a_damaged_backup_touches_nothing(damage: str, tmp_path: Path, client: redis.Redis) -> None:
    run = tmp_path / "run"
    run.mkdir()
    fill(run, client)
    saved = damaged(backed_up(run, client), damage)
    before = read(run, client)
    with pytest.raises(DataError):
        restore(run, client, io.BytesIO(saved), replace=True)
    assert read(run, client) == before
    assert not (run / ".restoring").exists()
    assert not (tmp_path / "outside").exists()


def damaged(saved: bytes, how: str) -> bytes:
    if how == "cut":
        return saved[: len(saved) // 2]
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(saved)) as source, tarfile.open(fileobj=out, mode="w") as target:
        for member in source:
            data = source.extractfile(member).read()  # type: ignore[union-attr]
            if how == "changed" and member.name == REDIS:
                data = data.replace(data.splitlines()[0][:20], b"[" + b"x" * 19, 1)
            if member.name == MANIFEST and how == "format":
                data = json.dumps(json.loads(data) | {"format": FORMAT + 1}).encode()
            if how == "outside" and member.name.startswith("run/bundle"):
                member.name = "../outside"
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))
        if how == "unlisted":
            more = tarfile.TarInfo("run/more")
            more.size = 1
            target.addfile(more, io.BytesIO(b"x"))
    return out.getvalue()


def test_a_night_under_way_is_not_backed_up(tmp_path: Path, client: redis.Redis) -> None:
    (tmp_path / "retrain").mkdir()
    with alone(tmp_path / "retrain" / "lock"), pytest.raises(MismatchError, match="is being retrained"):
        backed_up(tmp_path, client)
