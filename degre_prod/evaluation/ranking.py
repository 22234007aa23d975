"""How well values are predicted, and how good lists are among all lists. Pure numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata


def spearman_by_request(predicted_RK: np.ndarray, true_RK: np.ndarray) -> np.ndarray:
    """Spearman's correlation over the K lists of each request, (R,); NaN where one side is constant."""
    a, b = (rankdata(x, axis=1) for x in (predicted_RK, true_RK))
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    norm = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), norm, out=np.full(len(a), np.nan), where=norm > 0)


def rmse_over_sd(predicted_RK: np.ndarray, true_RK: np.ndarray) -> float:
    """Root mean squared error over the standard deviation of the true values within a request (both pooled)."""
    within = true_RK - true_RK.mean(1, keepdims=True)
    return _rmse(predicted_RK, true_RK) / float(np.sqrt((within**2).mean()))


def rmse_over_pooled_sd(predicted_RK: np.ndarray, true_RK: np.ndarray) -> float:
    """Root mean squared error over the standard deviation of all true values, requests' own differences included."""
    return _rmse(predicted_RK, true_RK) / float(true_RK.std())


def _rmse(predicted: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(((predicted - truth) ** 2).mean()))


def calibration_error(predicted_X: np.ndarray, outcome_X: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error: mean |prediction − outcome| over equally filled bins of the prediction."""
    parts = np.array_split(np.argsort(predicted_X, kind="stable"), bins)
    gaps = [abs(predicted_X[p].mean() - outcome_X[p].mean()) * len(p) for p in parts if len(p)]
    return float(sum(gaps) / len(predicted_X))


def excess_calibration_error(predicted_X: np.ndarray, positive_X: np.ndarray, slots_a_bin: int = 200) -> float:
    """Expected calibration error less what a perfect model shows by chance, at least 0; ten bins, fewer where they would
    hold less than `slots_a_bin`.

    In a bin of n outcomes with mean ȳ chance alone gives a mean |gap| of about √(2/π · ȳ(1 − ȳ)/n): on 300 lists of four
    slots .02 in all, as much as a good evaluator's own error.
    """
    bins = max(1, min(10, len(predicted_X) // slots_a_bin))
    excess = 0.0
    for part in np.array_split(np.argsort(predicted_X, kind="stable"), bins):
        gap, mean = abs(predicted_X[part].mean() - positive_X[part].mean()), positive_X[part].mean()
        excess += len(part) * float(gap - (2 / np.pi * mean * (1 - mean) / len(part)) ** 0.5)
    return max(excess / len(predicted_X), 0.0)


def area_under_curve(predicted_X: np.ndarray, positive_X: np.ndarray) -> float:
    """AUC: the chance that a positive is predicted above a negative, ties half (Mann and Whitney); NaN without both."""
    positive = np.asarray(positive_X, bool)
    above, below = int(positive.sum()), int((~positive).sum())
    if not above or not below:
        return float("nan")
    return float((rankdata(predicted_X)[positive].sum() - above * (above + 1) / 2) / (above * below))


def better_shares(values_R: np.ndarray, all_values_RX: np.ndarray) -> np.ndarray:
    """Share of all lists that are strictly better than the one given, (R,). Differences below 1e-9 are rounding."""
    return np.asarray((all_values_RX > values_R[:, None] + 1e-9).mean(1))


def hit_rate(better_share_R: np.ndarray, share: float) -> float:
    """HR@share: how many requests got a list inside the best `share` of all lists."""
    return float((better_share_R < share).mean())


def regret(values_R: np.ndarray, best_R: np.ndarray) -> float:
    """Mean of 1 − value / best value."""
    return float((1 - values_R / best_R).mean())


@dataclass(frozen=True)
class Resampled:
    """A mean with its 95 % percentile interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(values: dict[str, np.ndarray], *, draws: int = 2000, seed: int = 0) -> dict[str, Resampled]:
    """Mean and interval of each entry (S seeds, R requests): seeds drawn anew, and requests within each seed drawn.

    Every entry sees the same draws, so entries that are differences of others have paired intervals. With one seed the
    interval says nothing about other trainings.
    """
    names = list(values)
    stacked = np.stack([values[name] for name in names])  # (entries, S, R)
    _, S, R = stacked.shape
    random = np.random.default_rng(seed)
    means = np.empty((draws, len(names)))
    for d in range(draws):
        counts = np.zeros((S, R))
        for s in np.atleast_1d(random.integers(0, S, S)):
            counts[s] += np.bincount(random.integers(0, R, R), minlength=R)
        means[d] = np.einsum("nsr,sr->n", stacked, counts) / (S * R)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return {name: Resampled(float(stacked[n].mean()), float(low[n]), float(high[n])) for n, name in enumerate(names)}


def logged_ndcg(lists_RL: np.ndarray, clicked_RC: np.ndarray) -> np.ndarray:
    """NDCG of lists by logged clicks (0 or 1 a candidate), (R,); NaN where nothing was clicked. A sanity check only:
    it rewards repeating what was shown."""
    discount = 1 / np.log2(np.arange(lists_RL.shape[1]) + 2)
    gained = np.take_along_axis(clicked_RC, np.maximum(lists_RL, 0), 1) * (lists_RL >= 0) @ discount
    ideal = np.concatenate([[0.0], np.cumsum(discount)])[np.minimum(clicked_RC.sum(1).astype(int), len(discount))]
    return np.divide(gained, ideal, out=np.full(len(lists_RL), np.nan), where=ideal > 0)
