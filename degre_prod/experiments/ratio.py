"""A metric of users as a ratio of sums, Σx / Σy over users (clicks per request), and its variance by the delta method.

Users are the units, because users are what is assigned: requests of one user are alike, and a variance over requests
would be too small. For column means m with covariance S over n users, an estimate g(m) has variance ∇g' S ∇g / n
(Deng, Knoblich, Lu 2018, "Applying the Delta Method in Metric Analytics", KDD).

- log ratio: g = ln(mx / my), ∇g = (1/mx, −1/my). Differences of it are relative effects: +0.02 is about +2 %.
- ratio: g = mx / my = R, ∇g = (1/my, −R/my). For shares near 0, where "relative to control" says nothing.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from degre_prod.experiments.moments import DENOMINATOR, NUMERATOR, Moments

Scale = Literal["relative", "absolute"]


def ratio(moments: Moments) -> np.ndarray:
    """Σx / Σy, (...); NaN where Σy is 0."""
    denominator = moments.sums_K[DENOMINATOR]
    return moments.sums_K[NUMERATOR] / np.where(denominator != 0, denominator, np.nan)


def value_and_gradient(moments: Moments, scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    """The metric on its scale, (...), and its gradient by the column means, (K, ...), 0 for covariates.

    NaN where Σy is 0 and, on the relative scale, where Σx ≤ 0.
    """
    x, y = moments.means[NUMERATOR], moments.means[DENOMINATOR]
    x, y = np.where(x > 0, x, np.nan) if scale == "relative" else x, np.where(y > 0, y, np.nan)
    gradient_K = np.zeros_like(moments.sums_K)
    if scale == "relative":
        gradient_K[NUMERATOR], gradient_K[DENOMINATOR] = 1 / x, -1 / y
        return np.log(x / y), gradient_K
    gradient_K[NUMERATOR], gradient_K[DENOMINATOR] = 1 / y, -x / y**2
    return x / y, gradient_K


def delta_variance(moments: Moments, gradient_K: np.ndarray) -> np.ndarray:
    """Variance of the estimate with this gradient, (...)."""
    covariance_KK = moments.covariance
    quadratic = np.einsum("j...,jk...,k...->...", gradient_K, covariance_KK, gradient_K)
    return np.maximum(quadratic, 0.0) / moments.count


def with_one_bad_event(moments: Moments) -> Moments:
    """With one more user, of mean denominator, who had one event. For the variance of a rare share, never its estimate.

    Without it a share of 0 out of n would have variance 0 and look certain; with it the standard error is about 1 / Σy,
    an interval like the rule of three.
    """
    row_K = np.zeros_like(moments.sums_K)
    row_K[NUMERATOR] = 1.0
    row_K[DENOMINATOR] = moments.means[DENOMINATOR]
    return Moments(moments.count + 1, moments.sums_K + row_K, moments.products_KK + row_K[:, None] * row_K[None, :])
