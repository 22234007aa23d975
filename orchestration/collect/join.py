"""Served lists and their feedback, joined in a window by event time. Pure: no Redis, no files, no clock.

Rules
- A list's own events are those of its request_id whose time lies in [served, served + window]; a moment before the list
  (clocks differ) is allowed. A delivery without events has no event time: its arrival counts. Anything else that comes
  for a list is *late*, and so is what arrives after the list was written.
- What was shown is what the application said last (`shown_ids`); without that, the list that was served.
- A list that no delivery within the window confirmed counts as unconfirmed: kept, never trained on.
- An event_id counts once, however often it is delivered; the repeats are *duplicated*. A delivery without events is one
  unit, its repeats are duplicated.
- An event that names an item which was not shown, an objective that schema.yaml lacks, or a list that nobody served, is
  *orphaned*.
- An entry that is no record, or a list that does not fit the columns of schema.yaml, is *rejected*: set aside with the
  reason. Feedback of such a list is orphaned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from orchestration.collect.streams import Entry, moment

EARLY_S = 60.0  # how far an application's clock may be behind ours


@dataclass(frozen=True, slots=True)
class Counts:
    """Units of feedback by what became of them, and served entries. The four fates sum to the units received; `rejected`
    are entries of either kind that could not be used."""

    joined: int = 0
    late: int = 0
    orphaned: int = 0
    duplicated: int = 0
    served: int = 0
    served_duplicated: int = 0
    confirmed: int = 0
    rejected: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in Counts.__dataclass_fields__})

    def __sub__(self, other: Counts) -> Counts:
        return Counts(**{name: getattr(self, name) - getattr(other, name) for name in Counts.__dataclass_fields__})

    @property
    def feedback(self) -> int:
        """Units of feedback received."""
        return self.joined + self.late + self.orphaned + self.duplicated


@dataclass(frozen=True, slots=True)
class Joined:
    """A row of the impression log, the event ids it has used up, and the fate of its feedback."""

    row: dict[str, Any]
    event_ids: tuple[str, ...]
    counts: Counts


def units(delivery: Mapping[str, Any]) -> int:
    """Units of feedback in one delivery: its events, or one when it only says what was shown."""
    return len(delivery["events"]) or 1


@dataclass
class _Fates:
    joined: int = 0
    late: int = 0
    orphaned: int = 0
    duplicated: int = 0
    seen: set[str] = field(default_factory=set)


def join(served: Entry, deliveries: Sequence[Entry], objectives: Sequence[str], window_s: float) -> Joined:
    """One row from a served list and every delivery for it, in the order of arrival."""
    record = served.record
    began = moment(record["event_timestamp"])
    shown = list(record["shown_ids"])
    fates = _Fates()
    in_time: list[dict[str, Any]] = []
    confirmations = [d for d in deliveries if not d.record["events"]]
    arrived = served.id[0]
    confirmed = False
    for delivery in deliveries:
        on_time = [e for e in delivery.record["events"] if _in_window(began, e["timestamp"], window_s)]
        if on_time or (not delivery.record["events"] and _arrived(served, delivery, window_s)):
            confirmed = True
            arrived = max(arrived, delivery.id[0])
            if delivery.record["shown_ids"] is not None:
                shown = list(delivery.record["shown_ids"])
        for event in delivery.record["events"]:
            if event["event_id"] in fates.seen:
                fates.duplicated += 1
                continue
            fates.seen.add(event["event_id"])
            if event in on_time:
                in_time.append(event)
            else:
                fates.late += 1
    marks = {name: set[Any]() for name in objectives}
    for event in in_time:
        if event["id"] in shown and event["type"] in marks:
            marks[event["type"]].add(event["id"])
            fates.joined += 1
        else:
            fates.orphaned += 1
    if confirmations:
        on_time_count = sum(_arrived(served, d, window_s) for d in confirmations)
        fates.joined += min(on_time_count, 1)
        fates.duplicated += max(on_time_count - 1, 0)
        fates.late += len(confirmations) - on_time_count
    as_served = shown == list(record["shown_ids"])
    row = {
        **{name: value for name, value in record.items() if name not in ("shown_ids", "degraded")},
        "event_timestamp": began,
        "recent_events": [{**e, "timestamp": moment(e["timestamp"])} for e in record.get("recent_events", ())],
        "shown_ids": shown,
        "feedback": {name: [1.0 if item in marks[name] else 0.0 for item in shown] for name in objectives},
        "propensity": record.get("propensity") if as_served else None,
        "list_propensity": record.get("list_propensity") if as_served else None,
        "confirmed": confirmed,
        "arrived_ms": arrived,
    }
    counts = Counts(
        joined=fates.joined,
        late=fates.late,
        orphaned=fates.orphaned,
        duplicated=fates.duplicated,
        served=1,
        confirmed=int(confirmed),
    )
    return Joined(row, tuple(sorted(fates.seen)), counts)


def without_list(delivery: Mapping[str, Any], known_events: frozenset[str] | None) -> Counts:
    """The fate of a delivery whose list is not at hand: `known_events` are those of a list already written (its
    repeats are duplicated, the rest late), None when nobody served such a list (orphaned)."""
    if known_events is None:
        return Counts(orphaned=units(delivery))
    again = sum(event["event_id"] in known_events for event in delivery["events"])
    return Counts(duplicated=again, late=units(delivery) - again)


def _arrived(served: Entry, delivery: Entry, window_s: float) -> bool:
    """Whether a delivery without events, which has no event time, came within the window by Redis's clock."""
    return delivery.id[0] - served.id[0] <= window_s * 1000


def _in_window(began: datetime, when: str, window_s: float) -> bool:
    return -EARLY_S <= (moment(when) - began).total_seconds() <= window_s
