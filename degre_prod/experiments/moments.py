"""What is kept of an arm's users: their number, the sums of each column and of all products. Looking again costs O(1).

Columns of a user (K of them): numerator x, denominator y, then covariates from before the experiment, if there are any.
A user who comes again changes their row, and the sums by the difference (`change`). Everything adds up: over replicas,
over shards, over time. Arrays may have trailing axes (looks, simulations), so that thousands of looks are one call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from degre_prod.errors import DataError

NUMERATOR, DENOMINATOR, COVARIATES = 0, 1, 2
"""Indices of the columns; covariates are COVARIATES and after."""

Row = Sequence[float]
"""(x, y, covariates…) of one user."""


@dataclass(frozen=True, slots=True)
class Moments:
    """`count`: users, (...); `sums_K`: (K, ...); `products_KK`: Σ over users of the products of two columns, (K, K, ...)."""

    count: np.ndarray
    sums_K: np.ndarray
    products_KK: np.ndarray

    @property
    def columns(self) -> int:
        """K."""
        return len(self.sums_K)

    @property
    def means(self) -> np.ndarray:
        """Mean of each column, (K, ...); NaN without users."""
        return self.sums_K / np.where(self.count > 0, self.count, np.nan)

    @property
    def covariance(self) -> np.ndarray:
        """Sample covariance of the columns, divisor count − 1, (K, K, ...); NaN with fewer than two users."""
        means_K = self.means
        spread = self.products_KK - self.count * means_K[:, None] * means_K[None, :]
        return spread / np.where(self.count > 1, self.count - 1, np.nan)

    def __add__(self, other: Moments) -> Moments:
        if self.columns != other.columns:
            raise DataError(f"moments of {self.columns} and of {other.columns} columns cannot be added")
        return Moments(self.count + other.count, self.sums_K + other.sums_K, self.products_KK + other.products_KK)

    def flat(self) -> dict[str, float]:
        """As numbers with names: n; s0, s1, …; p0_0, p0_1, p1_1, … (upper triangle). Of one look only."""
        if np.ndim(self.count) != 0:
            raise DataError(f"moments of {np.shape(self.count)} looks: only those of one look can be written flat")
        return {"n": float(self.count)} | _flat(self.sums_K, self.products_KK)


def moments_of(
    numerator_U: np.ndarray, denominator_U: np.ndarray | None = None, covariates_UC: np.ndarray | None = None
) -> Moments:
    """Moments of U users. Without a denominator each user counts 1: the metric is a mean.

    Raises DataError for arrays of unequal lengths and for values that aren't finite.
    """
    numerator_U = np.asarray(numerator_U, dtype=np.float64)
    columns = [
        numerator_U,
        np.ones_like(numerator_U) if denominator_U is None else np.asarray(denominator_U, np.float64),
    ]
    if covariates_UC is not None:
        columns.extend(np.asarray(covariates_UC, np.float64).T)
    if any(column.shape != numerator_U.shape or column.ndim != 1 for column in columns):
        shapes = ", ".join(str(column.shape) for column in columns)
        raise DataError(f"numerator, denominator and covariates need one value a user; their shapes are {shapes}")
    rows_UK = np.stack(columns, axis=1)
    if not np.isfinite(rows_UK).all():
        row = int((~np.isfinite(rows_UK)).any(1).argmax())
        raise DataError("a user's value is not finite", row=row, rule="finite")
    return Moments(np.asarray(float(len(rows_UK))), rows_UK.sum(0), rows_UK.T @ rows_UK)


def no_moments(columns: int = COVARIATES) -> Moments:
    """Moments of no user."""
    return Moments(np.zeros(()), np.zeros(columns), np.zeros((columns, columns)))


def from_flat(flat: Mapping[str, float | str]) -> Moments:
    """The inverse of `Moments.flat`; names that are missing count 0. Raises DataError for other names."""
    columns = sum(name.startswith("s") for name in flat) or COVARIATES
    values = _flat(np.zeros(columns), np.zeros((columns, columns)))
    unknown = sorted(set(flat) - set(values) - {"n"})
    if unknown:
        raise DataError(f"moments with {', '.join(unknown)}: the names are n, {', '.join(values)}")
    values |= {name: float(value) for name, value in flat.items()}
    products_KK = np.empty((columns, columns))
    for j in range(columns):
        for k in range(j, columns):
            products_KK[j, k] = products_KK[k, j] = values[f"p{j}_{k}"]
    sums_K = np.array([values[f"s{k}"] for k in range(columns)])
    return Moments(np.asarray(values.get("n", 0.0)), sums_K, products_KK)


def change(before: Row | None, after: Row) -> dict[str, float]:
    """By how much a user's new row changes the flat moments; `before` is None for a user not seen so far.

    Add each number to the one of the same name (in Redis: HINCRBYFLOAT). Raises DataError when the rows differ in length.
    """
    if before is not None and len(before) != len(after):
        raise DataError(f"a user's row had {len(before)} columns and now has {len(after)}")
    new = np.asarray(after, dtype=np.float64)
    old = np.zeros_like(new) if before is None else np.asarray(before, dtype=np.float64)
    return {"n": float(before is None)} | _flat(new - old, np.outer(new, new) - np.outer(old, old))


def _flat(sums_K: np.ndarray, products_KK: np.ndarray) -> dict[str, float]:
    out = {f"s{k}": float(value) for k, value in enumerate(sums_K)}
    return out | {f"p{j}_{k}": float(products_KK[j, k]) for j in range(len(sums_K)) for k in range(j, len(sums_K))}
