"""How one column becomes numbers: fitted statistics, and their application in float32 numpy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

CLIP = 8.0  # standard deviations; one broken value must not drown the others
MISSING, UNKNOWN = 0, 1  # categorical indices below the vocabulary's


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class NumericColumn(_Frozen):
    """(x - mean) / scale after the transform, 0 where missing; `size` values a row (1, or a vector's length).

    `flag_missing`: a further 0/1 value says that the row is missing (only where training rows were).
    """

    name: str
    transform: Literal["standard", "log1p"] = "standard"
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    flag_missing: bool

    @property
    def width(self) -> int:
        """Values a row."""
        return len(self.mean) + self.flag_missing


class CategoricalColumn(_Frozen):
    """Index into the vocabulary + 2; 0 is missing, 1 is a value training never saw (or saw too rarely)."""

    name: str
    vocabulary: tuple[str, ...]

    @property
    def cardinality(self) -> int:
        """Distinct indices, missing and unknown included."""
        return len(self.vocabulary) + 2

    def lookup(self) -> dict[str, int]:
        """Value → index."""
        return {value: index + 2 for index, value in enumerate(self.vocabulary)}


def as_float(values: Sequence[Any] | np.ndarray) -> np.ndarray:
    """float32 (R,) with None as NaN."""
    if isinstance(values, np.ndarray) and values.dtype == np.float32:
        return values
    return np.array([np.nan if v is None else v for v in values], np.float32)


def fit_numeric(
    name: str, values_RS: np.ndarray, transform: Literal["standard", "log1p"] = "standard"
) -> NumericColumn:
    """Mean and standard deviation per value over the rows that have one; a constant column gets scale 1."""
    values_RS = values_RS.reshape(len(values_RS), -1)
    missing_R = np.isnan(values_RS).any(axis=1)
    present = _transform(values_RS[~missing_R], transform).astype(np.float64)
    size = values_RS.shape[1]
    mean = present.mean(axis=0) if len(present) else np.zeros(size)
    scale = present.std(axis=0) if len(present) else np.ones(size)
    return NumericColumn(
        name=name,
        transform=transform,
        mean=tuple(mean.tolist()),
        scale=tuple(np.where(scale > 1e-6, scale, 1.0).tolist()),
        flag_missing=bool(missing_R.any()),
    )


def fit_categorical(name: str, counts: Counter[str], *, min_count: int = 5, max_size: int = 1000) -> CategoricalColumn:
    """The most frequent values; rarer ones share the unknown index, so that it is trained."""
    kept = sorted((-n, value) for value, n in counts.items() if n >= min_count)[:max_size]
    return CategoricalColumn(name=name, vocabulary=tuple(value for _, value in kept))


def signed_log1p(values: np.ndarray) -> np.ndarray:
    """sign(x) · log(1 + |x|)."""
    return np.sign(values) * np.log1p(np.abs(values))


def _transform(values: np.ndarray, transform: str) -> np.ndarray:
    values = values.astype(np.float32, copy=False)
    return signed_log1p(values) if transform == "log1p" else values
