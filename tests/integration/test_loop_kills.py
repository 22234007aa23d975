"""`degre bench loop-kills`: whatever dies, the training rows are those of a run in which nothing died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from orchestration.bench.collector_kills import rows_digest
from orchestration.bench.loop_kills import SHARES, bench_loop_kills, shares
from orchestration.redis_server import running_redis


def test_collector_redis_and_pipeline_killed_end_with_the_same_rows(tmp_path: Path) -> None:
    found = bench_loop_kills(tmp_path, {"collector": 3, "redis": 1, "pipeline": 1}, lists=120)
    assert (found["kills"], found["same"], found["resumed"]) == (5, True, True)
    assert found["collector"]["served"] == 120
    assert min(found["collector"][fate] for fate in ("joined", "late", "orphaned", "duplicated")) > 0
    assert found["redis"]["rows_sha256"] == found["collector"]["rows_sha256"]
    assert found["redis"]["feedback_refused"] == 1
    assert found["pipeline"]["rows_sha256"]


def test_every_part_gets_kills() -> None:
    assert sum(shares(50).values()) == 50
    assert set(shares(5)) == set(SHARES)
    assert min(shares(50).values()) >= 5
    assert shares(1) == dict.fromkeys(SHARES, 0) | {"collector": 1}


DIES = """
import sys
from pathlib import Path
from orchestration.bench.dying import kill_at
count = kill_at(int(sys.argv[1]))
folder = Path(sys.argv[2])
for name in ("a", "b", "c"):
    (folder / name).mkdir()
print(count())
"""


@pytest.mark.parametrize(("call", "left"), [(1, []), (2, ["a"]), (3, ["a", "b"]), (99, ["a", "b", "c"])])
def test_it_dies_before_the_call_it_is_told(tmp_path: Path, call: int, left: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", DIES, str(call), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == (0 if call == 99 else -signal.SIGKILL)
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    if call == 99:
        assert done.stdout.strip() == "3"


def test_a_lost_row_is_noticed(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def digest(*ids: str) -> str:
        day = tmp_path / "-".join(ids) / "collected" / "day=2026-01-01"
        day.mkdir(parents=True)
        table = pa.table({"request_id": list(ids), "created_timestamp": [len(ids)] * len(ids)})
        pq.write_table(table, day / "shard-0-00000001.parquet")
        return rows_digest(day.parents[1])

    assert digest("r1", "r2") == digest("r2", "r1")
    assert digest("r3") != digest("r3", "r4")


def test_a_killed_redis_comes_back_where_it_was_with_what_it_had(tmp_path: Path) -> None:
    once = Retry(NoBackoff(), 0)
    with running_redis(data_dir=tmp_path) as url, redis.Redis.from_url(url, retry=once) as client:
        client.xadd("stream", {"record": "1"})
        os.kill(client.info("server")["process_id"], signal.SIGKILL)
        with running_redis(data_dir=tmp_path, again=url) as same:
            assert same == url
            assert client.xlen("stream") == 1
