"""Prometheus metrics of one replica, in a registry of its own. All labels come from fixed sets; docs/observability.md lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from degre_prod import __version__

_STAGE_BUCKETS_S = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5)


class Metrics:
    """What the service counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("degre_requests", "Requests by endpoint and status", "endpoint", "status")
        self._rerank = self._counter(
            "degre_rerank", "Requests for a list by who made it, arm and status", "source", "arm", "status"
        )
        self._answers = self._counter("degre_answers", "Reranked lists by source", "source")
        self._degraded = self._counter("degre_degraded", "Answers by reason of being degraded", "reason")
        self._cache = self._counter("degre_cache", "Result cache lookups by outcome", "outcome")
        self._items = self._counter("degre_item_table", "Items asked of the replica's table by outcome", "outcome")
        self._entities = self._counter(
            "degre_entities", "Users and items whose features were read, by state", "entity", "state"
        )
        self._log = self._counter("degre_served_log", "Served lists by fate on their way to Redis", "fate")
        self._feedback = self._counter("degre_feedback", "Feedback deliveries by fate", "fate")
        self._stages = Histogram(
            "degre_stage_seconds", "Time by stage", ["stage"], registry=self.registry, buckets=_STAGE_BUCKETS_S
        )
        self._ready = self._gauge("degre_ready", "1 when the bundle is loaded and warm")
        self._swaps = self._counter("degre_swaps", "Rollout plans by what became of them", "fate")
        self._info = self._gauge("degre_bundle_info", "1 for each bundle that serves, with its role", "sha256", "role")
        self._gauge("degre_build_info", "1, with the version of the package", "version").labels(__version__).set(1)
        self._plan = self._gauge("degre_plan_version", "Version of the plan followed, 0 without one")
        self._readable = self._gauge("degre_plan_readable", "0 when the plan has been unreadable for over 10 s")
        self._lost = self._gauge("degre_threads_lost", "Threads held by work that never ended")
        self._shed = self._counter("degre_shed", "Requests answered 429 by reason", "reason")
        self._ongoing = self._gauge("degre_ongoing", "Requests under way")
        self._queues = self._gauge("degre_queue", "What waits in the replica, by queue", "queue")
        self._cancelled = self._counter("degre_cancelled", "Requests whose client went away")
        self._shadow = self._counter("degre_shadow", "Lists for the challenger in shadow, by outcome", "outcome")
        self._readable.set(1)
        # A counter that first shows with its first event shows no increase, and what alerts on one would stay silent.
        for counter, fate in ((self._log, "dropped"), (self._swaps, "refused"), (self._feedback, "refused")):
            counter.labels(fate)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def request(self, endpoint: str, status: int) -> None:
        """One request answered."""
        self._requests.labels(endpoint, str(status)).inc()
        if endpoint == "rerank" and status != 200:
            self._rerank.labels("", "", str(status)).inc()

    def answer(self, source: str, arm: str, degraded: Sequence[str], timings_ms: Mapping[str, float]) -> None:
        """One list answered. A reason's count (`unknown_items:3`) is cut off: labels stay bounded."""
        self._rerank.labels(source, arm, "200").inc()
        self._answers.labels(source).inc()
        for reason in degraded:
            self._degraded.labels(reason.partition(":")[0]).inc()
        for stage, ms in timings_ms.items():
            self._stages.labels(stage).observe(ms / 1000)

    def shadow(self, outcome: str) -> None:
        """One list that the challenger was asked for in shadow: ok, failed, late, other (not its fault) or dropped."""
        self._shadow.labels(outcome).inc()

    def cache(self, outcome: str) -> None:
        """One lookup in the result cache."""
        self._cache.labels(outcome).inc()

    def items(self, hits: int, asked: int) -> None:
        """One request's items: `hits` of `asked` came from the replica's table."""
        self._items.labels("hit").inc(hits)
        self._items.labels("miss").inc(asked - hits)

    def entities(self, asked: int, degraded: Sequence[str]) -> None:
        """The user and `asked` items whose features a list was made with; `degraded` says how many of them are stale or unknown."""
        found = dict(_flagged(reason) for reason in degraded)
        for entity, count in (("user", 1), ("item", asked)):
            flag = entity if entity == "user" else "items"
            states = {state: found.get(f"{state}_{flag}", 0) for state in ("stale", "unknown")}
            for state, known in (states | {"fresh": count - sum(states.values())}).items():
                if known:
                    self._entities.labels(entity, state).inc(known)

    def served_log(self, fate: str, count: int = 1) -> None:
        """Served lists written, dropped (buffer full) or failed (an append to be tried again)."""
        self._log.labels(fate).inc(count)

    def feedback(self, fate: str) -> None:
        """A feedback delivery accepted or refused because Redis was away."""
        self._feedback.labels(fate).inc()

    def ready(self, ready: bool) -> None:
        """Whether the replica takes requests."""
        self._ready.set(ready)

    def serving(self, bundles: Sequence[str], plan_version: int) -> None:
        """sha256 of the bundles that answer from now on, and the plan that says so (0: none)."""
        self._info.clear()
        for sha256, role in zip(bundles, ("champion", "challenger"), strict=False):
            self._info.labels(sha256, role).set(1)
        self._plan.set(plan_version)

    def swap(self, fate: str) -> None:
        """A new plan was followed (its champion `loaded`, `kept`, `promoted` from challenger, `went_back` to) or `refused`."""
        self._swaps.labels(fate).inc()

    def plan_readable(self, readable: bool) -> None:
        """Whether Redis gives a plan, or says that there is none."""
        self._readable.set(readable)

    def ongoing(self, count: int) -> None:
        """Requests being answered at this moment."""
        self._ongoing.set(count)

    def queues(self, waiting: Mapping[str, int]) -> None:
        """How much waits in each queue."""
        for queue, count in waiting.items():
            self._queues.labels(queue).set(count)

    def threads_lost(self, count: int) -> None:
        """Threads held by work that never ended."""
        self._lost.set(count)

    def shed(self, reason: str) -> None:
        """A request was answered 429: too many `ongoing`, or `lag` before any is looked at."""
        self._shed.labels(reason).inc()

    def cancelled(self) -> None:
        """A client went away before its answer."""
        self._cancelled.inc()

    def value(self, name: str, **labels: str) -> float:
        """A sample's present value, 0 when it was never counted."""
        return self.registry.get_sample_value(name, labels) or 0.0

    def exposition(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self.registry)


def _flagged(reason: str) -> tuple[str, int]:
    """`unknown_items:3` as name and count; 1 where there is none."""
    name, _, count = reason.partition(":")
    return name, int(count) if count.isdigit() else 1
