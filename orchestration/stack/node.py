"""A Ray node of the stack: the environment and the command line of `ray start`, from the configuration."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from degre_prod.config import Settings
from degre_prod.errors import ConfigurationError, ServiceError
from serving.deploy import NICENESS
from serving.haproxy import DRAIN_S, METRICS_PORT, STATS_PORT, haproxy_variables
from serving.tracing import ray_serve_variables

Role = Literal["head", "worker"]

GCS_PORT, DASHBOARD_PORT, RAY_METRICS_PORT = 6379, 8265, 8080
# A head that was killed is back within a minute; until then workers keep what they run instead of ending with it.
_PATIENCE_S = 120
_CLUSTER = "degre-stack-"
_RAY_FOLDER = Path("/tmp/ray")


def node_environment(settings: Settings, folder: Path) -> dict[str, str]:
    """Variables of a node: HAProxy's (its files go to `folder`), and Ray Serve's tracing where it is configured."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    haproxy = haproxy_variables(folder, metrics_port=METRICS_PORT, stats_port=STATS_PORT, drain_s=DRAIN_S)
    patience = {"RAY_gcs_rpc_server_reconnect_timeout_s": str(_PATIENCE_S)}
    return NICENESS | patience | haproxy | ray_serve_variables(settings.serving)


def state_variables(redis_url: str, cluster: str) -> dict[str, str]:
    """Let a head keep the cluster's state in Redis, so that workers outlive it. `cluster`: another one begins anew."""
    parts = urlsplit(redis_url)
    if parts.scheme != "redis" or parts.hostname is None:
        raise ConfigurationError(
            f"redis.url: Ray keeps its state at redis://[:password@]host[:port], not at {parts.scheme}://…; "
            "without --state-in-redis it needs none"
        )
    return {
        "RAY_REDIS_ADDRESS": f"{parts.hostname}:{parts.port or 6379}",
        "RAY_external_storage_namespace": cluster,
    }


def forget_clusters(redis_url: str, cluster: str) -> int:
    """Delete what heads of the stack before this one left in Redis; returns how many keys. Raises ServiceError without Redis."""
    import redis

    try:
        with redis.Redis.from_url(redis_url, socket_timeout=10.0) as client:
            ours = client.scan_iter(match=f"RAY{_CLUSTER}*", count=1000)
            gone = [key for key in ours if not key.startswith(f"RAY{cluster}".encode())]
            return int(client.unlink(*gone)) if gone else 0
    except redis.RedisError as error:
        raise ServiceError(f"Redis does not answer: {type(error).__name__}: {error}") from error


def ray_start(role: Role, head: str, *, cpus: int, store_mb: int, redis_password: str | None = None) -> list[str]:
    """`ray start` in the foreground. `head`: its address for workers; `redis_password`: of the Redis with the state."""
    sizes = [f"--num-cpus={cpus}", f"--object-store-memory={store_mb * 1024 * 1024}"]
    command = ["ray", "start", "--block", "--disable-usage-stats", f"--metrics-export-port={RAY_METRICS_PORT}", *sizes]
    if role == "worker":
        return [*command, f"--address={head}:{GCS_PORT}"]
    password = [] if redis_password is None else [f"--redis-password={redis_password}"]
    place = ["--head", f"--port={GCS_PORT}", "--dashboard-host=0.0.0.0", f"--dashboard-port={DASHBOARD_PORT}"]
    return [*command, *place, *password]


def become_node(
    role: Role, settings: Settings, folder: Path, head: str, *, cpus: int, store_mb: int, state_in_redis: bool
) -> None:
    """Turn this process into the node; raises ConfigurationError, and OSError when there is no `ray`."""
    if not (os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")):
        raise ConfigurationError("RAY_AUTH_TOKEN: whoever may submit work owns the cluster; every node needs the token")
    state: dict[str, str] = {}
    password = None
    if state_in_redis and role == "head":
        if settings.redis.url is None:
            raise ConfigurationError("redis.url: --state-in-redis needs one, DEGRE_REDIS__URL=redis://…")
        url = settings.redis.url.get_secret_value()
        cluster = (
            f"{_CLUSTER}{os.uname().nodename}"  # a restarted container has its name still, a new one is a new cluster
        )
        state = state_variables(url, cluster)
        forget_clusters(url, cluster)
        password = urlsplit(url).password
    import psutil  # type: ignore[import-untyped]  # comes with Feast

    if any(process.info["name"] == "raylet" for process in psutil.process_iter(["name"])):
        raise ConfigurationError(f"a Ray node runs here already; {_RAY_FOLDER} is its own")
    for left in (folder, _RAY_FOLDER):  # sockets of the node that was killed here
        shutil.rmtree(left, ignore_errors=True)
    variables = node_environment(settings, folder) | state
    command = ray_start(role, head, cpus=cpus, store_mb=store_mb, redis_password=password)
    os.execvpe(command[0], command, os.environ | variables)
