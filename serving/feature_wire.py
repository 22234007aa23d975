"""What Feast writes into Redis, byte for byte: keys of entities, names of hash fields, protobuf values.

Read here without Feast (seconds to import) and without protobuf objects (most of the time of a read). A contract test
holds the result equal to Feast's own reading.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

import numpy as np

from degre_prod.errors import FeatureError
from degre_prod.requests import Id

# Numbers of feast.types.Value's fields, and of its ValueType.
STRING, FLOAT, STRING_LIST, INT64_LIST, FLOAT_LIST = 2, 6, 12, 14, 16
_STRING_TYPE, _INT64_TYPE = 2, 4
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

_MISSING_FLOAT = bytes([FLOAT << 3 | _FIXED32]) + np.array(np.nan, "<f4").tobytes()

Raw = bytes | None


def entity_keys(role: str, ids: Sequence[Id], *, integers: bool) -> list[bytes]:
    """Redis keys of users or items (`role`) of the project in feature_store.yaml; version 3 of Feast's serialisation."""
    name = f"{role}_id".encode()
    head = struct.pack("<III", 1, _STRING_TYPE, len(name)) + name
    tail = _project()
    if integers:
        head += struct.pack("<II", _INT64_TYPE, 8)
        return [head + int(one).to_bytes(8, "little", signed=True) + tail for one in ids]
    texts = (str(one).encode() for one in ids)
    return [head + struct.pack("<II", _STRING_TYPE, len(text)) + text + tail for text in texts]


def hash_fields(view: str, features: Sequence[str]) -> list[bytes]:
    """Names of the hash fields of these features, and last that of the event timestamp."""
    import mmh3

    return [*(struct.pack("<I", mmh3.hash(f"{view}:{f}", signed=False)) for f in features), f"_ts:{view}".encode()]


def timestamps_us(column: Sequence[Raw]) -> np.ndarray:
    """int64 (R,): µs since 1970 of google.protobuf.Timestamp values; 0 where there is none (an entity never written)."""
    return np.array([_timestamp_us(value) if value else 0 for value in column], np.int64)


def floats(column: Sequence[Raw]) -> np.ndarray:
    """float32 (R,); NaN where missing."""
    values = [value or _MISSING_FLOAT for value in column]
    if len(values) == 1 and len(values[0]) == 5 and values[0][0] == _MISSING_FLOAT[0]:  # the user
        return np.frombuffer(values[0], "<f4", offset=1)
    rows = _rows(values, _MISSING_FLOAT[:1], 4)
    if rows is not None:
        return rows.view("<f4")[:, 0]
    payloads = (_value(value, FLOAT) for value in values)
    return np.array([np.nan if p is None else struct.unpack("<f", p)[0] for p in payloads], np.float32)


def vectors(name: str, size: int, column: Sequence[Raw]) -> np.ndarray:
    """float32 (R, size); a row of NaN where missing. Raises FeatureError for a vector of another size."""
    missing = np.full(size, np.nan, "<f4").tobytes()
    inner = bytes([1 << 3 | _LENGTH]) + _varint(4 * size)
    header = _varint(FLOAT_LIST << 3 | _LENGTH) + _varint(len(inner) + 4 * size) + inner
    values = [value or header + missing for value in column]
    if len(values) == 1 and len(values[0]) == len(header) + 4 * size and values[0].startswith(header):  # the user
        return np.frombuffer(values[0], "<f4", offset=len(header))[None]
    rows = _rows(values, header, 4 * size)
    if rows is not None:
        return rows.view("<f4")
    parts = []
    for value in column:
        payload = _value(value, FLOAT_LIST) if value else None
        part = missing if payload is None else b"".join(p for _, p in _fields(payload) if isinstance(p, bytes))
        if len(part) != 4 * size:
            raise FeatureError(f"{name}: a vector of {len(part) // 4}, schema.yaml says {size}")
        parts.append(part)
    return np.frombuffer(b"".join(parts), "<f4").reshape(-1, size)


def strings(column: Sequence[Raw]) -> list[str | None]:
    """One string or None a row."""
    return [_string(value) if value else None for value in column]


def id_lists(column: Sequence[Raw]) -> list[list[Id] | None]:
    """One list of ids or None a row."""
    return [_id_list(value) if value else None for value in column]


@cache
def _project() -> bytes:
    import yaml

    return str(yaml.safe_load(files("feature_repo").joinpath("feature_store.yaml").read_text())["project"]).encode()


def _rows(values: Sequence[bytes], header: bytes, size: int) -> np.ndarray | None:
    """uint8 (R, size): what follows the header, when all values have just that form; else None."""
    width = len(header) + size
    joined = b"".join(values)
    if len(joined) != width * len(values) or any(len(value) != width for value in values):
        return None
    rows = np.frombuffer(joined, np.uint8).reshape(len(values), width)
    if not (rows[:, : len(header)] == np.frombuffer(header, np.uint8)).all():
        return None
    return np.ascontiguousarray(rows[:, len(header) :])


def _timestamp_us(value: bytes) -> int:
    parts = dict(_fields(value))
    seconds, nanos = parts.get(1, 0), parts.get(2, 0)
    if not isinstance(seconds, int) or not isinstance(nanos, int):
        raise _broken()
    return _signed(seconds) * 1_000_000 + nanos // 1000


@lru_cache(maxsize=65_536)  # categories are few and come again and again
def _string(value: bytes) -> str | None:
    payload = _value(value, STRING)
    try:
        return None if payload is None else payload.decode()
    except UnicodeDecodeError:
        raise _broken() from None


def _id_list(value: bytes) -> list[Id] | None:
    integers = _value(value, INT64_LIST)
    if integers is not None:
        found: list[Id] = []
        for _, part in _fields(integers):
            found += _varints(part) if isinstance(part, bytes) else [_signed(part)]
        return found
    texts = _value(value, STRING_LIST)
    if texts is None:
        return None
    try:
        return [part.decode() for _, part in _fields(texts) if isinstance(part, bytes)]
    except UnicodeDecodeError:
        raise _broken() from None


def _value(value: bytes, number: int) -> bytes | None:
    """The payload of a Value when it holds field `number`; None when it holds another one (null) or none."""
    payload: Any = None
    for found, part in _fields(value):  # of a oneof the last one counts
        payload = part if found == number and isinstance(part, bytes) else None
    return payload


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and payloads: an int for a varint, bytes for the rest. Raises FeatureError."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        kind = tag & 7
        if kind == _VARINT:
            number, at = _read_varint(message, at)
            yield tag >> 3, number
            continue
        if kind == _LENGTH:
            length, at = _read_varint(message, at)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        else:
            raise _broken()
        if at + length > len(message):
            raise _broken()
        yield tag >> 3, message[at : at + length]
        at += length


def _varints(payload: bytes) -> Iterator[int]:
    at = 0
    while at < len(payload):
        number, at = _read_varint(payload, at)
        yield _signed(number)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise _broken()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _broken() -> FeatureError:
    return FeatureError("Redis holds feature values that Feast did not write")
