"""Reading the streams that replicas write: entries in order of their id, from a position on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import redis

from degre_prod.errors import DataError

PAGE = 2000
StreamId = tuple[int, int]  # milliseconds since 1970 by Redis's clock, and a number within the millisecond
ORIGIN: StreamId = (0, 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a stream: its id and the record that was appended."""

    id: StreamId
    record: dict[str, Any]


def parse_id(text: str) -> StreamId:
    """`1700000000000-3` as numbers, which compare as Redis compares them."""
    ms, _, number = text.partition("-")
    return int(ms), int(number or 0)


def id_text(position: StreamId) -> str:
    """The id as Redis writes it."""
    return f"{position[0]}-{position[1]}"


def read_entries(client: redis.Redis, key: str, after: StreamId) -> Iterator[Entry]:
    """Entries later than `after`, oldest first; raises DataError for an entry that no replica could have written."""
    while True:
        page = cast(list[Any], client.xrange(key, min=f"({id_text(after)}", count=PAGE))
        for raw_id, fields in page:
            after = parse_id(raw_id.decode())
            try:
                yield Entry(after, json.loads(fields[b"record"]))
            except (KeyError, ValueError) as error:
                raise DataError(f"entry {id_text(after)} of stream {key} holds no record: {error!r}") from None
        if len(page) < PAGE:
            return


def forget_entries(client: redis.Redis, key: str, up_to: StreamId) -> None:
    """Delete every entry up to and with `up_to`: it is safely on disk. Idempotent."""
    client.xtrim(key, minid=id_text((up_to[0], up_to[1] + 1)), approximate=False)


def entries_added(client: redis.Redis, key: str) -> int | None:
    """How many entries the stream ever took (Redis 7 and later say so; None before, and for a stream that isn't there)."""
    try:
        info = cast(dict[str, Any], client.xinfo_stream(key))
    except redis.ResponseError:
        return None
    return info.get("entries-added")


def waiting(client: redis.Redis, key: str, after: StreamId) -> int:
    """Entries in the stream that are later than `after`."""
    return sum(1 for _ in read_entries(client, key, after))
