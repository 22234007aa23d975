"""Killing the collector, and Redis under it: the same rows, the same fates, nothing lost."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis

from degre_prod.errors import ServiceError
from degre_prod.schema import DataSchema, FeatureTable, Objective
from orchestration.bench.dying import children, one_pass
from orchestration.collect.collector import FOLDER, collected
from orchestration.collect.files import collected_files
from orchestration.redis_server import running_redis
from serving.clock import to_us, wall_clock
from serving.event_log import FeedbackLog, ServedLog
from serving.metrics import Metrics
from serving.preparation import prepare
from serving.protocol import (
    Candidate,
    FeedbackEvent,
    FeedbackRequest,
    RankedItem,
    RerankRequest,
    RerankResponse,
)
from serving.redis_client import RedisFailure

START = datetime(2026, 1, 1, tzinfo=UTC)
ROWS_A_FILE = 25
SCHEMA = DataSchema(
    name="kills",
    id_type="int64",
    list_length=4,
    max_candidates=8,
    objectives=(Objective(name="click"),),
    user=FeatureTable(features=()),
    item=FeatureTable(features=()),
    scores=("upstream",),
)
_PATIENCE_S = 60.0
Say = Callable[[str], None]


class Traffic:
    """Served lists and their feedback, the same for the same seed: clicks, repeats, late ones, strangers."""

    def __init__(self, lists: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.lists: list[tuple[RerankRequest, list[int]]] = []
        self.feedback: list[FeedbackRequest] = []
        for n in range(lists):
            ids = random.permutation(200)[:8].tolist()
            at = START + timedelta(seconds=n)
            candidates = [Candidate(id=i, scores={"upstream": float(random.normal())}) for i in ids]
            request = RerankRequest(request_id=f"r{n}", user_id=n % 50, candidates=candidates, event_timestamp=at)
            shown = random.permutation(ids)[:4].tolist()
            self.lists.append((request, shown))
            late = timedelta(hours=2) if n % 31 == 0 else timedelta(seconds=5)
            events = [
                FeedbackEvent(event_id=f"e{n}-{i}", id=i, type="click", timestamp=at + late)
                for i in shown
                if random.random() < 0.4
            ]
            own = f"r{n}" if n % 29 else f"stranger-{n}"
            if n % 7:
                delivery = FeedbackRequest(request_id=own, shown_ids=None if events else shown, events=events)
                self.feedback += [delivery] * (2 if n % 11 == 0 else 1)

    def part(self, first: int, last: int) -> Traffic:
        """Lists `first` to `last` (not with it) and the feedback of the same requests."""
        out = Traffic(0, 0)
        out.lists = self.lists[first:last]
        names = {name for r, _ in out.lists for name in (r.request_id, f"stranger-{str(r.request_id)[1:]}")}
        out.feedback = [d for d in self.feedback if d.request_id in names]
        return out


def kill_collector(folder: Path, kills: int, lists: int, random: np.random.Generator, say: Say) -> dict[str, Any]:
    """Kill the collector once in each of `kills` collections, at calls spread over all it makes."""
    traffic = Traffic(lists, 0)
    with running_redis() as url:
        wanted, calls = _unkilled(url, folder / "whole", traffic)
        same = resumed = True
        for n in range(kills):
            call = 1 + int(calls * (n + random.random()) / kills)
            place = _dataset(folder / f"killed-{n}")
            _empty(url)
            with _logs(url) as (served, feedback, metrics):
                _append(served, metrics, traffic)
                _deliver(feedback, traffic)
            ended = _pass(url, place, call)
            if ended != -signal.SIGKILL:
                raise ServiceError(f"the collector was to die at call {call} of {calls}, it ended with {ended}")
            committed = _identities(place)
            if _pass(url, place) != 0:
                raise ServiceError(f"the collector does not go on after a kill at call {call}")
            kept = all(_identities(place).get(name) == identity for name, identity in committed.items())
            found = _result(url, place)
            same, resumed = same and found == wanted, resumed and kept
            say(f"collector: call {call} of {calls}, {len(committed)} files were there")
    return {
        "kills": kills,
        "same": same,
        "resumed": resumed,
        "calls": calls,
        "rows_sha256": wanted["rows"],
        **wanted["counts"],
    }


def kill_redis(folder: Path, kills: int, lists: int, random: np.random.Generator, say: Say) -> dict[str, Any]:
    """Kill Redis under the collector, let lists and feedback come in while it is away, restart it on its append-only file."""
    traffic = Traffic(lists, 0)
    with running_redis() as url:
        wanted, _ = _unkilled(url, folder / "whole", traffic)
        _, calls = _unkilled(url, folder / "half", traffic.part(0, lists // 2))
    same = resumed = True
    refused = 0
    for n in range(kills):
        call = 1 + int(0.9 * calls * (n + random.random()) / kills)
        place, data_dir = _dataset(folder / f"killed-{n}"), folder / f"redis-{n}"
        with ExitStack() as stack:
            url = stack.enter_context(running_redis(data_dir=data_dir))
            served, feedback, metrics = stack.enter_context(_logs(url))
            before, after = traffic.part(0, lists // 2), traffic.part(lists // 2, lists)
            _append(served, metrics, before)
            _deliver(feedback, before)
            with redis.Redis.from_url(url) as client:
                server = int(client.info("server")["process_id"])
            ended = _pass(url, place, call, server)
            _append(served, None, after)
            refused += _refused(feedback, after.feedback[0])
            committed = _identities(place)
            stack.enter_context(running_redis(data_dir=data_dir, again=url))
            _await(lambda log=metrics: log.value("degre_served_log_total", fate="written") >= lists)  # type: ignore[misc]
            _deliver(feedback, after)
            if _pass(url, place) != 0:
                raise ServiceError(f"the collector does not go on after Redis was killed at call {call}")
            found = _result(url, place)
            dropped = metrics.value("degre_served_log_total", fate="dropped")
            same = same and found == wanted and dropped == 0
            resumed = resumed and all(_identities(place).get(name) == state for name, state in committed.items())
            say(f"redis: call {call} of {calls}; the collector ended with {ended}")
    return {
        "kills": kills,
        "same": same,
        "resumed": resumed,
        "feedback_refused": refused,
        "rows_sha256": wanted["rows"],
    }


def rows_digest(dataset: Path) -> str:
    """sha256 of all collected rows by request, but for when they arrived."""
    tables = [pq.read_table(file) for file in collected_files(dataset / FOLDER)]
    rows = pa.concat_tables(t.drop_columns(["created_timestamp"]) for t in tables).sort_by("request_id")
    return hashlib.sha256(repr(rows.to_pylist()).encode()).hexdigest()


def _unkilled(url: str, place: Path, traffic: Traffic) -> tuple[dict[str, Any], int]:
    _empty(url)
    dataset = _dataset(place)
    with _logs(url) as (served, feedback, metrics):
        _append(served, metrics, traffic)
        _deliver(feedback, traffic)
    if _pass(url, dataset) != 0:
        raise ServiceError("the collector failed though nothing was killed")
    return _result(url, dataset), int(_told(dataset).read_text())


def _result(url: str, dataset: Path) -> dict[str, Any]:
    with redis.Redis.from_url(url) as client:
        accounts = collected(client, dataset / FOLDER)
    lost = [accounts.lost, accounts.lost_feedback, accounts.waiting_served, accounts.waiting_feedback]
    return {"rows": rows_digest(dataset), "counts": asdict(accounts.counts), "lost_and_waiting": lost}


def _dataset(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "schema.yaml").write_text(SCHEMA.to_yaml())
    return folder


def _told(dataset: Path) -> Path:
    return dataset / "calls.txt"


def _empty(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.flushdb()


def _pass(url: str, dataset: Path, call: int | None = None, victim: int | None = None) -> int:
    """One pass in a process of its own; its exit code."""
    child = children().Process(target=one_pass, args=(url, dataset, ROWS_A_FILE, call, victim, _told(dataset)))
    child.start()
    child.join(_PATIENCE_S)
    if child.exitcode is None:
        child.kill()
        raise ServiceError(f"a pass of the collector did not end within {_PATIENCE_S:g} s")
    return child.exitcode


def _identities(dataset: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of change of the files that are committed."""
    states = {file.name: file.stat() for file in collected_files(dataset / FOLDER)}
    return {name: (state.st_ino, state.st_mtime_ns) for name, state in states.items()}


@contextmanager
def _logs(url: str) -> Iterator[tuple[ServedLog, FeedbackLog, Metrics]]:
    """A replica's two logs."""
    metrics = Metrics()
    served = ServedLog(url, buffer=100_000, stream_max_length=1_000_000, timeout_ms=500, metrics=metrics)
    feedback = FeedbackLog(url, stream_max_length=1_000_000, timeout_ms=500)
    try:
        yield served, feedback, metrics
    finally:
        served.close()
        feedback.close()


def _append(log: ServedLog, metrics: Metrics | None, traffic: Traffic) -> None:
    """As a replica does; with `metrics` wait until Redis has them."""
    for request, shown in traffic.lists:
        prepared = prepare(request, SCHEMA, wall_clock, "request")
        items = [RankedItem(id=item, position=t) for t, item in enumerate(shown)]
        name = prepared.request.request_id
        log.append(
            prepared, RerankResponse(request_id=name, items=items, bundle="b", arm="champion", source="generator")
        )
    if metrics is not None:
        _await(lambda: metrics.value("degre_served_log_total", fate="written") >= len(traffic.lists))


def _deliver(log: FeedbackLog, traffic: Traffic) -> None:
    for delivery in traffic.feedback:
        log.append(delivery, to_us(START))


def _refused(log: FeedbackLog, delivery: FeedbackRequest) -> int:
    """Whether feedback is refused, as it must be while Redis is away; the client delivers it again."""
    try:
        log.append(delivery, to_us(START))
    except RedisFailure:
        return 1
    raise ServiceError("feedback was taken while Redis was away")


def _await(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            raise ServiceError(f"Redis did not take the served lists within {_PATIENCE_S:g} s (pid {os.getpid()})")
        time.sleep(0.02)
