"""A Ray cluster of several nodes on this machine, with its job server, started as an operator starts one.

No node of it can be killed in earnest: on one address, a driver may belong to any of them. deploy/docker/cluster-drill.sh does that.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from serving.ports import free_port

PATIENCE_S = 240.0
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Nodes:
    """`address` is the cluster's, `jobs` its job server's; `environment` lets a process use both."""

    address: str
    jobs: str
    environment: dict[str, str]
    processes: list[subprocess.Popen[bytes]]


@contextmanager
def ray_nodes(*cpus: int) -> Iterator[Nodes]:
    """A head with the first number of logical CPUs, and further nodes; nobody without the token may use it."""
    folder = Path(tempfile.mkdtemp(prefix="degre-ray-", dir="/tmp"))  # Ray's socket paths must be short
    gcs, dashboard, token = free_port(), free_port(), secrets.token_hex(32)
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{BIN}:{os.environ['PATH']}",
    }
    nodes = Nodes(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", environment, [])
    head = ["--head", f"--port={gcs}", f"--dashboard-port={dashboard}"]
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        log = stack.enter_context((folder / "start.log").open("wb"))
        stack.callback(_stop, nodes.processes)
        for i, count in enumerate(cpus):
            place = [f"--address={nodes.address}"] if i else head
            small = [f"--num-cpus={count}", "--object-store-memory=80000000", "--node-ip-address=127.0.0.1"]
            own = f"--temp-dir={folder / str(i)}"  # nodes that share it remove each other's working directories
            ports = [f"--dashboard-agent-listen-port={free_port()}", f"--dashboard-agent-grpc-port={free_port()}"]
            command = [str(BIN / "ray"), "start", "--block", "--disable-usage-stats", *place, *small, *ports, own]
            nodes.processes.append(
                subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
            )
            _await_nodes(nodes, token, i + 1, folder / "start.log")
        yield nodes


def _await_nodes(nodes: Nodes, token: str, count: int, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and nodes.processes[-1].poll() is None:
        try:
            url, headers = f"{nodes.jobs}/nodes?view=summary", {"Authorization": f"Bearer {token}"}
            answer = httpx.get(url, headers=headers, timeout=5)
            alive = [node["raylet"]["state"] for node in answer.json()["data"]["summary"]].count("ALIVE")
            if alive == count:
                return
        except (httpx.HTTPError, ValueError, KeyError):
            pass
        time.sleep(0.1)
    raise AssertionError(f"{count} nodes are not there:\n{log.read_text()}")


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in reversed(processes):
        process.terminate()  # `ray start --block` ends what it started
    for process in reversed(processes):
        process.wait(60)
