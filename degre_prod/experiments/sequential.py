"""Always-valid intervals and p-values: right at every look at once, so that one may look at any time and stop at any look.

An estimate θ̂ with standard error s has information I = 1/s². Over time W = θ̂ · I is close to a Brownian motion with drift
θ in the time I, whatever the sizes of the arms (independent increments: Jennison, Turnbull 2000, "Group Sequential
Methods", ch. 11). With weights N(0, τ²) over θ, I₀ = 1/τ², the mixture of likelihood ratios (Robbins 1970)

    e = √(I₀ / (I + I₀)) · exp(W² / (2 (I + I₀)))

is a martingale of mean 1 under θ = 0, so P(e ≥ 1/α at any look) ≤ α. Hence

    p = 1/e,    θ̂ ± s · √((1 + I₀/I) · ln((1 + I/I₀) / α²)).

With n units of variance σ² and ρ = τ/σ this is the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha,
Kennedy, Ramdas (2021, arXiv 2103.06476; Annals of Statistics 2024) and, for known variance, the mSPRT
of Johari, Pekelis, Walsh (2015, arXiv 1512.04922). One-sided: the weights' half θ > 0 alone, in the closed form of
Howard, Ramdas, McAuliffe, Sekhon (2021, Annals of Statistics, "Time-uniform, nonparametric, nonasymptotic confidence
sequences", one-sided normal mixture).

It is asymptotic: s is estimated, W is nearly normal. Both hold only from some number of users on; below `min_users` callers
must say nothing (`analysis` enforces it).
"""

from __future__ import annotations

import numpy as np
from scipy.special import lambertw, ndtr, ndtri

from degre_prod.errors import ConfigurationError


def mixture_scale(effect: float, alpha: float = 0.05, power: float = 0.8) -> float:
    """τ with which the interval is tightest where a fixed test of this power would look; for the usual α about `effect`.

    I* = ((z_{1−α/2} + z_power) / effect)²; the half-width at I* is least for I*/I₀ = r with r = ln(1 + r) − 2 ln α, i.e.
    r = −W₋₁(−α²/e) − 1 (the choice of ρ in Waudby-Smith et al.). Any τ is valid; it must be chosen before the data.
    """
    if not (effect > 0 and 0 < alpha < 1 and 0 < power < 1):
        raise ConfigurationError(f"effect {effect}, alpha {alpha}, power {power}: effect > 0, the others within 0 … 1")
    looked_for = (ndtri(1 - alpha / 2) + ndtri(power)) ** 2 / effect**2
    r = -lambertw(-(alpha**2) / np.e, -1).real - 1
    return float(np.sqrt(r / looked_for))


def half_width(variance: np.ndarray, tau: float, alpha: float) -> np.ndarray:
    """Half-width of the two-sided interval, (...); ∞ where the variance isn't a positive number."""
    variance = _positive(variance)
    information = tau**2 / variance  # in units of I₀
    return _finite(np.sqrt(variance * (1 + 1 / information) * (np.log1p(information) - 2 * np.log(alpha))))


def p_value(estimate: np.ndarray, variance: np.ndarray, tau: float) -> np.ndarray:
    """Always-valid p-value of θ = 0, (...), 1 where nothing is known; α-level intervals exclude 0 exactly where p < α."""
    return np.exp(-np.maximum(log_evidence(estimate, variance, tau), 0.0))


def log_evidence(estimate: np.ndarray, variance: np.ndarray, tau: float) -> np.ndarray:
    """ln e of θ = 0, (...); 0 where nothing is known."""
    variance = _positive(variance)
    information = tau**2 / variance
    log_e = estimate**2 / variance * information / (2 * (1 + information)) - np.log1p(information) / 2
    return np.where(np.isfinite(log_e), log_e, 0.0)


def one_sided_width(variance: np.ndarray, tau: float, alpha: float) -> np.ndarray:
    """Distance of the one-sided bound from the estimate, (...): √(s² (1 + 1/i) · 2 ln(1 + √(1 + i) / (2α))), i = I/I₀."""
    variance = _positive(variance)
    information = tau**2 / variance
    return _finite(np.sqrt(variance * (1 + 1 / information) * 2 * np.log1p(np.sqrt(1 + information) / (2 * alpha))))


def one_sided_p_value(estimate: np.ndarray, variance: np.ndarray, tau: float) -> np.ndarray:
    """Always-valid p-value of θ ≤ 0, (...): the α at which `one_sided_width` equals the estimate, at most 1."""
    variance = _positive(variance)
    information = tau**2 / variance
    exponent = estimate**2 / variance * information / (2 * (1 + information))
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        p = np.sqrt(1 + information) / (2 * np.expm1(exponent))
    return np.where((np.asarray(estimate) > 0) & np.isfinite(p), np.minimum(p, 1.0), 1.0)


def fixed_p_value(estimate: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Two-sided p-value of the normal test for ONE look fixed beforehand, (...); 1 where nothing is known."""
    z = np.abs(estimate) / np.sqrt(_positive(variance))
    return np.where(np.isfinite(z), 2 * ndtr(-z), 1.0)


def _positive(variance: np.ndarray) -> np.ndarray:
    variance = np.asarray(variance, dtype=np.float64)
    return np.where(variance > 0, variance, np.nan)


def _finite(width: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(width), np.inf, width)
