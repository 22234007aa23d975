"""The online path in plain Python: read features → encode → decode → validate → answer.

Whatever breaks, `Engine.answer` returns a valid list and says in `degraded` why it is worse. No HTTP and no Ray here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import structlog

from degre_prod.config import ServingConfig
from degre_prod.constraints.rules import Rules
from degre_prod.constraints.settle import Settled
from degre_prod.errors import FeatureError
from degre_prod.requests import FeatureColumns, Id, Request
from degre_prod.schema import DataSchema
from serving.cache import CachedList, Lookup, ResultCache, cache_key
from serving.clock import Clock, wall_clock
from serving.deadline import Deadline, OutOfTimeError, timed
from serving.explanation import explained_items, feature_values
from serving.fallback import fallback_order
from serving.features import FeatureRead
from serving.preparation import Prepared, check_feedback, prepare
from serving.problems import Problem
from serving.protocol import FeedbackRequest, RankedItem, RerankRequest, RerankResponse, Source
from serving.rules import fits, restricted, rules_for
from serving.single_flight import SingleFlight
from serving.validation import validate

log = structlog.get_logger(__name__)


class Decoded(Protocol):
    """What a bundle's decoder returns; see degre_prod.bundle.Decoded."""

    @property
    def order(self) -> np.ndarray: ...
    @property
    def margins(self) -> np.ndarray: ...
    @property
    def logits(self) -> np.ndarray | None: ...
    @property
    def runner_up(self) -> np.ndarray | None: ...


class Encodes(Protocol):
    """The bundle's encoder."""

    def encode(self, request: Request, user: FeatureColumns, items: FeatureColumns) -> dict[str, np.ndarray]: ...


class ServingBundle(Protocol):
    """What the engine needs of a verified bundle."""

    @property
    def manifest_sha256(self) -> str: ...
    @property
    def schema(self) -> DataSchema: ...
    @property
    def encoder(self) -> Encodes: ...
    @property
    def follows_rules(self) -> bool: ...
    @property
    def trust_region(self) -> int | None: ...
    def decode(self, encoded: dict[str, np.ndarray], length: int, rules: Rules | None = None) -> Decoded: ...


class ReadsFeatures(Protocol):
    """What the engine needs of a feature reader; raises FeatureError when the store fails."""

    def read(self, user_id: Id, item_ids: Sequence[Id], now_us: int) -> FeatureRead: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """A list worth keeping, to be stored off the request path by `Engine.store`; `degraded`: what its features lacked."""

    key: str
    epoch: int
    item_ids: list[Id]
    degraded: list[str]


@dataclass(frozen=True, slots=True)
class Answer:
    """The response, what happened at the cache, what to store there, and how many items came from the item table."""

    response: RerankResponse
    cache_outcome: str | None = None
    entry: CacheEntry | None = None
    cached_items: int | None = None


@dataclass(slots=True)
class _Progress:
    """What is known of an answer under way: milliseconds by stage, what the cache said, the rules."""

    timings: dict[str, float] = field(default_factory=dict)
    lookup: Lookup | None = None
    settled: Settled | None = None


class Engine:
    """Answers requests with one bundle. Safe to use from several threads at once."""

    def __init__(
        self,
        bundle: ServingBundle,
        features: ReadsFeatures,
        cache: ResultCache | None,
        settings: ServingConfig,
        clock: Clock = wall_clock,
    ) -> None:
        self.bundle, self._features, self._cache, self._settings, self._clock = bundle, features, cache, settings, clock
        self._flights: SingleFlight[Answer] = SingleFlight()

    def prepare(self, received: RerankRequest) -> Prepared:
        """Check a request; raises Problem (413 or 422)."""
        return prepare(received, self.bundle.schema, self._clock, self._settings.clock)

    def check_feedback(self, feedback: FeedbackRequest) -> None:
        """Check a feedback delivery; raises Problem (422)."""
        check_feedback(feedback, self.bundle.schema)

    def deadline(self, received: RerankRequest, started: float | None = None) -> Deadline:
        """The request's deadline, counted from `started` (perf_counter seconds, default now)."""
        limit_ms = received.deadline_ms or self._settings.deadline_ms
        return Deadline(limit_ms) if started is None else Deadline(limit_ms, started)

    def answer(self, prepared: Prepared, deadline: Deadline | None = None, *, in_shadow: bool = False) -> Answer:
        """A valid list from the cache, the generator, or the fallback chain; never fails for a broken part.

        In shadow the generator computes it, whatever the cache holds, and a failure is one line in the log. Raises a 422
        Problem when no list obeys the request's constraints.
        """
        deadline = deadline or self.deadline(prepared.received)
        progress = _Progress(deadline.timings)
        try:
            return self._answer(prepared, deadline, progress, not in_shadow)
        except Problem:
            raise
        except OutOfTimeError:
            reason = "deadline"
        except FeatureError as error:
            log.warning("features unavailable", error=str(error), request_id=prepared.request.request_id)
            reason = "features_unavailable"
        except Exception as error:  # whatever the model does, the page gets its list
            if in_shadow:  # nobody waits for it, and a broken challenger breaks every time
                log.warning("model failed in shadow", error=repr(error), request_id=prepared.request.request_id)
            else:
                log.exception("model failed", request_id=prepared.request.request_id)
            reason = "model_error"
        return self.fall_back(prepared, reason, deadline, progress)

    def fall_back(
        self, prepared: Prepared, reason: str, deadline: Deadline, progress: _Progress | None = None
    ) -> Answer:
        """The list by upstream score, else in upstream order, flagged with `reason`; raises Problem as `answer` does."""
        progress = progress or _Progress()
        request, schema = prepared.request, self.bundle.schema
        settled = progress.settled or rules_for(prepared, self.bundle, None)
        count = len(request.candidate_ids)
        order, source = fallback_order(count, prepared.length, request.scores, schema.scores, settled.rules)
        chosen = [request.candidate_ids[i] for i in order]
        validate(chosen, request.candidate_ids, prepared.length, settled.rules)
        degraded = [reason, *prepared.flags, *settled.flags]
        response = self._response(prepared, chosen, source, degraded, progress.timings, deadline)
        return Answer(response, progress.lookup.outcome if progress.lookup else None)

    def store(self, entry: CacheEntry) -> None:
        """Put an answered list into the cache."""
        if self._cache is not None:
            self._cache.put(entry.key, entry.epoch, entry.item_ids, entry.degraded)

    def close(self) -> None:
        """Close the connections to Redis."""
        self._features.close()
        if self._cache is not None:
            self._cache.close()

    def _under_way(self, key: str, deadline: Deadline) -> CachedList | None:
        """The list of another request with the same key that is being computed now."""
        answer = self._flights.join(key, deadline.left_s())
        return (
            None if answer is None or answer.entry is None else CachedList(answer.entry.item_ids, answer.entry.degraded)
        )

    def _key(self, prepared: Prepared) -> str | None:
        """The cache key; None when the request must not be answered from the cache."""
        if self._cache is None or prepared.received.explain:
            return None
        return cache_key(self.bundle.manifest_sha256, prepared.received, prepared.length)

    def _answer(self, prepared: Prepared, deadline: Deadline, progress: _Progress, cached: bool) -> Answer:
        """From the cache or the generator."""
        deadline.check()
        key = self._key(prepared) if cached else None
        if key is None or self._cache is None:
            return self._generate(prepared, deadline, progress, key)
        with timed(progress.timings, "cache"):
            progress.lookup = self._cache.get(key)
        outcome, found = progress.lookup.outcome, progress.lookup.found
        if found is None:
            with timed(progress.timings, "shared"):
                outcome, found = "shared", self._under_way(key, deadline)
        if found is not None and fits(found, prepared, self.bundle):
            degraded = [*prepared.flags, *found.degraded]
            response = self._response(prepared, found.item_ids, "cache", degraded, progress.timings, deadline)
            return Answer(response, outcome)
        progress.timings.pop("shared", None)
        deadline.check()
        return self._flights.lead(key, lambda: self._generate(prepared, deadline, progress, key))

    def _generate(self, prepared: Prepared, deadline: Deadline, progress: _Progress, key: str | None) -> Answer:
        request, timings, lookup = prepared.request, progress.timings, progress.lookup
        with timed(timings, "features"):
            read = self._features.read(request.user_id, request.candidate_ids, request.event_timestamp_us)
        deadline.check()
        if restricted(prepared, self.bundle):
            with timed(timings, "constraints"):
                progress.settled = rules_for(prepared, self.bundle, read.items)
            if progress.settled.rules is not None and not self.bundle.follows_rules:
                return self.fall_back(prepared, "constraints_by_fallback", deadline, progress)
        settled = progress.settled or Settled()
        with timed(timings, "encode"):
            encoded = self.bundle.encoder.encode(request, read.user, read.items)
        deadline.check()
        with timed(timings, "decode"):
            decoded = self.bundle.decode(encoded, prepared.length, settled.rules)
        chosen = [request.candidate_ids[i] for i in decoded.order.tolist()]
        validate(chosen, request.candidate_ids, prepared.length, settled.rules)
        flags = [*settled.flags, *_feature_flags(read)]
        response = self._response(prepared, chosen, "generator", [*prepared.flags, *flags], timings, deadline)
        if prepared.received.explain:
            items = explained_items(decoded, request.candidate_ids, read.items)
            response = response.model_copy(update={"items": items, "user_features": feature_values(read.user, 0)})
        entry = None
        if key is not None and lookup is not None and lookup.epoch is not None:
            entry = CacheEntry(key, lookup.epoch, chosen, flags)
        return Answer(response, lookup.outcome if lookup else None, entry, read.cached_items)

    def _response(
        self,
        prepared: Prepared,
        chosen: Sequence[Id],
        source: Source,
        degraded: Sequence[str],
        timings: dict[str, float],
        deadline: Deadline,
    ) -> RerankResponse:
        timings["total"] = deadline.elapsed_ms()
        return RerankResponse(
            request_id=prepared.request.request_id,
            items=[RankedItem(id=item, position=t) for t, item in enumerate(chosen)],
            bundle=self.bundle.manifest_sha256,
            arm=prepared.arm,
            experiment=prepared.exposure and prepared.exposure.experiment,
            source=source,
            degraded=list(degraded),
            timings_ms={stage: round(ms, 3) for stage, ms in timings.items()},
        )


def _feature_flags(read: FeatureRead) -> list[str]:
    flags = {
        "unknown_user": read.unknown_user,
        f"unknown_items:{read.unknown_items}": read.unknown_items,
        "stale_user": read.stale_user,
        f"stale_items:{read.stale_items}": read.stale_items,
    }
    return [flag for flag, present in flags.items() if present]
