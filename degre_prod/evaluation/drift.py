"""Has a feature moved? Population stability index, Kolmogorov–Smirnov distance and missing share, training against new.

PSI = Σ_bins (p − q)·ln(p / q) over ten bins with equal shares of the training values (categories: one bin each of the
commonest, one for all others), missing values a bin of their own. A category of which the smaller sample would hold less
than five is one of the others; an empty bin counts as half an observation, or PSI would be infinite. Customary reading:
below .1 nothing, .1 to .25 a shift, above .25 a large one (Siddiqi 2006, Credit Risk Scorecards). KS = max |F_training −
F_new| over values that are there; numeric features alone have one.

Both grow with chance where there is little data. Of two samples of n and m independent draws from one distribution, PSI is
about (1/n + 1/m)·χ² with one degree of freedom less than there are bins (Yurdakul and Naranjo 2020, "Statistical
properties of the population stability index"), and KS exceeds √(−ln(α/2)/2 · (1/n + 1/m)) with probability α (Smirnov).
The bounds by chance given here are exceeded once in a thousand. What is drawn independently is entities, not rows: the
features of one user come again in all of that user's requests.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import chi2, ks_2samp

from degre_prod.requests import FeatureColumns, Id
from degre_prod.rows import TrainingRow
from degre_prod.schema import DataSchema, Feature

BINS, CATEGORIES, EXPECTED = 10, 50, 5
BY_CHANCE = 1e-3
SURELY = 1e-6  # a feature that varied is called constant when chance would make it so less often than this


@dataclass(frozen=True, slots=True)
class Column:
    """Values of one feature: numbers (NaN missing) or strings (None missing); `draws`: how many of them are independent."""

    values: np.ndarray | Sequence[Any]
    draws: float


@dataclass(frozen=True, slots=True)
class Drift:
    """One feature: PSI, KS (None for categories), the share that is missing in training and now, what chance alone would do
    to PSI and KS once in a thousand, and whether a feature that varied has one value only."""

    feature: str
    psi: float
    ks: float | None
    missing_before: float
    missing_now: float
    psi_by_chance: float = 0.0
    ks_by_chance: float = 0.0
    constant: bool = False


def drift_report(before: Mapping[str, Column], now: Mapping[str, Column]) -> list[Drift]:
    """Every feature of `before`, the largest PSI first."""
    return sorted((_one(name, column, now[name]) for name, column in before.items()), key=lambda d: -d.psi)


def feature_columns(rows: Iterable[TrainingRow], schema: DataSchema) -> dict[str, Column]:
    """Columns of the features of rows, named as in the schema with their table before a dot: user.age, item.price,
    context.hour, scores.upstream, candidate.offer; items and candidates one entry a candidate.

    A vector has a column for each component (item.style[0]), a sequence the number of its ids (user.history (length)); a
    request has the number of its candidates and of its recent events.
    """
    rows = list(rows)
    requests = [row.request for row in rows]
    C = np.array([len(r.candidate_ids) for r in requests], float)
    alone = float(len(rows))
    out = {"request.candidates": Column(C, alone)}
    if schema.recent_event_types:
        out["request.recent_events"] = Column(np.array([len(r.recent_events) for r in requests], float), alone)
    users = independent_draws(r.user_id for r in requests)
    items = independent_draws(item for r in requests for item in r.candidate_ids)
    out |= _table("user", schema.user.features, [row.user for row in rows], users)
    out |= _table("item", schema.item.features, [row.items for row in rows], items)
    for f in schema.context:
        out[f"context.{f.name}"] = Column(_plain(f, [[r.context.get(f.name)] for r in requests]), alone)
    for name in schema.scores:
        out[f"scores.{name}"] = Column(_numbers([r.scores[name] for r in requests]), alone)
    for f in schema.candidate_features:
        out[f"candidate.{f.name}"] = Column(_plain(f, [r.candidate_features[f.name] for r in requests]), alone)
    return out


def independent_draws(ids: Iterable[Id]) -> float:
    """How many independent draws these entities amount to: (Σ c)² / Σ c² of how often each comes (Kish 1965)."""
    counts = np.array(list(Counter(ids).values()), float)
    return float(counts.sum() ** 2 / (counts**2).sum()) if len(counts) else 0.0


def _table(table: str, features: Sequence[Feature], parts: Sequence[FeatureColumns], draws: float) -> dict[str, Column]:
    out: dict[str, Column] = {}
    for f in features:
        values: list[Any] = [part.values[f.name] for part in parts]
        if f.kind == "vector":
            stacked = np.concatenate(values) if values else np.empty((0, f.size or 0))
            out |= {f"{table}.{f.name}[{i}]": Column(stacked[:, i], draws) for i in range(f.size or 0)}
        elif f.kind == "id_sequence":
            lengths = [math.nan if ids is None else float(len(ids)) for part in values for ids in part]
            out[f"{table}.{f.name} (length)"] = Column(np.array(lengths), draws)
        else:
            out[f"{table}.{f.name}"] = Column(_plain(f, values), draws)
    return out


def _plain(feature: Feature, parts: Sequence[Sequence[Any]]) -> np.ndarray | list[Any]:
    return _numbers(parts) if feature.kind == "numeric" else [v for part in parts for v in part]


def _numbers(parts: Sequence[Sequence[Any]]) -> np.ndarray:
    arrays = [p if isinstance(p, np.ndarray) else np.array([math.nan if v is None else v for v in p]) for p in parts]
    return np.concatenate(arrays).astype(float) if arrays else np.empty(0)


def _one(name: str, before: Column, now: Column) -> Drift:
    apart = 1 / max(before.draws, 1.0) + 1 / max(now.draws, 1.0)
    if isinstance(before.values, np.ndarray) and isinstance(now.values, np.ndarray):
        old, new = before.values.astype(float), now.values.astype(float)
        gone = [float(np.isnan(v).mean()) if len(v) else 0.0 for v in (old, new)]
        shares = _bin_shares(old, new)
        old, new = old[~np.isnan(old)], new[~np.isnan(new)]
        ks = float(ks_2samp(old, new).statistic) if len(old) and len(new) else 0.0
        constant = len(np.unique(new)) == 1 and _surely(np.unique(old, return_counts=True)[1], now.draws)
    else:
        ks = None
        gone = [float(np.mean([v is None for v in c.values])) if len(c.values) else 0.0 for c in (before, now)]
        shares = _category_shares(
            list(before.values), list(now.values), EXPECTED / max(min(before.draws, now.draws), 1.0)
        )
        told = Counter(v for v in before.values if v is not None)
        constant = len({v for v in now.values if v is not None}) == 1 and _surely(list(told.values()), now.draws)
    psi, bins = _psi(*shares, before.draws, now.draws)
    by_chance = float(chi2.ppf(1 - BY_CHANCE, bins - 1)) * apart if bins > 1 else 0.0
    ks_by_chance = 0.0 if ks is None else math.sqrt(-math.log(BY_CHANCE / 2) / 2 * apart)
    return Drift(name, psi, ks, gone[0], gone[1], by_chance, ks_by_chance, constant)


def _surely(counts: Sequence[int] | np.ndarray, draws: float) -> bool:
    """Whether so many draws of values with these counts would hardly ever be all the same one."""
    return len(counts) > 1 and float(max(counts) / sum(counts)) ** draws < SURELY


def _bin_shares(old: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    there = old[~np.isnan(old)]
    edges = np.unique(np.quantile(there, np.linspace(0, 1, BINS + 1)[1:-1])) if len(there) else np.empty(0)

    def shares(values: np.ndarray) -> np.ndarray:
        bins = np.where(np.isnan(values), len(edges) + 1, np.searchsorted(edges, values, side="left"))
        return np.bincount(bins, minlength=len(edges) + 2) / max(len(values), 1)

    return shares(old), shares(new)


def _category_shares(old: Sequence[Any], new: Sequence[Any], least: float) -> tuple[np.ndarray, np.ndarray]:
    """`least`: the share of the old values that a category of its own has."""
    told = Counter(v for v in old if v is not None).most_common(CATEGORIES)
    common = [value for value, count in told if count >= least * len(old)]
    place = {value: i for i, value in enumerate([*common, None])}

    def shares(values: Sequence[Any]) -> np.ndarray:
        bins = np.array([place.get(v, len(place)) for v in values], int)
        return np.bincount(bins, minlength=len(place) + 1) / max(len(values), 1)

    return shares(old), shares(new)


def _psi(p: np.ndarray, q: np.ndarray, p_draws: float, q_draws: float) -> tuple[float, int]:
    """PSI and the number of bins that any value is in."""
    used = (p > 0) | (q > 0)
    p, q = np.maximum(p[used], 0.5 / max(p_draws, 1.0)), np.maximum(q[used], 0.5 / max(q_draws, 1.0))
    return float(((p - q) * np.log(p / q)).sum()), int(used.sum())
