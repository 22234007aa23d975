"""A process that dies, or kills another one, at its k-th call to the file system or to Redis.

Calls are counted from outside the code that makes them: file operations by Python's audit events, Redis's by what is put
around the client's connection, in a child process that nobody else shares.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# What children import, so that not each of them needs to: a collector's and a night's.
_IMPORTED = (
    *("orchestration.bench.dying", "orchestration.bench.night_kills", "orchestration.collect.collector"),
    *("orchestration.retrain.night", "orchestration.retrain.report", "orchestration.features.training_set"),
    *("degre_prod.training.export", "degre_prod.training.evaluator", "degre_prod.training.generator"),
    *(
        "degre_prod.training.judge",
        "degre_prod.bundle",
        "degre_prod.validation",
        "onnxruntime",
        "pandas",
        "scipy.stats",
    ),
    *("feast.infra.offline_stores.duckdb", "feast.infra.registry.sql", "orchestration.report.plots"),
    *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
)
_EVENTS = ("os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "tempfile.mkstemp", "fcntl.flock")


def kill_at(call: int | None, victim: int | None = None) -> Callable[[], int]:
    """From now on count this process's calls; before number `call` (from 1) `victim`, or this process itself, gets SIGKILL.

    Returns a function that tells the count. A call to Redis counts twice: before it is sent, and when its answer is here.
    """
    from redis.connection import AbstractConnection

    seen = 0

    def passing() -> None:
        nonlocal seen
        seen += 1
        if seen == call:
            os.kill(os.getpid() if victim is None else victim, signal.SIGKILL)

    def heard(event: str, args: tuple[Any, ...]) -> None:
        if event in _EVENTS or (event == "open" and isinstance(args[1], str) and "w" in args[1]):
            passing()

    send, read, flush = AbstractConnection.send_packed_command, AbstractConnection.read_response, os.fsync

    def sending(self: Any, *args: Any, **named: Any) -> Any:
        passing()
        return send(self, *args, **named)

    def reading(self: Any, *args: Any, **named: Any) -> Any:
        answer = read(self, *args, **named)
        passing()
        return answer

    def flushing(fd: Any) -> None:
        passing()
        flush(fd)

    AbstractConnection.send_packed_command = sending
    AbstractConnection.read_response = reading
    os.fsync = flushing
    sys.addaudithook(heard)
    return lambda: seen


def children() -> multiprocessing.context.ForkServerContext:
    """Where children come from: copies of one process that has imported all they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    multiprocessing.util.get_temp_dir()  # ours, which we remove: a child that is killed leaves its own behind
    return context


def one_pass(url: str, dataset: Path, rows_a_file: int, call: int | None, victim: int | None, told: Path) -> None:
    """The child's work: one pass of the collector, everything settled. Leaves the count of its calls in `told`."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    from degre_prod.config import CollectConfig
    from orchestration.collect import collector

    collector.ROWS_A_FILE = rows_a_file  # several files a shard from few lists
    count = kill_at(call, victim)
    with redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0)) as client:
        collector.collect(client, dataset, CollectConfig(), flush=True)
    calls = count()
    told.write_text(str(calls))
