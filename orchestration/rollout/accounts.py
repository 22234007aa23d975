"""Users' figures in the running experiment, kept from the served and feedback streams as they grow.

Of every user and stage: arm, requests, feedback events, fallbacks, errors, slow answers, and what the user did in shadow
(the covariates of CUPED, from before anyone saw the challenger). The arms' moments change by what a user's row changes.
Positions in the streams, rows and moments are written in one transaction, which fails unless the lease is held and the
positions are still those that were read: killed anywhere, the next pass goes on, and nothing counts twice.

A list and its feedback share a shard. Feedback waits `SETTLE_S` in the stream, so that its list has been read before it.
Redis holds one entry a request until the feedback window is over, and one a user and stage (about 100 bytes each).
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import numpy as np
import redis

from degre_prod.errors import MismatchError
from degre_prod.experiments.moments import moments_of
from orchestration.collect.streams import Entry, StreamId, id_text, parse_id
from orchestration.rollout.sums import METRICS, PRIMARY, state_key, users_key
from serving.event_log import SHARDS, shard_key
from serving.experiment import Experiment
from serving.looks import PREFIX
from serving.plan_store import LEASE_KEY

BATCH = 2000  # entries of a stream in one transaction
SETTLE_S = 1.0
ERRORS = ("model_error", "engine_stuck")


@dataclass(slots=True)
class Row:
    """One user's figures in one stage; `before`: events and requests in shadow."""

    arm: str
    requests: float = 0
    events: float = 0
    fallback: float = 0
    error: float = 0
    p99: float = 0
    before: tuple[float, float] = (0, 0)

    def text(self) -> str:
        """Compact JSON."""
        return json.dumps([self.arm, self.requests, self.events, self.fallback, self.error, self.p99, *self.before])


@dataclass(slots=True)
class _Pass:
    """What one transaction writes."""

    positions: dict[str, str] = field(default_factory=dict)
    requests: dict[str, list[Any]] = field(default_factory=dict)  # request id → user, stage, arm, event ids
    rows: dict[tuple[str, str], Row] = field(default_factory=dict)  # (stage, user) →
    before: dict[tuple[str, str], Row | None] = field(default_factory=dict)  # the same as they were read
    crossed: int = 0


class Accounts:
    """The accounts of one experiment. `began`: when it did; `lease`: the token under which they may be written."""

    def __init__(self, client: redis.Redis, experiment: Experiment, began: datetime, lease: str) -> None:
        self._client, self._experiment, self._lease = client, experiment, lease
        self._first: StreamId = (int(began.timestamp() * 1000), 0)
        self._state = state_key(experiment.id)
        self._slow_ms = next((g.bound_ms for g in experiment.guardrails if g.bound_ms is not None), None)
        self._shadow = next((s.name for s in experiment.stages if s.share == 0), None)
        self._window_s = max(int(experiment.primary.window_seconds), 1)

    def catch_up(self) -> int:
        """Take in what the streams hold; returns how many lists counted. Raises MismatchError when the lease is lost."""
        taken = 0
        for shard in range(SHARDS):
            while True:
                count, more = self._advance(shard)
                taken += count
                if not more:
                    break
        return taken

    def _advance(self, shard: int) -> tuple[int, bool]:
        """One transaction of one shard: how many lists counted, and whether there is more."""
        known = cast(list[bytes | None], self._client.hmget(self._state, [f"served:{shard}", f"feedback:{shard}"]))
        served_at, feedback_at = (self._first if text is None else parse_id(text.decode()) for text in known)
        served = _page(self._client, shard_key("served", shard), served_at)
        seconds, micros = cast(tuple[int, int], self._client.time())
        last_ms = int(seconds * 1000 + micros // 1000 - SETTLE_S * 1000)
        if len(served) == BATCH:  # feedback must not overtake its lists
            last_ms = min(last_ms, served[-1].id[0] - 1)
        feedback = _page(self._client, shard_key("feedback", shard), feedback_at, last_ms)
        if not served and not feedback:
            return 0, False
        change = _Pass()
        if served:
            change.positions[f"served:{shard}"] = id_text(served[-1].id)
        if feedback:
            change.positions[f"feedback:{shard}"] = id_text(feedback[-1].id)
        counted = self._take_served(served, change)
        self._take_feedback(feedback, change)
        expected = {f"served:{shard}": id_text(served_at), f"feedback:{shard}": id_text(feedback_at)}
        self._commit(change, expected)
        return counted, BATCH in (len(served), len(feedback))

    def _take_served(self, entries: Sequence[Entry], change: _Pass) -> int:
        ours = [e.record for e in entries if _experiment_of(e.record) == self._experiment.id]
        again = self._read_requests({r["request_id"] for r in ours})
        self._read_rows({(r["exposure"][1], pseudonym(r["user_id"])) for r in ours}, change)
        counted = 0
        for record in ours:
            request_id, user, stage = record["request_id"], pseudonym(record["user_id"]), record["exposure"][1]
            if request_id in again or request_id in change.requests:  # appended again after a reply was lost
                continue
            row = change.rows.get((stage, user))
            if row is None:
                row = change.rows[stage, user] = Row(record["arm"], before=self._covariates(stage, user, change))
            elif row.arm != record["arm"]:
                change.crossed += 1
                continue
            row.requests += 1
            row.fallback += record["source"].startswith("fallback")
            row.error += any(reason in ERRORS for reason in record["degraded"])
            row.p99 += self._slow_ms is not None and (record.get("took_ms") or 0.0) > self._slow_ms
            change.requests[request_id] = [user, stage, record["arm"], []]
            counted += 1
        return counted

    def _take_feedback(self, entries: Sequence[Entry], change: _Pass) -> None:
        entries = [e for e in entries if {"request_id", "events"} <= e.record.keys()]
        known = self._read_requests({e.record["request_id"] for e in entries} - change.requests.keys())
        change_rows = {(stage, user) for user, stage, _, _ in known.values()}
        self._read_rows(change_rows, change)
        for entry in entries:
            request_id = entry.record["request_id"]
            request = change.requests.get(request_id) or known.get(request_id)
            if request is None:
                continue
            user, stage, _, seen = request
            row = change.rows.get((stage, user))
            events = [e["event_id"] for e in entry.record["events"] if e["type"] == self._experiment.primary.objective]
            fresh = [event for event in dict.fromkeys(events) if event not in seen]
            if row is not None and fresh:
                row.events += len(fresh)
                change.requests[request_id] = [*request[:3], [*seen, *fresh]]

    def _read_requests(self, ids: Iterable[str]) -> dict[str, list[Any]]:
        names = sorted(ids)
        if not names:
            return {}
        texts = cast(list[bytes | None], self._client.mget([self._request_key(i) for i in names]))
        return {name: json.loads(text) for name, text in zip(names, texts, strict=True) if text is not None}

    def _read_rows(self, wanted: Iterable[tuple[str, str]], change: _Pass) -> None:
        """Rows of these users, and those of the same users in shadow, into `change`."""
        by_stage: dict[str, set[str]] = defaultdict(set)
        for stage, user in wanted:
            by_stage[stage].add(user)
            if self._shadow is not None:
                by_stage[self._shadow].add(user)
        for stage, users in by_stage.items():
            names = sorted(u for u in users if (stage, u) not in change.before)
            if not names:
                continue
            texts = cast(list[bytes | None], self._client.hmget(users_key(self._experiment.id, stage), names))
            for user, text in zip(names, texts, strict=True):
                change.before[stage, user] = _row(text)
                if text is not None:
                    change.rows[stage, user] = cast(Row, _row(text))

    def _covariates(self, stage: str, user: str, change: _Pass) -> tuple[float, float]:
        if self._shadow is None or stage == self._shadow:
            return (0, 0)
        row = change.rows.get((self._shadow, user))
        return (0, 0) if row is None else (row.events, row.requests)

    def _commit(self, change: _Pass, expected: Mapping[str, str]) -> None:
        """Write it all or nothing; raises MismatchError when the lease or a position has changed hands."""
        with self._client.pipeline() as pipeline:
            try:
                pipeline.watch(LEASE_KEY, self._state)
                if pipeline.get(LEASE_KEY) != self._lease.encode():
                    raise MismatchError("another controller holds the lease on the rollout plan")
                for name, position in expected.items():
                    there = pipeline.hget(self._state, name)
                    if (id_text(self._first) if there is None else there.decode()) != position:
                        raise MismatchError("the experiment's accounts were changed meanwhile")
                pipeline.multi()
                pipeline.hset(self._state, mapping=change.positions)
                for request_id, request in change.requests.items():
                    pipeline.set(self._request_key(request_id), json.dumps(request), ex=self._window_s)
                changed = {k: row for k, row in change.rows.items() if row != change.before.get(k)}
                for (stage, user), row in changed.items():
                    pipeline.hset(users_key(self._experiment.id, stage), user, row.text())
                for name, amount in _difference(change.before, changed).items():
                    pipeline.hincrbyfloat(self._state, name, amount)
                if change.crossed:
                    pipeline.hincrby(self._state, "crossed", change.crossed)
                pipeline.execute()
            except redis.WatchError:
                raise MismatchError("the experiment's accounts were changed meanwhile") from None

    def _request_key(self, request_id: str) -> str:
        return f"{PREFIX}{self._experiment.id}:request:{request_id}"


def _difference(before: Mapping[tuple[str, str], Row | None], after: Mapping[tuple[str, str], Row]) -> dict[str, float]:
    """By how much the flat moments change, by `stage|arm|metric|name`."""
    groups: dict[tuple[str, str], list[tuple[Row | None, Row]]] = defaultdict(list)
    for (stage, user), row in after.items():
        groups[stage, row.arm].append((before.get((stage, user)), row))
    out: dict[str, float] = {}
    for (stage, arm), pairs in groups.items():
        old, new = [o for o, _ in pairs if o is not None], [n for _, n in pairs]
        for metric in (PRIMARY, *METRICS):
            was, now = _flat(old, metric), _flat(new, metric)
            for name, value in now.items():
                # The first users write every name, zeros too: which there are says how many columns there are.
                if (amount := value - was.get(name, 0.0)) or len(old) < len(new):
                    out[f"{stage}|{arm}|{metric}|{name}"] = amount
    return out


def _flat(rows: Sequence[Row], metric: str) -> dict[str, float]:
    if not rows:
        return {}
    numerator = np.array([row.events if metric == PRIMARY else getattr(row, metric) for row in rows], np.float64)
    covariates = np.array([row.before for row in rows], np.float64) if metric == PRIMARY else None
    return moments_of(numerator, np.array([row.requests for row in rows], np.float64), covariates).flat()


def _row(text: bytes | None) -> Row | None:
    if text is None:
        return None
    arm, *figures = json.loads(text)
    requests, events, fallback, error, p99, *before = figures
    return Row(arm, requests, events, fallback, error, p99, (before[0], before[1]))


def _page(client: redis.Redis, key: str, after: StreamId, last_ms: int | None = None) -> list[Entry]:
    """At most BATCH entries later than `after`, up to the millisecond `last_ms`."""
    if last_ms is not None and last_ms < after[0]:
        return []
    most = "+" if last_ms is None else str(last_ms)
    page = cast(list[Any], client.xrange(key, min=f"({id_text(after)}", max=most, count=BATCH))
    return [Entry(parse_id(raw.decode()), _record(fields)) for raw, fields in page]


def _record(fields: Mapping[bytes, bytes]) -> dict[str, Any]:
    """What an entry holds; nothing for one that no replica wrote, which must not stop those behind it."""
    try:
        record = json.loads(fields[b"record"])
    except (KeyError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _experiment_of(record: Mapping[str, Any]) -> str | None:
    """The experiment that a served list counts in."""
    exposure = record.get("exposure")
    return exposure[0] if isinstance(exposure, list) and len(exposure) == 2 else None


def pseudonym(user_id: int | str) -> str:
    """Enough to tell users apart; the accounts need not say who they are."""
    return hashlib.blake2b(str(user_id).encode(), digest_size=12).hexdigest()
