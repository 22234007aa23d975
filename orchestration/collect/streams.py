"""Reading the streams that replicas write: entries in order of their id, from a position on.

An entry that cannot be used, because it is no record or one of another version, is handed on with the reason: it must
be set aside, or it would stop everything behind it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import redis

from serving.event_log import added_key, shard_key

PAGE = 2000
StreamId = tuple[int, int]  # milliseconds since 1970 by Redis's clock, and a number within the millisecond
ORIGIN: StreamId = (0, 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a stream: its id and the record that was appended; `problem`: why the record cannot be used."""

    id: StreamId
    record: dict[str, Any]
    text: str = ""
    problem: str | None = None


def parse_id(text: str) -> StreamId:
    """`1700000000000-3` as numbers, which compare as Redis compares them."""
    ms, _, number = text.partition("-")
    return int(ms), int(number or 0)


def id_text(position: StreamId) -> str:
    """The id as Redis writes it."""
    return f"{position[0]}-{position[1]}"


def served_entries(client: redis.Redis, shard: int, after: StreamId, *, up_to_ms: int | None = None) -> Iterator[Entry]:
    """Served lists later than `after`, oldest first, up to and with `up_to_ms`."""
    return _entries(client, shard_key("served", shard), after, up_to_ms, _check_served)


def feedback_entries(client: redis.Redis, shard: int, after: StreamId) -> Iterator[Entry]:
    """Feedback deliveries later than `after`, oldest first."""
    return _entries(client, shard_key("feedback", shard), after, None, _check_feedback)


def ids_up_to(client: redis.Redis, key: str, last: StreamId) -> Iterator[StreamId]:
    """Ids of the entries up to and with `last`."""
    return (found for found, _ in _raw(client, key, ORIGIN, id_text(last)))


def forget_entries(client: redis.Redis, key: str, up_to: StreamId) -> None:
    """Delete every entry up to and with `up_to`: it is safely on disk. Idempotent."""
    client.xtrim(key, minid=id_text((up_to[0], up_to[1] + 1)), approximate=False)


def appended_and_held(client: redis.Redis, kind: str, shard: int) -> tuple[int | None, int]:
    """How many entries replicas ever appended (None when there are entries and nobody counted them) and how many there are
    now, both of one moment: one appended in between would look lost."""
    key = shard_key(kind, shard)
    with client.pipeline(transaction=True) as pipeline:
        counted, there, held = pipeline.get(added_key(kind, shard)).exists(key).xlen(key).execute()
    if counted is None:
        return None if there else 0, held
    return int(counted), held


def last_ms(client: redis.Redis, shard: int) -> int:
    """Milliseconds of the newest entry of a shard's two streams, 0 for empty ones."""
    newest = 0
    for kind in ("served", "feedback"):
        for raw_id, _ in cast(list[Any], client.xrevrange(shard_key(kind, shard), count=1)):
            newest = max(newest, parse_id(raw_id.decode())[0])
    return newest


def moment(text: str) -> datetime:
    """An ISO 8601 time; raises ValueError without a zone, TypeError for anything but text."""
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"time without a zone: {text}")
    return found


def _entries(
    client: redis.Redis, key: str, after: StreamId, up_to_ms: int | None, check: Callable[[Mapping[str, Any]], None]
) -> Iterator[Entry]:
    for found, fields in _raw(client, key, after, "+" if up_to_ms is None else str(up_to_ms)):
        text = fields.get(b"record", b"").decode(errors="replace")
        try:
            record = json.loads(text)
            check(record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            yield Entry(found, {}, text, f"no record of {key.split(':')[1]}: {error!r}")
        else:
            yield Entry(found, record, text)


def _raw(client: redis.Redis, key: str, after: StreamId, end: str) -> Iterator[tuple[StreamId, dict[bytes, bytes]]]:
    while True:
        page = cast(list[Any], client.xrange(key, min=f"({id_text(after)}", max=end, count=PAGE))
        for raw_id, fields in page:
            after = parse_id(raw_id.decode())
            yield after, fields
        if len(page) < PAGE:
            return


def _check_served(record: Mapping[str, Any]) -> None:
    """Raises what a record lacks for being joined; the columns' types are checked when it is written."""
    _text(record["request_id"])
    _id(record["user_id"])
    moment(record["event_timestamp"])
    for name in ("candidate_ids", "shown_ids", "recent_events"):
        _list(record[name])
    for event in record["recent_events"]:
        _id(event["item_id"])
        _text(event["type"])
        moment(event["timestamp"])


def _check_feedback(record: Mapping[str, Any]) -> None:
    _text(record["request_id"])
    if record["shown_ids"] is not None:
        _list(record["shown_ids"])
    _list(record["events"])
    for event in record["events"]:
        _text(event["event_id"])
        _text(event["type"])
        _id(event["id"])
        moment(event["timestamp"])


def _text(value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"text is needed, not {value!r}")


def _id(value: object) -> None:
    if not isinstance(value, int | str):
        raise TypeError(f"an id is needed, not {value!r}")


def _list(value: object) -> None:
    if not isinstance(value, list):
        raise TypeError(f"a list is needed, not {value!r}")
