"""All numeric columns of a group at once: one pass over a matrix instead of a dozen small calls a column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from degre_prod.encoding.columns import CLIP, NumericColumn, signed_log1p
from degre_prod.errors import FeatureError


class NumericBlock:
    """Fitted columns side by side: raw values of width S in, encoded ones of `width` (flags included) out."""

    def __init__(self, columns: Sequence[NumericColumn]) -> None:
        self._columns: list[tuple[str, int, int]] = []  # name, first and last + 1 of its raw values
        self._vectors: list[tuple[int, int]] = []
        value_at: list[int] = []
        flag_at: list[int] = []
        flagged: list[int] = []
        log1p: list[int] = []
        S = self.width = 0
        for c in columns:
            size = len(c.mean)
            self._columns.append((c.name, S, S + size))
            if size > 1:
                self._vectors.append((S, S + size))
            if c.transform == "log1p":
                log1p += range(S, S + size)
            value_at += range(self.width, self.width + size)
            if c.flag_missing:
                flag_at.append(self.width + size)
                flagged.append(S)
            S += size
            self.width += c.width
        self._raw_width = S
        self._log1p = log1p
        self._flag_at, self._flagged = flag_at, flagged
        self._value_at = value_at if flag_at else slice(0, S)
        self._mean = np.array([m for c in columns for m in c.mean], np.float32)
        self._scale = np.array([s for c in columns for s in c.scale], np.float32)

    def fill(self, values: Mapping[str, Any], out_RW: np.ndarray) -> np.ndarray:
        """Write the encoded columns into the first `width` of `out_RW`; returns bool (R,): every raw value missing.

        `values` are float32 (R,) or (R, size) by name, NaN for missing: (x - mean) / scale after the transform, clipped, 0
        where missing (a vector as a whole). Raises FeatureError for a column that is not there.
        """
        raw = np.empty((len(out_RW), self._raw_width), np.float32)
        for name, first, last in self._columns:
            column = values.get(name)
            if not isinstance(column, np.ndarray):
                raise FeatureError(f"{name}: the encoder needs this column, float32")
            if last - first == 1:
                raw[:, first] = column.reshape(-1)
            else:
                raw[:, first:last] = column
        missing: np.ndarray = np.isnan(raw)
        absent: np.ndarray = np.logical_and.reduce(missing, axis=1)
        for first, last in self._vectors:
            missing[:, first:last] = missing[:, first:last].any(axis=1, keepdims=True)
        if self._log1p:
            raw[:, self._log1p] = signed_log1p(raw[:, self._log1p])
        raw -= self._mean
        raw /= self._scale
        np.minimum(raw, np.float32(CLIP), out=raw)
        np.maximum(raw, np.float32(-CLIP), out=raw)
        raw[missing] = 0.0
        out_RW[:, self._value_at] = raw
        if self._flag_at:
            out_RW[:, self._flag_at] = missing[:, self._flagged]
        return absent
