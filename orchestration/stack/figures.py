"""What the parts around the replicas say of themselves, as Prometheus metrics: nights, gates and drift from the run folder, the
event log and Redis itself. Read when asked; nothing here writes. Labels are bounded by the schema, the steps and the gates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    import redis

STATUSES = ("done", "stopped")
_DRIFT = ("psi", "ks", "missing")


class StackCollector(Collector):
    """All figures of a run folder and its Redis. A source that fails is told by `degre_source_up`, the others still come."""

    def __init__(self, run: Path, client: redis.Redis) -> None:
        self._run, self._client = run, client

    def collect(self) -> Iterable[Metric]:
        """One scrape."""
        up = _family("degre_source_up", "1 when the exporter could read the source", "source")
        sources: tuple[tuple[str, Callable[[], Iterator[Metric]]], ...] = (
            ("run", lambda: nights(self._run)),
            ("redis", lambda: redis_state(self._client)),
            ("log", lambda: event_log(self._run, self._client)),
            ("plan", lambda: plan_state(self._client)),
        )
        away = False
        for name, read in sources:
            try:
                found = [] if away else list(read())
            except Exception as error:  # whatever is wrong with one source, the others are still worth reading
                # A Redis that hangs is asked once: a time-out for each source takes longer than Prometheus waits.
                away = _is_away(error)
                up.add_metric([name], 0)
                continue
            up.add_metric([name], 0 if away else 1)
            yield from found
        yield up


def _is_away(error: Exception) -> bool:
    """Whether Redis did not answer, as against having answered that it would not."""
    from redis import ConnectionError as Disconnected
    from redis import TimeoutError as Late

    return isinstance(error, Disconnected | Late)


def nights(run: Path) -> Iterator[Metric]:
    """Nights by outcome; steps, gates and drift of the newest one."""
    from orchestration.retrain.pipeline import FAILURE
    from orchestration.retrain.state import State

    state = State(run / "retrain")
    outcomes = state.outcomes()
    count = _family("degre_nights", "Nights that ended, by status", "status")
    ended = _family("degre_night_ended_timestamp_seconds", "When the newest night of a status ended", "status")
    for status in STATUSES:
        those = [o for o in outcomes if o.status == status]
        count.add_metric([status], len(those))
        if those:
            ended.add_metric([status], datetime.fromisoformat(those[-1].ended).timestamp())
    yield count
    yield ended
    current = state.current()
    yield _gauge("degre_night_running", "1 while a night is under way or was killed", current is not None)
    if current is not None:
        yield _gauge("degre_night_began_timestamp_seconds", "When it began", current.began_us / 1e6)
    last = datetime.fromisoformat(outcomes[-1].ended).timestamp() if outcomes else 0.0
    failures = [f.stat().st_mtime for f in state.folder.glob(f"*/{FAILURE}")]
    yield _gauge("degre_night_failed", "1 when a night ended with an error since the last one that ended well",
                 max(failures, default=0.0) > last)  # fmt: skip
    if not outcomes:
        return
    newest = outcomes[-1]
    steps = _family("degre_step_seconds", "Duration of a step of the newest night", "step")
    for step, seconds in newest.steps.items():
        steps.add_metric([step], seconds)
    yield steps
    gates = _family("degre_gate_passed", "1 when a gate of the newest night held", "gate")
    for gate in newest.gates:
        gates.add_metric([gate.name], gate.passed)
    yield gates
    figures = {name: value for gate in newest.gates if gate.name == "drift" for name, value in gate.figures.items()}
    for kind in _DRIFT:
        family = _family(f"degre_drift_{kind}", f"Drift of a feature in the newest night: {kind}", "feature")
        for name, value in figures.items():
            if name.startswith(f"{kind}_"):
                family.add_metric([name.removeprefix(f"{kind}_")], value)
        yield family


def redis_state(client: redis.Redis) -> Iterator[Metric]:
    """Memory, evictions and persistence of Redis; the feature epoch."""
    from orchestration.features.materialize import EPOCH_KEY

    info = cast(dict[str, Any], client.info())
    yield _gauge("degre_redis_memory_bytes", "Memory that Redis uses", info["used_memory"])
    yield _gauge("degre_redis_memory_limit_bytes", "maxmemory, 0 without a limit", info["maxmemory"])
    yield _gauge("degre_redis_evicted_keys", "Keys evicted since Redis started", info["evicted_keys"])
    well = info.get("aof_enabled") and info.get("aof_last_write_status") == "ok"
    yield _gauge(
        "degre_redis_append_only_ok", "1 when the append-only file is on and its last write went well", bool(well)
    )
    yield _gauge(
        "degre_feature_epoch", "How often features were materialised", int(cast(bytes, client.get(EPOCH_KEY)) or 0)
    )


def event_log(run: Path, client: redis.Redis) -> Iterator[Metric]:
    """Lists and feedback that wait for the collector, that it has settled, and that were lost before it came."""
    from dataclasses import asdict

    from orchestration.collect.collector import FOLDER, collected
    from orchestration.run import POINTER

    pointer = run / POINTER
    data = Path(json.loads(pointer.read_text())["dataset"]) if pointer.is_file() else run / "data"
    found = collected(client, data / FOLDER)
    waiting = _family("degre_log_waiting", "Entries in the streams that no file holds yet", "kind")
    waiting.add_metric(["served"], found.waiting_served)
    waiting.add_metric(["feedback"], found.waiting_feedback)
    yield waiting
    lost = _family("degre_log_lost", "Entries that Redis cut from its streams before they were collected", "kind")
    for kind, count in (("served", found.lost), ("feedback", found.lost_feedback)):
        if count is not None:
            lost.add_metric([kind], count)
    yield lost
    settled = _family("degre_log_collected", "What became of collected lists and feedback", "fate")
    for fate, count in asdict(found.counts).items():
        settled.add_metric([fate], count)
    yield settled


def plan_state(client: redis.Redis) -> Iterator[Metric]:
    """The plan as published, the replicas that follow it, and the age of the champion where its bundle can be read here."""
    from degre_prod.bundle.manifest import read_manifest
    from serving.bundles import fetch_local
    from serving.plan_store import read_plan
    from serving.reports import follows, read_reports

    plan, reports = read_plan(client), read_reports(client)
    yield _gauge(
        "degre_plan_published_version",
        "Version of the rollout plan in Redis, 0 without one",
        plan.version if plan else 0,
    )
    yield _gauge("degre_replicas", "Replicas that reported in the last seconds", len(reports))
    behind = 0 if plan is None else sum(not follows(report, plan) for report in reports)
    yield _gauge("degre_replicas_behind", "Replicas that do not serve what the plan says", behind)
    yield _gauge(
        "degre_replicas_refusing", "Replicas that refuse a bundle", sum(r.refused is not None for r in reports)
    )
    if plan is not None:
        made = read_manifest(fetch_local(plan.champion.bundle_uri)).created.timestamp()
        yield _gauge("degre_champion_created_timestamp_seconds", "When the plan's champion was made", made)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=float(value))


def _family(name: str, text: str, label: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=[label])
