"""What breaks in `degre bench faults`: each a context manager, broken inside its block and mended after it."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from orchestration.bench.bed import Bed, replica_pids, until
from orchestration.bench.delay import Delay
from orchestration.bench.swaps import renamed
from orchestration.redis_server import redis_binary
from serving.plan import PlanArm
from serving.plan_store import publish_plan, read_plan

_CHILD = '"$@" & server=$!; cat > /dev/null; kill -TERM $server; wait $server'  # ends with the pipe on standard input


@contextmanager
def redis_killed(made: Bed) -> Iterator[None]:
    """SIGKILL; a new server on the same port reads the append-only file afterwards and is the bed's from then on."""
    with redis.Redis.from_url(made.redis_url) as client:
        about = client.info("server")
    os.kill(about["process_id"], signal.SIGKILL)
    yield
    command = ["/bin/sh", "-c", _CHILD, "redis", str(redis_binary()), about["config_file"]]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    made.children.append(child)
    until(lambda: _pings(made.redis_url), "Redis did not come back")


@contextmanager
def redis_frozen(made: Bed) -> Iterator[None]:
    """SIGSTOP: connections stay open and nothing comes back."""
    with redis.Redis.from_url(made.redis_url) as client:
        pid = client.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def redis_slow(delay: Delay, seconds: float = 0.2) -> Iterator[None]:
    """Every reply comes late, later than any timeout of the service."""
    delay.seconds = seconds
    try:
        yield
    finally:
        delay.seconds = 0.0


@contextmanager
def features_empty(made: Bed) -> Iterator[None]:
    """Nothing at all is in Redis; afterwards everything is as before."""
    with redis.Redis.from_url(made.redis_url) as client:
        kept = {key: client.dump(key) for key in client.scan_iter(count=1000) if not key.startswith(b"degre:")}
        plain = {key: client.get(key) for key in (b"degre:feature_epoch", b"degre:plan")}
        client.flushdb()
        try:
            yield
        finally:
            with client.pipeline(transaction=False) as pipeline:
                for key, value in kept.items():
                    pipeline.restore(key, 0, value, replace=True)
                for key, value in plain.items():
                    if value is not None:
                        pipeline.set(key, value)
                pipeline.execute()


@contextmanager
def replica_killed() -> Iterator[None]:
    """SIGKILL to one replica; Ray Serve replaces it."""
    os.kill(replica_pids()[0], signal.SIGKILL)
    yield


@contextmanager
def model_hangs(flag: Path) -> Iterator[None]:
    """Calls of the model that begin now never end."""
    flag.touch()
    try:
        yield
    finally:
        flag.unlink()


@contextmanager
def corrupt_bundle_offered(made: Bed, name: str = "corrupt") -> Iterator[None]:
    """The plan names a bundle with one bit of its model changed; afterwards the good one again."""
    folder = renamed(made.second, made.folder / name)
    model = folder / "generator.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(data)
    publish(made, folder)
    try:
        yield
    finally:
        publish(made, made.first.path)


@contextmanager
def cpu_hog(processes: int) -> Iterator[None]:
    """As many programs that do nothing but compute, each in a session of its own, as if someone else had started it."""
    hogs = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) for _ in range(processes)
    ]
    try:
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def publish(made: Bed, folder: Path) -> str:
    """Let the plan name the bundle in a folder; returns the sha256 of its manifest."""
    sha256 = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    with redis.Redis.from_url(made.redis_url) as client:
        before = read_plan(client)
        arm = PlanArm(bundle_uri=str(folder), manifest_sha256=sha256)
        publish_plan(client, [arm], before.version if before else 0)
    return sha256


def _pings(url: str) -> bool:
    try:
        with redis.Redis.from_url(url, socket_timeout=1.0) as client:
            return bool(client.ping())
    except (redis.RedisError, OSError):
        return False
