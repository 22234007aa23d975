"""Has a feature moved? Population stability index, Kolmogorov–Smirnov distance and missing share, training against new.

PSI = Σ_bins (p − q)·ln(p / q) over ten bins with equal shares of the training values (categories: one bin each of the
commonest, one for all others), missing values a bin of their own; shares below `FLOOR` are raised to it, or an empty bin would be
infinite. Customary reading: below .1 nothing, .1 to .25 a shift, above .25 a large one (Siddiqi 2006, Credit Risk Scorecards).
KS = max |F_training − F_new| over values that are there; numeric features alone have one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import ks_2samp

from degre_prod.rows import TrainingRow

BINS, FLOOR, CATEGORIES = 10, 1e-4, 50


@dataclass(frozen=True, slots=True)
class Drift:
    """One feature: PSI, KS (None for categories), and the share that is missing in training and now."""

    feature: str
    psi: float
    ks: float | None
    missing_before: float
    missing_now: float


def drift_report(before: Mapping[str, Sequence[Any]], now: Mapping[str, Sequence[Any]]) -> list[Drift]:
    """Every feature of `before`, the largest PSI first. A column is numbers (NaN missing) or strings (None missing)."""
    found = [_one(name, column, now[name]) for name, column in before.items()]
    return sorted(found, key=lambda d: -d.psi)


def feature_columns(rows: Iterable[TrainingRow]) -> dict[str, Sequence[Any]]:
    """Columns of the scalar features of rows, named as in the schema with their table before a dot: user.age, item.price,
    context.hour, scores.upstream, candidate.offer; items and candidates one entry a candidate."""
    out: dict[str, list[Any]] = {}
    for row in rows:
        for table, columns in (("user", row.user), ("item", row.items)):
            for name, values in columns.values.items():
                if isinstance(values, np.ndarray) and values.ndim == 1:
                    out.setdefault(f"{table}.{name}", []).extend(values.tolist())
                elif not isinstance(values, np.ndarray) and all(v is None or isinstance(v, str) for v in values):
                    out.setdefault(f"{table}.{name}", []).extend(values)
        for name, value in row.request.context.items():
            out.setdefault(f"context.{name}", []).append(value)
        for name, scores in row.request.scores.items():
            out.setdefault(f"scores.{name}", []).extend(scores)
        for name, given in row.request.candidate_features.items():
            out.setdefault(f"candidate.{name}", []).extend(given)
    return dict(out)


def _one(name: str, before: Sequence[Any], now: Sequence[Any]) -> Drift:
    if any(isinstance(v, str) for v in (*before, *now)):
        missing = tuple(float(np.mean([v is None for v in column])) for column in (before, now))
        return Drift(name, _psi(*_category_shares(before, now)), None, *missing)
    old, new = (np.array([np.nan if v is None else v for v in column], float) for column in (before, now))
    missing_before, missing_now = float(np.isnan(old).mean()), float(np.isnan(new).mean())
    shares = _bin_shares(old, new)
    old, new = old[~np.isnan(old)], new[~np.isnan(new)]
    ks = float(ks_2samp(old, new).statistic) if len(old) and len(new) else 0.0
    return Drift(name, _psi(*shares), ks, missing_before, missing_now)


def _bin_shares(old: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    there = old[~np.isnan(old)]
    edges = np.unique(np.quantile(there, np.linspace(0, 1, BINS + 1)[1:-1])) if len(there) else np.empty(0)

    def shares(values: np.ndarray) -> np.ndarray:
        bins = np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values, side="left"))
        return np.bincount(bins, minlength=len(edges) + 2) / max(len(values), 1)

    return shares(old), shares(new)


def _category_shares(old: Sequence[Any], new: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    common = [value for value, _ in Counter(v for v in old if v is not None).most_common(CATEGORIES)]
    place = {value: i for i, value in enumerate([*common, None])}

    def shares(values: Sequence[Any]) -> np.ndarray:
        bins = np.array([place.get(v, len(place)) for v in values], int)
        return np.bincount(bins, minlength=len(place) + 1) / max(len(values), 1)

    return shares(old), shares(new)


def _psi(p: np.ndarray, q: np.ndarray) -> float:
    used = (p > 0) | (q > 0)
    p, q = np.maximum(p[used], FLOOR), np.maximum(q[used], FLOOR)
    return float(((p - q) * np.log(p / q)).sum())
