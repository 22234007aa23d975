"""How far an evaluator can be believed in a world whose truth is known (METHOD §6, §7)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from degre_prod.encoding.store import EncodedSet
from degre_prod.evaluation.enumeration import random_lists, true_increments
from degre_prod.evaluation.ranking import calibration_error, rmse_over_pooled_sd, rmse_over_sd, spearman_by_request
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.training.data import logged_lists, to_batch
from degre_prod.worlds.truth import World

REQUESTS, LISTS = 300, 64


@dataclass(frozen=True)
class Diagnostics:
    """Over random lists: mean Spearman within a request, RMSE over the standard deviation within a request and over that of
    all lists, calibration error of the increments against the truth; over logged lists: calibration error against clicks."""

    spearman: float
    rmse_over_sd: float
    rmse_over_pooled_sd: float
    ece_logged: float
    ece_random: float


def diagnose(
    model: LookaheadEvaluator, encoded: EncodedSet, world: World, user_ids_R: np.ndarray, candidate_ids_RC: np.ndarray
) -> Diagnostics:
    """Look at held-out requests (all of them have as many candidates); ids in the order of `encoded`."""
    L, R = world.spec.list_length, min(REQUESTS, len(encoded))
    lists = random_lists(R, candidate_ids_RC.shape[1], L, LISTS, seed=0)
    truth = true_increments(world, user_ids_R[:R], candidate_ids_RC[:R], lists)
    believed = np.stack([_increments(model, encoded, np.arange(R), lists[:, k]) for k in range(LISTS)], axis=1)
    logged, feedback, _ = logged_lists(encoded, np.arange(len(encoded)), L, None)
    expected = _increments(model, encoded, np.arange(len(encoded)), logged)
    return Diagnostics(
        spearman=float(np.nanmean(spearman_by_request(believed.sum(2), truth.sum(2)))),
        rmse_over_sd=rmse_over_sd(believed.sum(2), truth.sum(2)),
        rmse_over_pooled_sd=rmse_over_pooled_sd(believed.sum(2), truth.sum(2)),
        ece_logged=calibration_error(expected.ravel(), feedback[:, 0].ravel()),
        ece_random=calibration_error(believed.ravel(), truth.ravel()),
    )


def _increments(
    model: LookaheadEvaluator, encoded: EncodedSet, requests: np.ndarray, lists_RL: np.ndarray
) -> np.ndarray:
    """Expected clicks of every slot, (R, L)."""
    batch = to_batch(encoded, requests, only_BX=lists_RL)
    with torch.inference_mode():
        return model.increments(batch, torch.arange(lists_RL.shape[1]).expand(len(requests), -1))[0][..., 0].numpy()
