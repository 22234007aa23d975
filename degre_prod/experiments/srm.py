"""Sample-ratio mismatch: do the arms have as many users as their weights say? If not, assignment or logging is broken, and no
other figure of the experiment means anything.

Each user counts once, at the first exposure, under the weights of that moment; a phase is a time of unchanged weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import chdtrc, gammaln, xlogy

CONCENTRATION = 100.0
"""Weight of the prior in users: strong where shares are off by a few hundredths, a common kind of mismatch."""


@dataclass(frozen=True, slots=True)
class Phase:
    """New users by arm while the weights were these."""

    weights: Mapping[str, float]
    users: Mapping[str, int]


def log_evidence(users_A: np.ndarray, weights_A: np.ndarray, concentration: float = CONCENTRATION) -> float:
    """ln of the Bayes factor against the weights θ₀: Dirichlet(kθ₀) mixture over multinomials.

    e = B(kθ₀ + n) / (B(kθ₀) · Π θ₀^n), B the multivariate beta function (Lindon, Malek 2020, "Anytime-Valid Inference for
    Multinomial Count Data", NeurIPS 2022; arXiv 2011.03567). A martingale of mean 1 when the weights hold.
    """
    prior_A = concentration * weights_A
    return float(_log_beta(prior_A + users_A) - _log_beta(prior_A) - xlogy(users_A, weights_A).sum())


def sequential_p_value(phases: Sequence[Phase]) -> float:
    """Always-valid p-value over all phases: 1 / Π e; 0 when an arm without weight has users, 1 without users."""
    if any(_stray(phase) for phase in phases):
        return 0.0
    evidence = 0.0
    for phase in phases:
        weights_A, users_A = _arrays(phase)
        evidence += log_evidence(users_A, weights_A)
    return float(np.exp(-max(evidence, 0.0)))


def chi_square_p_value(phases: Sequence[Phase]) -> float:
    """Pearson's χ² over all phases, for ONE look fixed beforehand; 0 and 1 as in `sequential_p_value`."""
    if any(_stray(phase) for phase in phases):
        return 0.0
    statistic, freedom = 0.0, 0
    for phase in phases:
        weights_A, users_A = _arrays(phase)
        expected_A = users_A.sum() * weights_A
        if users_A.sum() > 0:
            statistic += float(((users_A - expected_A) ** 2 / expected_A).sum())
            freedom += len(weights_A) - 1
    return float(chdtrc(freedom, statistic)) if freedom > 0 else 1.0


def _stray(phase: Phase) -> bool:
    return any(count > 0 and phase.weights.get(arm, 0.0) <= 0 for arm, count in phase.users.items())


def _arrays(phase: Phase) -> tuple[np.ndarray, np.ndarray]:
    arms = [arm for arm, weight in phase.weights.items() if weight > 0]
    weights_A = np.array([phase.weights[arm] for arm in arms])
    return weights_A / weights_A.sum(), np.array([phase.users.get(arm, 0) for arm in arms], dtype=np.float64)


def _log_beta(a: np.ndarray) -> float:
    return float(gammaln(a).sum() - gammaln(a.sum()))
