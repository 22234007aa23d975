"""The live service that faults, swaps and the soak run against: real Redis, features, bundles, Ray Serve; loopback only."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from degre_prod.bundle import Bundle
from degre_prod.config import Settings
from degre_prod.errors import ServiceError
from orchestration.bench.world import Catalogue, catalogue, random_bundle, requests, write_dataset
from serving.protocol import Candidate, RerankRequest
from serving.replica import BuildEngine, build_engine

CANDIDATES, LENGTH = 100, 10
USERS, ITEMS = 2_000, 5_000
STOP_SECONDS = 10.0
REQUESTS = 3_000  # more than the load sends within the cache's time to live


@dataclass(frozen=True)
class Bed:
    """Two bundles of one data set, whose features are in Redis, and requests to send."""

    folder: Path
    redis_url: str
    world: Catalogue
    first: Bundle
    second: Bundle
    requests: list[RerankRequest]
    children: list[subprocess.Popen[bytes]]  # end with the bed, when their standard input is closed


@contextmanager
def bed(
    *, candidates: int = CANDIDATES, length: int = LENGTH, users: int = USERS, items: int = ITEMS, count: int = REQUESTS
) -> Iterator[Bed]:
    """A private Redis with the features of a made-up data set, two untrained bundles; all gone after the block."""
    from orchestration.features.materialize import materialize
    from orchestration.redis_server import running_redis

    world = catalogue(candidates=candidates, length=length, users=users, items=items)
    with tempfile.TemporaryDirectory(prefix="degre-bench-") as name:
        folder = Path(name)
        with running_redis(data_dir=folder / "redis") as url:
            materialize(write_dataset(world, folder / "data"), folder / "registry.db", url, progress=False)
            made = Bed(
                folder,
                url,
                world,
                random_bundle(world, folder / "first", candidates),
                random_bundle(world, folder / "second", candidates, seed=1),
                [_body(r) for r in requests(world, count, candidates)],
                [],
            )
            try:
                yield made
            finally:
                for child in made.children:
                    child.communicate(timeout=STOP_SECONDS)


@contextmanager
def service(
    made: Bed, *, build: BuildEngine = build_engine, redis_url: str | None = None, **serving: Any
) -> Iterator[str]:
    """Serve the first bundle; yields the base URL. `serving` are settings of that section."""
    from serving.deploy import running_service

    settings = Settings.model_validate({"serving": {"port": 0, "host": "127.0.0.1"} | serving})
    with running_service(made.first.path, settings, redis_url or made.redis_url, build=build) as url:
        until(lambda: len(replica_urls()) == settings.serving.replicas, "a replica is missing behind HAProxy")
        yield url


def replica_urls() -> list[str]:
    """Base URLs of the replicas, as HAProxy knows them; those that do not answer left out."""
    folder = Path(os.environ["RAY_SERVE_HAPROXY_CONFIG_FILE_LOC"]).parent
    text = "\n".join(file.read_text() for file in folder.glob("*/haproxy.cfg"))
    servers = re.findall(r"^\s*server \S+ (\S+:\d+) check(?!.*backup)", text, re.MULTILINE)
    return [url for url in dict.fromkeys(f"http://{server}" for server in servers) if _answers(url)]


def readyz(url: str) -> dict[str, Any]:
    """What a replica says of itself."""
    document: dict[str, Any] = _http().get(f"{url}/readyz").json()
    return document


def counted(name: str, label: str) -> Counter[str]:
    """A counter of all replicas added up, by the value of its label."""
    total: Counter[str] = Counter()
    for url in replica_urls():
        for line in _http().get(f"{url}/metrics").text.splitlines():
            if found := re.match(rf'{name}\{{{label}="([^"]+)"\}} (\S+)$', line):
                total[found[1]] += int(float(found[2]))
    return total


def replica_pids() -> list[int]:
    """Processes of the replicas that this process's private Ray cluster runs."""
    out = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in out.splitlines()[1:]]
    parent = {int(pid): int(ppid) for pid, ppid, *_ in rows}
    found = [int(r[0]) for r in rows if len(r) == 3 and r[2].startswith("ray::ServeReplica")]
    return [pid for pid in found if os.getpid() in _ancestors(pid, parent)]


def until(condition: Callable[[], object], complaint: str, seconds: float = 60.0, every_s: float = 0.05) -> float:
    """Poll until the condition holds and return the seconds it took; raises ServiceError when it never does."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise ServiceError(f"{complaint} after {seconds:.0f} s")
        time.sleep(every_s)
    return time.monotonic() - started


@cache
def _http() -> httpx.Client:
    """One client for all: making one reads certificates for tens of milliseconds, and here is no TLS."""
    return httpx.Client(timeout=2.0, verify=False)


def _ancestors(pid: int, parent: dict[int, int]) -> list[int]:
    line = []
    while pid in parent and pid not in line:
        line.append(pid)
        pid = parent[pid]
    return line


def _answers(url: str) -> bool:
    try:
        return _http().get(f"{url}/readyz").status_code == 200
    except httpx.HTTPError:
        return False


def _body(request: Any) -> RerankRequest:
    scores = request.scores["upstream"]
    return RerankRequest(
        user_id=request.user_id,
        candidates=[
            Candidate(id=item, scores={"upstream": s}) for item, s in zip(request.candidate_ids, scores, strict=True)
        ],
        context=dict(request.context),
    )
