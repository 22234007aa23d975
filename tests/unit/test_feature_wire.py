"""Bytes that Feast writes, read without it: against Feast's own protobuf classes, and against nonsense."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from degre_prod.errors import FeatureError
from serving import feature_wire as wire

FLOATS = st.floats(width=32, allow_nan=False)


def value(**field: Any) -> bytes:
    from feast.protos.feast.types.Value_pb2 import Value

    return bytes(Value(**field).SerializeToString())


def list_of(kind: str, values: list[Any]) -> Any:
    from feast.protos.feast.types import Value_pb2

    return getattr(Value_pb2, kind)(val=values)


NULL = b"\x98\x01\x00"  # Value(null_val=NULL)


@given(st.lists(st.none() | FLOATS, max_size=6))
def test_floats(values: list[float | None]) -> None:
    column = [None if v is None else value(float_val=v) for v in values]
    expected = np.array([np.nan if v is None else v for v in values], np.float32)
    assert wire.floats(column).tobytes() == expected.tobytes()
    np.testing.assert_array_equal(wire.floats([*column, NULL, value(string_val="x"), b""])[: len(values)], expected)
    assert np.isnan(wire.floats([NULL, value(double_val=2.0), b"", None])).all()


@given(st.lists(st.none() | st.lists(FLOATS, min_size=3, max_size=3), max_size=5))
def test_vectors(values: list[list[float] | None]) -> None:
    column = [None if v is None else value(float_list_val=list_of("FloatList", v)) for v in values]
    expected = np.array([[np.nan] * 3 if v is None else v for v in values], np.float32).reshape(-1, 3)
    np.testing.assert_array_equal(wire.vectors("x", 3, column), expected)
    np.testing.assert_array_equal(wire.vectors("x", 3, [*column, NULL])[: len(values)], expected)


def test_long_vectors_have_long_headers() -> None:
    numbers = np.arange(100, dtype=np.float32)
    column = [value(float_list_val=list_of("FloatList", numbers.tolist()))] * 2
    np.testing.assert_array_equal(wire.vectors("x", 100, column), [numbers, numbers])


@given(st.lists(st.none() | st.text(max_size=200), max_size=5))
def test_strings(values: list[str | None]) -> None:
    assert wire.strings([None if v is None else value(string_val=v) for v in values]) == values


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5), st.lists(st.text(max_size=9), max_size=5))
def test_id_lists(integers: list[int], texts: list[str]) -> None:
    column = [
        value(int64_list_val=list_of("Int64List", integers)),
        value(string_list_val=list_of("StringList", texts)),
        NULL,
        None,
    ]
    assert wire.id_lists(column) == [integers, texts, None, None]


@given(st.integers(0, 4_000_000_000_000_000))
def test_timestamps(us: int) -> None:
    from google.protobuf.timestamp_pb2 import Timestamp

    moment = Timestamp(seconds=us // 1_000_000, nanos=us % 1_000_000 * 1000)
    assert wire.timestamps_us([moment.SerializeToString(), None, b""]).tolist() == [us, 0, 0]


@pytest.mark.parametrize("ids", [[0, -7, 2**62], ["a", "", "é:1", "x" * 300]])
def test_keys_are_those_of_feast(ids: list[Any]) -> None:
    from feast.infra.online_stores.helpers import _mmh3, _redis_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    integers = isinstance(ids[0], int)
    values = [Value(int64_val=i) if integers else Value(string_val=i) for i in ids]
    expected = [_redis_key("degre", EntityKey(join_keys=["item_id"], entity_values=[v])) for v in values]
    assert wire.entity_keys("item", ids, integers=integers) == expected
    assert wire.hash_fields("item_features", ["price"]) == [_mmh3("item_features:price"), b"_ts:item_features"]


@pytest.mark.parametrize("junk", [b"\xff", b"\x12\x05ab", b"\x35\x00", b"\x12\x02\xff\xfe", b"hello"])
def test_nonsense_is_an_error_of_ours(junk: bytes) -> None:
    with pytest.raises(FeatureError, match="did not write"):
        wire.strings([junk])
    with pytest.raises(FeatureError):
        wire.id_lists([b"\x72" + bytes([len(junk)]) + b"\x0a\x7f"])


@given(st.binary(max_size=20))
def test_any_bytes_are_read_or_refused(junk: bytes) -> None:
    for read in (wire.floats, wire.strings, wire.id_lists, wire.timestamps_us, lambda c: wire.vectors("x", 2, c)):
        try:
            read([junk, junk])
        except FeatureError:
            continue
