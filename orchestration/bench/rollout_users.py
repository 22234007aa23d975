"""Simulated users of an experiment: they arrive one after the other, come back, and differ a lot in how often and in taste.

A user arrives at a ∈ [0, 1), uniformly, and has 1 + Poisson((1 − a) · λ) sessions at uniform times from a to 1, λ log-normal
(σ = 1: the busiest hundredth of users make about a tenth of the sessions). A session has 1 + Poisson(1) requests, its clicks
are Poisson(requests · κ · lift), κ Gamma with mean CLICKS. Before the experiment, the same user made Poisson(HISTORY · λ)
requests with Poisson(requests · κ) clicks; a share of users is new and has no history.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from degre_prod.experiments.moments import Moments

SESSIONS = 3.0  # mean of λ
MOST_SESSIONS = 200
CLICKS = 1.5  # clicks a request: of a list of ten
TASTE = 0.3  # coefficient of variation of κ
HISTORY = 4.0
NEW_USERS = 0.2
COLUMNS = 4  # clicks, requests; clicks and requests before the experiment


@dataclass(frozen=True)
class Sessions:
    """E sessions of U users, a user's after each other and in order of time."""

    user_E: np.ndarray
    look_E: np.ndarray
    rows_EK: np.ndarray
    """The user's row after the session, as an analysis at that moment has it."""
    arm_U: np.ndarray
    """0 control, 1 treatment."""


def draw_sessions(rng: np.random.Generator, users: int, looks: int, lift: float, share: float = 0.5) -> Sessions:
    """An experiment with a share of the users in treatment, whose clicks are `1 + lift` times as many; `looks` over its time."""
    arm_U = (rng.random(users) < share).astype(np.int64)
    activity_U = np.exp(rng.normal(size=users) - 0.5)  # mean 1
    arrival_U = rng.random(users)
    taste_U = CLICKS * rng.gamma(TASTE**-2, TASTE**2, size=users)
    sessions_U = 1 + np.minimum(rng.poisson(SESSIONS * activity_U * (1 - arrival_U)), MOST_SESSIONS)

    user_E = np.repeat(np.arange(users), sessions_U)
    first_E = np.arange(len(user_E)) == np.repeat(np.cumsum(sessions_U) - sessions_U, sessions_U)
    requests_E = 1.0 + rng.poisson(1.0, size=len(user_E))
    rate_U = taste_U * (1 + lift * arm_U)
    clicks_E = rng.poisson(requests_E * rate_U[user_E]).astype(np.float64)

    # Uniform order statistics after the arrival: sums of exponential gaps over their total with one gap more.
    gap_E = np.where(first_E, 0.0, rng.exponential(size=len(user_E)))
    passed_E = _within(gap_E, sessions_U)
    total_U = np.bincount(user_E, weights=gap_E, minlength=users) + rng.exponential(size=users)
    time_E = arrival_U[user_E] + (1 - arrival_U[user_E]) * passed_E / total_U[user_E]

    old_U = rng.random(users) >= NEW_USERS
    requests_before_U = rng.poisson(HISTORY * SESSIONS * activity_U) * old_U
    clicks_before_U = rng.poisson(requests_before_U * taste_U)
    rows_EK = np.stack(
        [
            _within(clicks_E, sessions_U),
            _within(requests_E, sessions_U),
            clicks_before_U[user_E].astype(np.float64),
            requests_before_U[user_E].astype(np.float64),
        ],
        axis=1,
    )
    look_E = np.minimum((time_E * looks).astype(np.int64), looks - 1)
    return Sessions(user_E, look_E, rows_EK, arm_U)


def moments_by_look(sessions: Sessions, looks: int) -> tuple[Moments, Moments]:
    """Moments of control and treatment at every look, with trailing axis (looks,): what was kept by adding each session's
    change to the sums, as a controller does."""
    user_E = sessions.user_E
    new_E = np.concatenate([[True], user_E[1:] != user_E[:-1]])
    before_EK = np.concatenate([np.zeros((1, COLUMNS)), sessions.rows_EK[:-1]])
    before_EK[new_E] = 0.0
    cell_E = sessions.arm_U[user_E] * looks + sessions.look_E

    def summed(change_E: np.ndarray) -> np.ndarray:
        by_cell = np.bincount(cell_E, weights=change_E, minlength=2 * looks)
        return by_cell.reshape(2, looks).cumsum(1)

    count = summed(new_E.astype(np.float64))
    after_KE, before_KE = sessions.rows_EK.T, before_EK.T
    sums = np.stack([summed(after_KE[k] - before_KE[k]) for k in range(COLUMNS)])
    products = np.empty((COLUMNS, COLUMNS, 2, looks))
    for j in range(COLUMNS):
        for k in range(j, COLUMNS):
            products[j, k] = products[k, j] = summed(after_KE[j] * after_KE[k] - before_KE[j] * before_KE[k])
    control, treatment = (Moments(count[arm], sums[:, arm], products[:, :, arm]) for arm in (0, 1))
    return control, treatment


def _within(values_E: np.ndarray, sessions_U: np.ndarray) -> np.ndarray:
    """Cumulative sum that begins anew at each user."""
    total_E = np.cumsum(values_E)
    start_U = np.concatenate([[0.0], total_E[np.cumsum(sessions_U)[:-1] - 1]])
    since_E: np.ndarray = total_E - np.repeat(start_U, sessions_U)
    return since_E
