"""Isotonic calibration of expected increments, slot by slot, for reports alone.

Never inside mining: its plateaus make ties, and calibrated increments no longer add up to the value of a list (METHOD §2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import isotonic_regression

from degre_prod.encoding.store import EncodedSet
from degre_prod.errors import DataError
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.training.data import logged_lists, to_batch

_CHUNK = 500


@dataclass(frozen=True)
class Isotonic:
    """A non-decreasing map: `calibrated` at the knots `predicted` (rising), linear between them, constant outside."""

    predicted: tuple[float, ...]
    calibrated: tuple[float, ...]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Calibrated values, in the shape given."""
        return np.asarray(np.interp(values, self.predicted, self.calibrated))


@dataclass(frozen=True)
class SlotCalibration:
    """One map a slot."""

    slots: tuple[Isotonic, ...]

    def __call__(self, increments_XL: np.ndarray) -> np.ndarray:
        """Calibrated increments; slots on the last axis."""
        return np.stack([of(increments_XL[..., t]) for t, of in enumerate(self.slots)], axis=-1)


def fit_isotonic(predicted_X: np.ndarray, outcome_X: np.ndarray) -> Isotonic:
    """The non-decreasing map with the least squared error; equal predictions count as one. Raises DataError on no values."""
    if predicted_X.size == 0:
        raise DataError("isotonic calibration needs at least one prediction with its outcome")
    knots, place, weights = np.unique(predicted_X.astype(np.float64), return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=outcome_X.astype(np.float64)) / weights
    fitted = isotonic_regression(means, weights=weights.astype(np.float64))
    ends = np.unique(np.concatenate([fitted.blocks[:-1], fitted.blocks[1:] - 1]))  # the first and last of each plateau
    return Isotonic(tuple(knots[ends].tolist()), tuple(fitted.x[ends].tolist()))


def fit_slot_calibration(model: LookaheadEvaluator, validation: EncodedSet, objective: int = 0) -> SlotCalibration:
    """Fit one map a slot on the logged lists of held-out requests, slots whose tracking was lost left out.

    Raises DataError naming a slot that no held-out list reaches.
    """
    m_RL, y_RL, known_RL = logged_increments(model, validation, objective)
    missing = np.flatnonzero(~known_RL.any(0))
    if len(missing):
        raise DataError(f"no validation list has feedback in slot {missing[0] + 1}; calibrate on longer lists")
    return SlotCalibration(tuple(fit_isotonic(m_RL[k, t], y_RL[k, t]) for t, k in enumerate(known_RL.T)))


def logged_increments(
    model: LookaheadEvaluator, encoded: EncodedSet, objective: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Expected increments of the logged lists, their feedback, and whether it is known: each (R, L)."""
    layout = model.spec.layout
    random = np.random.default_rng(0) if layout.position_free else None
    expected, outcome, known = [], [], []
    with torch.inference_mode():
        for start in range(0, len(encoded), _CHUNK):
            requests = np.arange(start, min(start + _CHUNK, len(encoded)))
            lists, feedback, carries = logged_lists(encoded, requests, layout.list_length, random)
            m, _ = model.increments(to_batch(encoded, requests), torch.from_numpy(lists))
            expected.append(m[..., objective].numpy())
            outcome.append(feedback[:, objective])
            known.append(carries)
    return np.concatenate(expected), np.concatenate(outcome), np.concatenate(known)
