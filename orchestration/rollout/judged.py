"""What an independent judge thinks of the challenger's lists beside the champion's, request by request, from the shadow.

Replicas leave a sample of such pairs in a stream (serving.shadow); the controller, where it was given a judge, values both
lists through the judge's own encoder, with the features of this moment. One request of each user, so that pairs are
independent: the figure is Σ challenger's / Σ champion's values over users, its interval as always-valid as the others. It is
for people; no rule of the machine asks it, for a judge believes what its log has taught it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import redis

from degre_prod.errors import MismatchError
from degre_prod.experiments.moments import from_flat, moments_of
from degre_prod.experiments.ratio import delta_variance, value_and_gradient
from degre_prod.experiments.sequential import half_width, mixture_scale
from degre_prod.requests import RecentEvent, Request
from orchestration.rollout.accounts import pseudonym
from orchestration.rollout.sums import judged_users_key, state_key
from serving.clock import to_us
from serving.experiment import Experiment
from serving.plan_store import LEASE_KEY
from serving.shadow import lists_key

if TYPE_CHECKING:
    from degre_prod.rows import TrainingRow

BATCH = 32  # pairs a look
MOST_USERS = 20_000
READ_MS = 1000.0
_POSITION = "judged:at"
_SUMS = "judged|"


@dataclass(frozen=True, slots=True)
class Judged:
    """Mean value of both arms' lists, in units of feedback, and the relative difference. Infinite interval: too few users."""

    users: int
    champion: float
    challenger: float
    effect: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is not known yet is None."""
        values = {name: getattr(self, name) for name in ("champion", "challenger", "effect", "low", "high")}
        return {"users": self.users} | {n: v if np.isfinite(v) else None for n, v in values.items()}


def read_judged(client: redis.Redis, experiment: Experiment) -> Judged | None:
    """What has been valued so far, None when nothing has; says nothing sure before `guardrail_min_users`."""
    found = cast(dict[bytes, bytes], client.hgetall(state_key(experiment.id)))
    flat = {k.decode().removeprefix(_SUMS): float(v) for k, v in found.items() if k.startswith(_SUMS.encode())}
    if not flat:
        return None
    moments = from_flat(flat)
    challenger, champion = (float(mean) for mean in moments.means)
    effect, gradient_K = value_and_gradient(moments, "relative")
    tau = mixture_scale(float(np.log1p(experiment.primary.smallest_effect)), experiment.alpha)
    width = float(half_width(delta_variance(moments, gradient_K), tau, experiment.alpha))
    if moments.count < experiment.guardrail_min_users:
        width = np.inf
    low, high = (float(np.expm1(effect + side * width)) if np.isfinite(width) else side * np.inf for side in (-1, 1))
    return Judged(int(moments.count), champion, challenger, float(np.expm1(effect)), low, high)


class ListJudge:
    """A judge's folder, as retraining leaves it (judge.safetensors, judge.json, encoder.json), at work on a Redis."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        from orchestration.replaying.answers import load_jury
        from serving.features import FeatureReader

        self._jury = load_jury(folder)
        self._features = FeatureReader(self._jury.encoder.schema, redis_url, READ_MS)

    def look(self, client: redis.Redis, experiment: Experiment, lease: str) -> int:
        """Value what the stream has that is new, BATCH pairs at most; returns how many counted.

        Position, users and sums are written in one transaction, which fails unless the lease is held and the position is
        still the one that was read. Raises MismatchError, redis errors.
        """
        state = state_key(experiment.id)
        position = cast(bytes | None, client.hget(state, _POSITION))
        after = "-" if position is None else f"({position.decode()}"
        page = cast(list[Any], client.xrange(lists_key(experiment.id), min=after, count=BATCH))
        if not page:
            return 0
        pairs: dict[str, Mapping[str, Any]] = {}
        for _, fields in page:
            record = json.loads(fields[b"record"])
            pairs.setdefault(pseudonym(record["user_id"]), record)
        users_key = judged_users_key(experiment.id)
        known = cast(list[int], client.smismember(users_key, list(pairs)))
        fresh = {user: pairs[user] for user, there in zip(pairs, known, strict=True) if not there}
        if cast(int, client.scard(users_key)) >= MOST_USERS:
            fresh = {}
        values_U2 = self._values(list(fresh.values()))
        with client.pipeline() as pipeline:
            try:
                pipeline.watch(LEASE_KEY, state)
                if pipeline.get(LEASE_KEY) != lease.encode() or pipeline.hget(state, _POSITION) != position:
                    raise MismatchError("another controller values the lists")
                pipeline.multi()
                pipeline.hset(state, _POSITION, page[-1][0])
                if len(values_U2):
                    pipeline.sadd(users_key, *fresh)
                    for name, amount in moments_of(values_U2[:, 0], values_U2[:, 1]).flat().items():
                        pipeline.hincrbyfloat(state, _SUMS + name, amount)
                pipeline.execute()
            except redis.WatchError:
                raise MismatchError("the experiment's accounts were changed meanwhile") from None
        return len(values_U2)

    def close(self) -> None:
        """Close the connections."""
        self._features.close()

    def _values(self, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The judge's value of the challenger's and of the champion's list, (U, 2). A user whose features cannot be read
        makes the whole look fail: which users are left out must not depend on them."""
        from orchestration.replaying.answers import judged

        if not records:
            return np.empty((0, 2))
        rows = [self._row(record) for record in records]
        L = self._jury.encoder.schema.list_length
        columns = []
        for name in ("challenger_ids", "champion_ids"):
            lists_RL = np.full((len(rows), L), -1)
            for r, (row, record) in enumerate(zip(rows, records, strict=True)):
                place = {item: c for c, item in enumerate(row.request.candidate_ids)}
                chosen = [place[item] for item in record[name][:L]]
                lists_RL[r, : len(chosen)] = chosen
            columns.append([sum(values or ()) for values in judged(self._jury, rows, lists_RL)])
        return np.array(columns, np.float64).T

    def _row(self, record: Mapping[str, Any]) -> TrainingRow:
        from degre_prod.rows import TrainingRow

        request = _request(record)
        read = self._features.read(request.user_id, request.candidate_ids, request.event_timestamp_us)
        objectives = len(self._jury.encoder.schema.objectives)
        nothing = np.empty(0, np.int64)
        return TrainingRow(request, read.user, read.items, nothing, np.empty((objectives, 0), np.float32), None)


def _request(record: Mapping[str, Any]) -> Request:
    """The request of a served list's record."""
    return Request(
        request_id=record["request_id"],
        user_id=record["user_id"],
        event_timestamp_us=_us(record["event_timestamp"]),
        candidate_ids=record["candidate_ids"],
        context=record["context"],
        scores=record["upstream_scores"],
        candidate_features=record["candidate_features"],
        recent_events=[RecentEvent(e["item_id"], e["type"], _us(e["timestamp"])) for e in record["recent_events"]],
    )


def _us(text: str) -> int:
    return to_us(datetime.fromisoformat(text))
