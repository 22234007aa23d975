"""Off-policy estimates of a candidate against the champion, from requests that the champion answered with exploration.

Estimand: over requests like these, the utility a user gives when shown the candidate's own list, less when shown the
champion's, of as many slots as were shown; neither with exploration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from degre_prod.errors import DataError
from degre_prod.evaluation.explored import explored_chances, explored_share, reach
from degre_prod.evaluation.off_policy import Estimate, difference, slot_dr, slot_ips, slot_snips

if TYPE_CHECKING:
    from degre_prod.rows import TrainingRow
    from orchestration.retrain.period import Chances

ROUNDING = 1e-4  # propensities are logged as float32
AS_PLANNED = 0.95  # of the lists: explored around the champion's, or it isn't known how far the log reaches


def paired_estimates(
    rows: Sequence[TrainingRow],
    known: Mapping[str, Chances],
    champion_sha256: str,
    candidate: tuple[np.ndarray, np.ndarray],
    champion: tuple[np.ndarray, np.ndarray],
    weights_OL: np.ndarray,
) -> dict[str, Estimate]:
    """IPS, SNIPS and DR of the difference by slot; empty where fewer than two requests can be used.

    `candidate`, `champion`: their lists_RL and what a model expects of each slot (R, L), in units of feedback; the model
    must not have been fitted on these requests. `weights_OL`: ω_o w_{o,t} of the utility. A request is used when the log
    gives the propensity of every slot, the champion's bundle made the list, and the tracking of no slot was lost.
    `effective_samples` is the lesser of Kish's figure and of what the log can be expected to reach; 0 where more than 5 % of
    the propensities are not those of exploration around the champion's list (cached lists are planned otherwise), since
    nothing is known then of what has not come up.
    """
    used, shares, as_planned = _usable(rows, known, champion_sha256, champion[0])
    if len(used) < 2:
        return {}
    shown_RL, logging_RL, reward_RL = _logged(rows, known, used, champion[0].shape[1], weights_OL)
    there_RL = shown_RL >= 0
    lists = [np.where(there_RL, policy[0][used], -1) for policy in (candidate, champion)]
    models = [np.where(there_RL, policy[1][used], 0.0) for policy in (candidate, champion)]
    counts = np.array([len(rows[r].request.candidate_ids) for r in used])
    chances = [explored_chances(lists[1], wanted, counts, shares).cumprod(1) for wanted in lists]
    reached = reach(chances[0], chances[1], np.logical_or.accumulate(lists[0] != lists[1], axis=1))
    if as_planned < AS_PLANNED:
        reached = 0.0
    targets = [(wanted == shown_RL).astype(float) for wanted in lists]
    togo = [model[:, ::-1].cumsum(1)[:, ::-1] for model in models]
    estimates = {
        "ips": [slot_ips(reward_RL, target, logging_RL) for target in targets],
        # With one list a request the model is only asked about that list, so the logged item's value is the target's.
        "dr": [slot_dr(reward_RL, target, logging_RL, g, g) for target, g in zip(targets, togo, strict=True)],
    }
    try:
        estimates["snips"] = [slot_snips(reward_RL, target, logging_RL) for target in targets]
    except DataError:
        reached = 0.0  # one of the lists was never shown as far as its last slot
    out = {name: difference(*pair) for name, pair in estimates.items()}
    return {name: replace(e, effective_samples=min(e.effective_samples, reached)) for name, e in out.items()}


def _usable(
    rows: Sequence[TrainingRow], known: Mapping[str, Chances], champion_sha256: str, plans_RL: np.ndarray
) -> tuple[list[int], np.ndarray, float]:
    """The requests that can be used, the exploration share of each, and how many of them went around the champion's list."""
    used, shares, planned = [], [], 0
    for r, row in enumerate(rows):
        chances = known.get(row.request.request_id)
        if chances is None or chances.slots is None or chances.bundle != champion_sha256:
            continue
        lost = row.seen_T is not None and not row.seen_T.all()
        share = explored_share(chances.slots, len(row.request.candidate_ids))
        T = min(len(row.shown_T), plans_RL.shape[1])
        if lost or np.isnan(share):
            continue
        count = np.array([len(row.request.candidate_ids)])
        expected = explored_chances(plans_RL[r : r + 1, :T], row.shown_T[None, :T], count, np.array([share]))[0]
        planned += bool(np.allclose(expected, chances.slots[:T], atol=ROUNDING))
        used.append(r)
        shares.append(share)
    return used, np.array(shares), planned / max(len(used), 1)


def _logged(
    rows: Sequence[TrainingRow], known: Mapping[str, Chances], used: Sequence[int], L: int, weights_OL: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shown lists (-1 past a short one), their propensities (1 there) and what each slot earned (0 there): (R, L) each."""
    shown, logging, reward = np.full((len(used), L), -1), np.ones((len(used), L)), np.zeros((len(used), L))
    for i, r in enumerate(used):
        row, chances = rows[r], known[rows[r].request.request_id].slots
        T = min(len(row.shown_T), L)
        assert chances is not None
        shown[i, :T], logging[i, :T] = row.shown_T[:T], chances[:T]
        reward[i, :T] = (row.feedback_OT[:, :T] * weights_OL[:, :T]).sum(0)
    return shown, logging, reward
