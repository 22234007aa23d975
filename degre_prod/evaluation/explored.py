"""What exploration around a planned list makes possible: the chance of any list, and how far a log of it reaches.

Exploration changes, at each slot with probability `share`, the planned item with one drawn uniformly from the slot and all
candidates not yet placed. Given the items before it, the item wanted at slot t (from 0, of n candidates) has the chance

    (1 − share)·1[the line has it there] + share / (n − t),

where the line is the plan followed by the other candidates, with every change so far made in it.
"""

from __future__ import annotations

import numpy as np


def explored_chances(
    plan_RL: np.ndarray, wanted_RL: np.ndarray, candidates_R: np.ndarray, share_R: np.ndarray
) -> np.ndarray:
    """The chance of each wanted item given the wanted ones before it, (R, L); lists are indices into the candidates, -1
    past a short one (chance 1)."""
    R, C, rows = len(plan_RL), int(candidates_R.max()), np.arange(len(plan_RL))
    place_RC = np.tile(plan_RL.shape[1] + np.arange(C), (R, 1))
    planned = plan_RL >= 0
    place_RC[np.nonzero(planned)[0], plan_RL[planned]] = np.nonzero(planned)[1]
    place_RC[np.arange(C) >= candidates_R[:, None]] = 2 * C + plan_RL.shape[1]
    line_RC = np.argsort(place_RC, axis=1, kind="stable")
    out = np.ones(wanted_RL.shape)
    for t in range(wanted_RL.shape[1]):
        there = wanted_RL[:, t] >= 0
        r, item = rows[there], wanted_RL[there, t]
        out[r, t] = (1 - share_R[r]) * (line_RC[r, t] == item) + share_R[r] / (candidates_R[r] - t)
        at = (line_RC[r] == item[:, None]).argmax(1)
        line_RC[r, at], line_RC[r, t] = line_RC[r, t], item
    return out


def explored_share(propensity_T: np.ndarray, candidates: int) -> float:
    """The share that a log's propensities came from, exact but for rounding; NaN where the slots leave no choice."""
    for t, p in enumerate(propensity_T.tolist()):
        left = candidates - t
        if left > 1:
            # With a share of at most a half, an item that was planned has a chance of at least a half and no other has.
            return (1 - p) / (1 - 1 / left) if p >= 0.5 else p * left
    return float("nan")


def reach(chance_RL: np.ndarray, other_chance_RL: np.ndarray, differs_RL: np.ndarray) -> float:
    """Effective samples to be expected of the difference between two policies of one list each.

    `chance`, `other_chance`: that the log showed the one list or the other up to each slot; `differs`: whether they differ up
    to there. A weight is 1 / chance with that chance, so of R requests D with a difference amount to (2 D)² / Σ_D (1/chance +
    1/other) at a slot; the least of all slots at which any differ, 0 where none do. Unlike Kish's figure from the weights that
    came up, it knows those that have not.
    """
    needed_L = np.where(differs_RL, 1 / chance_RL + 1 / other_chance_RL, 0.0).sum(0)
    count_L = differs_RL.sum(0)
    found = [4 * float(c) ** 2 / float(n) for c, n in zip(count_L, needed_L, strict=True) if c]
    return min(found, default=0.0)
