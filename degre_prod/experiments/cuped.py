"""CUPED: what was known of users before the experiment explains part of their difference; taken out, effects show sooner.

For two arms a ∈ {t, c} with metric g_a and covariate means c̄_a, the adjusted effect is

    Δ = g_t − g_c − θ · (c̄_t − c̄_c),    θ = (Σ_a S_cc,a / n_a)⁻¹ Σ_a S_cz,a ∇g_a / n_a

(Deng, Xu, Kohavi, Walker 2013, "Improving the Sensitivity of Online Controlled Experiments by Utilizing Pre-Experiment
Data", WSDM; the metric linearised by its gradient for ratios as in Deng et al. 2018). θ is one for both arms and
minimises the variance of Δ; covariates come from before the assignment, so their means differ by chance alone and Δ stays
unbiased. A user without history has covariates 0: that is a value like another, and right in both arms.
"""

from __future__ import annotations

import numpy as np

from degre_prod.experiments.moments import COVARIATES, Moments
from degre_prod.experiments.ratio import Scale, delta_variance, value_and_gradient


def difference(treatment: Moments, control: Moments, scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    """Effect without adjustment and its variance, (...)."""
    value_t, gradient_t = value_and_gradient(treatment, scale)
    value_c, gradient_c = value_and_gradient(control, scale)
    return value_t - value_c, delta_variance(treatment, gradient_t) + delta_variance(control, gradient_c)


def adjusted_difference(treatment: Moments, control: Moments, scale: Scale) -> tuple[np.ndarray, np.ndarray]:
    """Effect adjusted by all covariates and its variance, (...). Without covariates it is `difference`."""
    if treatment.columns == COVARIATES:
        return difference(treatment, control, scale)
    effect = np.zeros_like(treatment.count, dtype=np.float64)
    gradients, inner, outer = [], [], []
    for sign, arm in ((1, treatment), (-1, control)):
        value, gradient_K = value_and_gradient(arm, scale)
        effect = effect + sign * value
        covariance_KK = arm.covariance
        gradients.append(gradient_K)
        inner.append(covariance_KK[COVARIATES:, COVARIATES:] / arm.count)
        outer.append(np.einsum("jk...,k...->j...", covariance_KK[COVARIATES:], gradient_K) / arm.count)
    theta_C = _solve(inner[0] + inner[1], outer[0] + outer[1])
    variance = np.zeros_like(effect)
    for gradient_K, arm in zip(gradients, (treatment, control), strict=True):
        gradient_K[COVARIATES:] = -theta_C
        variance = variance + delta_variance(arm, gradient_K)
    gap_C = treatment.means[COVARIATES:] - control.means[COVARIATES:]
    return effect - (theta_C * gap_C).sum(0), variance


def _solve(matrix_CC: np.ndarray, vector_C: np.ndarray) -> np.ndarray:
    """θ, (C, ...): least squares of least norm, so that a covariate that is constant or twice there does no harm; NaN → NaN."""
    matrices = np.moveaxis(matrix_CC, (0, 1), (-2, -1))
    vectors = np.moveaxis(vector_C, 0, -1)[..., None]
    known = np.isfinite(matrices).all((-2, -1)) & np.isfinite(vectors).all((-2, -1))
    # Columns brought to one scale first: the cut-off of the pseudo-inverse is relative to the largest.
    scale = np.sqrt(np.maximum(np.einsum("...ii->...i", matrices), 0.0))
    scale = np.where(scale > 0, scale, 1.0)[..., None]
    scaled = np.where(known[..., None, None], matrices / scale / np.swapaxes(scale, -2, -1), 0.0)
    theta = np.linalg.pinv(scaled, rcond=1e-9, hermitian=True) @ (vectors / scale) / scale
    return np.moveaxis(np.where(known[..., None], theta[..., 0], np.nan), -1, 0)
