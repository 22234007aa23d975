"""The feedback of a simulated day, with everything that goes wrong in deliveries, each with the fate it must meet.

Most lists get one delivery: what was shown and what was clicked. By lot some of them
    twice         deliver it again at once                                        → the repeat is duplicated
    out of time   come with events of long after the list                         → late
    next day      come after the list was written                                 → late
    again         are repeated on the next day: duplicated, or late where there is no event to know it by
    stranger      are joined by a delivery for a list that nobody served          → orphaned
    not shown     report an event with an item that was not in the list as well   → orphaned
Everything goes out shuffled: feedback never comes in the order of its lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np

from serving.protocol import FeedbackEvent, FeedbackRequest

FATES: Final = ("joined", "late", "orphaned", "duplicated")
DISORDER: Final = {
    "twice": 0.02,
    "out_of_time": 0.01,
    "next_day": 0.01,
    "again": 0.01,
    "stranger": 0.01,
    "not_shown": 0.01,
}
_AFTER_CLICK = timedelta(seconds=5)  # between two clicks of a list


@dataclass(frozen=True)
class Delivery:
    """What is posted, and how many of its units must meet each fate."""

    body: FeedbackRequest
    fates: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"body": self.body.model_dump(mode="json"), "fates": self.fates}

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Delivery:
        """What `to_json` gave."""
        return cls(FeedbackRequest.model_validate_json(_text(raw["body"])), dict(raw["fates"]))


@dataclass(frozen=True)
class Shown:
    """One served list and what came of it."""

    request_id: str
    moment: datetime
    candidate_ids: Sequence[int]
    shown_ids: Sequence[int]
    clicked: Sequence[bool]

    @property
    def clicked_ids(self) -> list[int]:
        """The clicked items in the order of the list."""
        return [item for item, click in zip(self.shown_ids, self.clicked, strict=True) if click]


@dataclass(frozen=True)
class Posts:
    """Deliveries of a day's lists: what is posted that day, and what only the next day; `kept`: the lists whose feedback
    comes in time, so that they can be trained on."""

    today: list[Delivery]
    tomorrow: list[Delivery]
    kept: frozenset[str]


def posts(lists: Sequence[Shown], window: timedelta, random: np.random.Generator) -> Posts:
    """The deliveries of a day. `window`: what is later than this after its list is late."""
    today: list[Delivery] = []
    tomorrow: list[Delivery] = []
    kept: set[str] = set()
    bounds = np.cumsum(list(DISORDER.values()))
    for of, lot in zip(lists, random.random(len(lists)), strict=True):
        which = int(np.searchsorted(bounds, lot, side="right"))
        kind = list(DISORDER)[which] if which < len(DISORDER) else ""
        if kind == "out_of_time" and of.clicked_ids:
            body = _body(of, of.moment + window + timedelta(hours=1))
            today.append(Delivery(body, {"late": len(body.events)}))
            continue
        body = _body(of, of.moment)
        units = len(body.events) or 1
        if kind == "next_day":
            tomorrow.append(Delivery(body, {"late": units}))
            continue
        kept.add(of.request_id)
        fates = {"joined": units}
        if kind == "not_shown":
            body, fates = _with_unshown(of, body)
        today.append(Delivery(body, fates))
        if kind == "twice":
            today.append(Delivery(body, {"duplicated": units}))
        elif kind == "again":
            tomorrow.append(Delivery(body, {"duplicated" if body.events else "late": units}))
        elif kind == "stranger":
            today.append(Delivery(_stranger(of), {"orphaned": 1}))
    order = random.permutation(len(today))
    return Posts([today[i] for i in order], tomorrow, frozenset(kept))


def _body(of: Shown, began: datetime) -> FeedbackRequest:
    events = [
        FeedbackEvent(
            event_id=f"{of.request_id}-{item}", id=item, type="click", timestamp=began + _AFTER_CLICK * (n + 1)
        )
        for n, item in enumerate(of.clicked_ids)
    ]
    return FeedbackRequest(request_id=of.request_id, shown_ids=list(of.shown_ids), events=events)


def _with_unshown(of: Shown, body: FeedbackRequest) -> tuple[FeedbackRequest, dict[str, int]]:
    item = next(c for c in of.candidate_ids if c not in of.shown_ids)
    event = FeedbackEvent(event_id=f"{of.request_id}-{item}", id=item, type="click", timestamp=of.moment + _AFTER_CLICK)
    fates = {"joined": len(body.events), "orphaned": 1}
    return body.model_copy(update={"events": [*body.events, event]}), fates


def _stranger(of: Shown) -> FeedbackRequest:
    request_id, item = f"stranger-{of.request_id}", of.shown_ids[0]
    event = FeedbackEvent(event_id=f"{request_id}-{item}", id=item, type="click", timestamp=of.moment + _AFTER_CLICK)
    return FeedbackRequest(request_id=request_id, events=[event])


def _text(raw: Any) -> str:
    import json

    return json.dumps(raw)
