"""`degre bench faults`: what users get while a part is broken, and how soon after it is mended they get the best again."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from degre_prod.config import ServingConfig
from degre_prod.errors import ConfigurationError
from orchestration.bench import breakages
from orchestration.bench.bed import Bed, bed, counted, readyz, replica_urls, service, until
from orchestration.bench.delay import delayed
from orchestration.bench.hang import hanging_engine
from orchestration.bench.load import Load, Sample, percentile, reasons
from orchestration.bench.report import machine
from serving.heap import settle_heap

RATE = 60.0
REPLICAS = 2
TOLERANCE_MS = 20.0  # beyond the deadline an answer is late
WATCHED_S = 8.0  # after the fault
MOST_RECOVERY_S = 5.0

Breakage = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Fault:
    """`expected`: reasons of which at least one must be given while it lasts; none: full answers all along."""

    name: str
    breakage: Breakage
    expected: tuple[str, ...] = ()
    replicas_stay: bool = True


NAMES = (
    "redis_killed",
    "redis_frozen",
    "redis_slow",
    "features_empty",
    "replica_killed",
    "model_hangs",
    "corrupt_bundle",
    "cpu_hog",
)


def bench_faults(seconds: float, only: list[str] | None = None, *, rate: float = RATE) -> dict[str, Any]:
    """One row a fault, each `seconds` long, against a live service of two replicas under open-loop load.

    Raises ConfigurationError for a fault that does not exist.
    """
    chosen = list(only or NAMES)
    if wrong := [name for name in chosen if name not in NAMES]:
        raise ConfigurationError(f"{', '.join(wrong)}: no such fault; there are {', '.join(NAMES)}")
    rows: list[dict[str, Any]] = []
    with bed() as made:
        settle_heap()
        direct = [name for name in chosen if name != "redis_slow"]
        if direct:
            flag = made.folder / "hang"
            with service(made, build=partial(hanging_engine, flag=flag), replicas=REPLICAS) as url:
                for fault in (f for f in faults(made) if f.name in direct):
                    rows.append(row(made, url, fault, seconds, rate, first=sum(r["requests"] for r in rows)))
        if "redis_slow" in chosen:
            rows += _behind_proxy(made, seconds, rate)
    rows.sort(key=lambda r: NAMES.index(r["name"]))
    return {
        "bench": "faults",
        "faults": rows,
        "hold": all(r["holds"] for r in rows),
        "rate": rate,
        "seconds": seconds,
        "replicas": REPLICAS,
        "machine": machine(),
    }


def faults(made: Bed) -> list[Fault]:
    """Those that need nothing between the service and Redis, the harshest last."""
    away = ("features_unavailable",)
    return [
        Fault("features_empty", partial(breakages.features_empty, made), ("unknown_user",)),
        Fault("redis_frozen", partial(breakages.redis_frozen, made), away),
        Fault("redis_killed", partial(breakages.redis_killed, made), away),
        Fault("cpu_hog", partial(breakages.cpu_hog, 1)),
        Fault("corrupt_bundle", partial(breakages.corrupt_bundle_offered, made)),
        Fault("model_hangs", partial(breakages.model_hangs, made.folder / "hang"), ("deadline", "engine_stuck")),
        Fault("replica_killed", breakages.replica_killed, replicas_stay=False),
    ]


def row(made: Bed, url: str, fault: Fault, seconds: float, rate: float, first: int = 0) -> dict[str, Any]:
    """Break, wait, mend, watch; then judge what was answered. `first`: where in the requests the load begins."""
    print(f"fault: {fault.name}", file=sys.stderr)
    before = counted("degre_degraded_total", "reason")
    extra: dict[str, Any] = {}
    with Load(url, made.requests, rate, first) as load:
        until(lambda: len(load.samples) >= rate, "no answers")
        started = time.monotonic()
        with fault.breakage():
            if not fault.replicas_stay:
                until(lambda: len(replica_urls()) < REPLICAS, "no replica went away", every_s=0.25)
                until(lambda: len(replica_urls()) == REPLICAS, "the replica did not come back", every_s=0.25)
                extra["replica_back_s"] = round(time.monotonic() - started, 2)
            time.sleep(max(started + seconds - time.monotonic(), 0.0))
            if fault.name == "corrupt_bundle":
                extra["refused_by"] = sum("refused" in readyz(replica) for replica in replica_urls())
        ended = time.monotonic()
        time.sleep(WATCHED_S)
    told = reasons(load.samples)
    given = counted("degre_degraded_total", "reason") - before
    return judge(load.samples, fault, (started, ended), ServingConfig().deadline_ms, told, given) | extra


def judge(
    samples: list[Sample],
    fault: Fault,
    window: tuple[float, float],
    deadline_ms: float,
    told: Counter[str],
    given: Counter[str],
) -> dict[str, Any]:
    """The row of one fault; `told` are reasons as the client heard them, `given` as the service counted them."""
    started, ended = window
    since = [s for s in samples if s.due >= started]
    during = [s for s in since if s.due < ended]
    bad = [s for s in since if not s.answered or not s.valid or s.took_ms > deadline_ms + TOLERANCE_MS]
    recovery_s = max((s.due + s.took_ms / 1000 - ended for s in bad), default=0.0)
    fallbacks = [s for s in since if s.due >= ended and s.source.startswith("fallback")]
    best_again_s = max((s.due + s.took_ms / 1000 - ended for s in fallbacks), default=0.0)
    heard = reasons(during)
    right = told == given if fault.replicas_stay else None
    p99_ms = percentile([s.took_ms for s in during], 0.99)
    result: dict[str, Any] = {
        "name": fault.name,
        "requests": len(since),
        "non_200": sum(not s.answered for s in since),
        "invalid": sum(not s.valid for s in since),
        "p50_ms": round(percentile([s.took_ms for s in during], 0.5), 2),
        "p99_ms": round(p99_ms, 2),
        "sent_late_p99_ms": round(percentile([s.late_ms for s in during], 0.99), 2),
        "deadline_ms": deadline_ms,
        "late": len([s for s in bad if s.answered]),
        "recovery_s": round(max(recovery_s, 0.0), 2),
        "best_again_s": round(max(best_again_s, 0.0), 2),
        "reasons": dict(heard),
        "sources": dict(Counter(s.source for s in during)),
        "reasons_counted_right": right,
    }
    result["holds"] = (
        result["non_200"] == result["invalid"] == 0
        and p99_ms <= deadline_ms + TOLERANCE_MS
        and result["recovery_s"] <= MOST_RECOVERY_S
        and right is not False
        and (not fault.expected or any(heard[reason] for reason in fault.expected))
    )
    return result


def _behind_proxy(made: Bed, seconds: float, rate: float) -> list[dict[str, Any]]:
    address = urlsplit(made.redis_url)
    with delayed(address.hostname or "127.0.0.1", address.port or 6379) as delay:
        through = made.redis_url.replace(f":{address.port}/", f":{delay.port}/")
        with service(made, redis_url=through, replicas=REPLICAS) as url:
            slow = Fault("redis_slow", partial(breakages.redis_slow, delay), ("features_unavailable",))
            return [row(made, url, slow, seconds, rate)]
