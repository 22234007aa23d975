"""Dense targets: what the mined values say about every next item of every visited prefix (METHOD §4). Pure numpy."""

from __future__ import annotations

import numpy as np

MARGIN = 0.02  # an item no pooled leaf went through stays this much (in Ū) below the worst one that has a leaf


def step_values(one_step_XLC: np.ndarray, backed_up_XLC: np.ndarray, *, form: str) -> np.ndarray:
    """Q(s, v) in units of Ū for every prefix and item, NaN where v is not feasible.

    `one_step`: D = U([s;v]), the paper's form. `backed_up`: the best leaf through (s, v) where there is one; else
    min(D + δ_s, lo_s − .02) with δ_s = min over backed-up children of (Q − D) and lo_s the worst backed-up Q; at the last
    slot Q = U. A prefix without any backed-up child keeps D.
    """
    D = one_step_XLC.astype(np.float64)
    if form == "one_step":
        return D
    Q = np.where(np.isnan(D), np.nan, backed_up_XLC)
    known = ~np.isnan(Q)
    delta = np.min(np.where(known, Q - D, np.inf), axis=-1, keepdims=True)
    low = np.min(np.where(known, Q, np.inf), axis=-1, keepdims=True)
    estimate = np.minimum(D + delta, low - MARGIN)
    out = np.where(known, Q, np.where(np.isfinite(low), estimate, D))
    out[..., -1, :] = D[..., -1, :]
    return np.asarray(np.where(np.isnan(D), np.nan, out))


def soft_labels(values_XC: np.ndarray, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """q_XC = softmax(z / τ) with z standardised over feasible items (sd at least 1e-4), 0 on infeasible ones, and whether
    there is a choice at all (two feasible items or more); rows without one are all 0."""
    feasible = ~np.isnan(values_XC)
    count = feasible.sum(-1, keepdims=True)
    filled = np.where(feasible, values_XC, 0.0)
    mean = filled.sum(-1, keepdims=True) / np.maximum(count, 1)
    spread = np.sqrt((np.where(feasible, filled - mean, 0.0) ** 2).sum(-1, keepdims=True) / np.maximum(count, 1))
    z = np.where(feasible, (filled - mean) / np.maximum(spread, 1e-4) / tau, -np.inf)
    choice = count[..., 0] >= 2
    z = np.where(choice[..., None], z, 0.0)
    e = np.exp(z - z.max(-1, keepdims=True))
    q = e / e.sum(-1, keepdims=True)
    return np.where(choice[..., None], q, 0.0), choice


def list_weights(utility_XK: np.ndarray, tau: float) -> np.ndarray:
    """w_XK = softmax(U / τ) over the lists kept (U in units of Ū); a list of -inf weighs 0."""
    z = utility_XK.astype(np.float64) / tau
    e = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))
