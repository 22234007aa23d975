"""The encoder's numeric columns, all at once, against the plain definition of one column."""

from __future__ import annotations

import numpy as np
import pytest

from degre_prod.encoding.columns import CLIP, NumericColumn
from degre_prod.encoding.numeric import NumericBlock
from degre_prod.errors import FeatureError


def one_column(column: NumericColumn, values: np.ndarray) -> np.ndarray:
    """(x - mean) / scale after the transform, clipped, a row 0 where any of it is missing; then the flag."""
    raw = values.reshape(len(values), -1).astype(np.float32)
    missing = np.isnan(raw).any(axis=1)
    if column.transform == "log1p":
        raw = np.sign(raw) * np.log1p(np.abs(raw))
    out = np.clip((raw - np.float32(column.mean)) / np.float32(column.scale), -CLIP, CLIP)
    out[missing] = 0
    return np.concatenate([out, missing[:, None]], axis=1, dtype=np.float32) if column.flag_missing else out


def columns(flags: list[bool]) -> list[NumericColumn]:
    kinds = [("a", "standard", 1), ("b", "log1p", 1), ("c", "standard", 3), ("d", "log1p", 1)]
    return [
        NumericColumn(
            name=name,
            transform="log1p" if transform == "log1p" else "standard",
            mean=tuple(0.1 * i for i in range(size)),
            scale=tuple(0.3 + i for i in range(size)),
            flag_missing=flag,
        )
        for (name, transform, size), flag in zip(kinds, flags, strict=True)
    ]


@pytest.mark.parametrize("flags", [[False] * 4, [True] * 4, [False, True, True, False]])
def test_bit_equal_to_the_columns_one_by_one(flags: list[bool]) -> None:
    rng = np.random.default_rng(0)
    fitted = columns(flags)
    block = NumericBlock(fitted)
    values = {c.name: (rng.normal(size=(40, len(c.mean))) * 50).astype(np.float32).squeeze() for c in fitted}
    for array in values.values():
        array[rng.random(array.shape) < 0.2] = np.nan
        array[3] = np.nan
        array[4] = 0.0
    out = np.full((40, block.width + 1), 7, np.float32)
    absent = block.fill(values, out)
    expected = np.concatenate([one_column(c, values[c.name]) for c in fitted], axis=1)
    assert out[:, : block.width].tobytes() == expected.tobytes()
    assert (out[:, -1] == 7).all()
    every = np.stack([np.isnan(v.reshape(40, -1)).all(axis=1) for v in values.values()]).all(axis=0)
    assert absent.tolist() == every.tolist()
    assert absent[3]


def test_a_group_without_numbers_is_all_absent() -> None:
    assert NumericBlock([]).fill({}, np.zeros((2, 1), np.float32)).tolist() == [True, True]


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(FeatureError, match="b: the encoder needs this column"):
        NumericBlock(columns([False] * 4)).fill({"a": np.zeros(2, np.float32)}, np.zeros((2, 6), np.float32))
