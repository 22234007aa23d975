"""What lists are worth: reciprocal rank of logged feedback, shares of a reference, intervals, calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from degre_prod.encoding.store import EncodedSet
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.training.data import logged_lists, to_batch

Z95 = 1.959964


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % normal interval over `count` requests."""

    mean: float
    low: float
    high: float
    count: int


def mean_interval(values: np.ndarray) -> Interval:
    """Mean and interval of the values that aren't NaN."""
    values = values[~np.isnan(values)]
    mean = float(values.mean()) if len(values) else float("nan")
    half = Z95 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return Interval(mean, mean - half, mean + half, len(values))


def first_positive(encoded: EncodedSet) -> np.ndarray:
    """The candidate (index) of each request's first slot with feedback of the first objective, -1 where there is none."""
    positive = encoded.arrays["feedback"][:, 0] > 0
    at = positive.argmax(1)
    shown = np.asarray(encoded.arrays["shown"])
    return np.where(positive.any(1), shown[np.arange(len(shown)), at], -1)


def reciprocal_ranks(lists_RL: np.ndarray, target_R: np.ndarray) -> np.ndarray:
    """1 / rank of the target when a list is followed by the items it left out, in upstream order; NaN without a target.

    A left-out target at upstream index c comes after the whole list and after every left-out item before c.
    """
    out = np.full(len(lists_RL), np.nan)
    for r, (items, target) in enumerate(zip(lists_RL, target_R, strict=True)):
        if target < 0:
            continue
        chosen = items[items >= 0]
        at = np.flatnonzero(chosen == target)
        rank = at[0] + 1 if len(at) else len(chosen) + target - int((chosen < target).sum()) + 1
        out[r] = 1.0 / rank
    return out


@dataclass(frozen=True)
class Bins:
    """Mean prediction, mean outcome and count of equally filled bins."""

    label: str
    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    count: tuple[int, ...]


def calibration(model: LookaheadEvaluator, encoded: EncodedSet, *, bins: int = 10) -> tuple[Bins, ...]:
    """Predicted increments m against logged feedback (first objective) on held-out lists: overall, then by slot."""
    L, free = model.spec.layout.list_length, model.spec.layout.position_free
    predicted, observed, slots = [], [], []
    random = np.random.default_rng(0) if free else None
    with torch.inference_mode():
        for i in range(0, len(encoded), 500):
            requests = np.arange(i, min(i + 500, len(encoded)))
            lists, feedback, carries = logged_lists(encoded, requests, L, random)
            m, _ = model.increments(to_batch(encoded, requests), torch.from_numpy(lists))
            predicted.append(m[..., 0].numpy()[carries])
            observed.append(feedback[:, 0][carries])
            slots.append(np.broadcast_to(np.arange(L), carries.shape)[carries])
    p, y, s = np.concatenate(predicted), np.concatenate(observed), np.concatenate(slots)
    by_slot = [(p[s == t], y[s == t]) for t in range(L) if (s == t).any()]
    return (
        _bins("all slots, deciles of the prediction", p, y, bins),
        Bins(
            "by slot",
            tuple(float(a.mean()) for a, _ in by_slot),
            tuple(float(b.mean()) for _, b in by_slot),
            tuple(len(a) for a, _ in by_slot),
        ),
    )


def _bins(label: str, p: np.ndarray, y: np.ndarray, bins: int) -> Bins:
    parts = [part for part in np.array_split(np.argsort(p, kind="stable"), bins) if len(part)]
    return Bins(
        label,
        tuple(float(p[part].mean()) for part in parts),
        tuple(float(y[part].mean()) for part in parts),
        tuple(len(part) for part in parts),
    )
