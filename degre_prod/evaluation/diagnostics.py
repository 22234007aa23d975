"""How far an evaluator can be believed in a world whose truth is known (METHOD §6, §7)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from degre_prod.encoding.store import EncodedSet
from degre_prod.errors import DataError
from degre_prod.evaluation.enumeration import random_lists, true_increments
from degre_prod.evaluation.isotonic import fit_slot_calibration, logged_increments
from degre_prod.evaluation.ranking import calibration_error, rmse_over_pooled_sd, rmse_over_sd, spearman_by_request
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.training.data import logged_lists, to_batch
from degre_prod.worlds.truth import World

REQUESTS, LISTS = 300, 64
EDITED = 8  # lists at each edit distance of a request


@dataclass(frozen=True)
class Diagnostics:
    """Over random lists: mean Spearman within a request, RMSE over the standard deviation within a request and over that of
    all lists, calibration error of the increments against the truth; over logged lists: calibration error against clicks."""

    spearman: float
    rmse_over_sd: float
    rmse_over_pooled_sd: float
    ece_logged: float
    ece_random: float


@dataclass(frozen=True)
class Group:
    """Values that belong together: what they have in common, how many, mean belief and truth, root mean squared error."""

    of: int
    count: int
    believed: float
    true: float
    rmse: float


@dataclass(frozen=True)
class Breakdown:
    """Where an evaluator errs, in expected clicks. Increments of random lists by slot (from 1) and by decile of the belief;
    values of whole lists by edit distance: how many slots hold another item than the logged list. The calibration errors of
    `Diagnostics` once more, after an isotonic map a slot that was fitted on validation requests."""

    by_slot: tuple[Group, ...]
    by_decile: tuple[Group, ...]
    by_edit_distance: tuple[Group, ...]
    ece_logged_calibrated: float
    ece_random_calibrated: float


def diagnose(
    model: LookaheadEvaluator, encoded: EncodedSet, world: World, user_ids_R: np.ndarray, candidate_ids_RC: np.ndarray
) -> Diagnostics:
    """Look at held-out requests (all of them have as many candidates); ids in the order of `encoded`."""
    believed, truth = _over_random_lists(model, encoded, world, user_ids_R, candidate_ids_RC)
    expected, clicks, known = logged_increments(model, encoded)
    return Diagnostics(
        spearman=float(np.nanmean(spearman_by_request(believed.sum(2), truth.sum(2)))),
        rmse_over_sd=rmse_over_sd(believed.sum(2), truth.sum(2)),
        rmse_over_pooled_sd=rmse_over_pooled_sd(believed.sum(2), truth.sum(2)),
        ece_logged=calibration_error(expected[known], clicks[known]),
        ece_random=calibration_error(believed.ravel(), truth.ravel()),
    )


def break_down(
    model: LookaheadEvaluator,
    validation: EncodedSet,
    encoded: EncodedSet,
    world: World,
    user_ids_R: np.ndarray,
    candidate_ids_RC: np.ndarray,
) -> Breakdown:
    """The errors of the same requests in detail; `validation` is where the calibration is fitted."""
    believed, truth = _over_random_lists(model, encoded, world, user_ids_R, candidate_ids_RC)
    calibrate = fit_slot_calibration(model, validation)
    expected, clicks, known = logged_increments(model, encoded)
    flat, true_flat = believed.ravel(), truth.ravel()
    deciles = np.array_split(np.argsort(flat, kind="stable"), 10)
    return Breakdown(
        by_slot=_groups((t + 1, believed[..., t], truth[..., t]) for t in range(believed.shape[-1])),
        by_decile=_groups((d + 1, flat[part], true_flat[part]) for d, part in enumerate(deciles)),
        by_edit_distance=_by_edit_distance(model, encoded, world, user_ids_R, candidate_ids_RC),
        ece_logged_calibrated=calibration_error(calibrate(expected)[known], clicks[known]),
        ece_random_calibrated=calibration_error(calibrate(believed).ravel(), true_flat),
    )


def edited_lists(logged_RL: np.ndarray, candidates: int, distance: int, count: int, seed: int) -> np.ndarray:
    """Lists (R, count, L) that differ from the logged one in exactly `distance` slots: drawn slots, filled with drawn
    candidates that are not elsewhere in the list. Raises DataError where there can be none."""
    R, L = logged_RL.shape
    if not 0 <= distance <= L or (distance == 1 and candidates == L):
        raise DataError(f"no list of {L} out of {candidates} candidates differs in exactly {distance} slots")
    rng = np.random.default_rng([seed, distance])
    out = np.repeat(logged_RL[:, None], count, axis=1).reshape(-1, L)
    slots_XD = np.argsort(rng.random(out.shape), axis=1)[:, :distance]
    stays = np.ones((len(out), candidates), bool)
    np.put_along_axis(stays, np.take_along_axis(out, slots_XD, 1), False, axis=1)
    taken = np.zeros_like(stays)
    np.put_along_axis(taken, out, True, axis=1)
    free = ~taken | ~stays
    left = np.arange(len(out)) if distance else np.arange(0)
    while len(left):  # draws that put an item back where it was are drawn again
        keys = np.where(free[left], rng.random((len(left), candidates)), 2.0)
        drawn = np.argsort(keys, axis=1)[:, :distance]
        edited = out[left]
        before = np.take_along_axis(edited, slots_XD[left], 1)
        good = (drawn != before).all(1)
        np.put_along_axis(edited, slots_XD[left], drawn, axis=1)
        out[left[good]] = edited[good]
        left = left[~good]
    return out.reshape(R, count, L)


def _by_edit_distance(
    model: LookaheadEvaluator, encoded: EncodedSet, world: World, user_ids_R: np.ndarray, candidate_ids_RC: np.ndarray
) -> tuple[Group, ...]:
    L = world.spec.list_length
    logged, _, _ = logged_lists(encoded, np.arange(len(encoded)), L, None)
    full = np.flatnonzero((logged >= 0).all(1))[:REQUESTS]
    out = []
    for distance in range(L + 1):
        lists = edited_lists(logged[full], candidate_ids_RC.shape[1], distance, EDITED if distance else 1, seed=0)
        truth = world.true_values(user_ids_R[full], candidate_ids_RC[full], lists)
        believed = np.stack([_increments(model, encoded, full, lists[:, k]) for k in range(lists.shape[1])], axis=1)
        out.append((distance, believed.sum(2), truth))
    return _groups(out)


def _over_random_lists(
    model: LookaheadEvaluator, encoded: EncodedSet, world: World, user_ids_R: np.ndarray, candidate_ids_RC: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Believed and true increments of the same random lists: (R, K, L) each, of the first requests."""
    L, R = world.spec.list_length, min(REQUESTS, len(encoded))
    lists = random_lists(R, candidate_ids_RC.shape[1], L, LISTS, seed=0)
    truth = true_increments(world, user_ids_R[:R], candidate_ids_RC[:R], lists)
    believed = np.stack([_increments(model, encoded, np.arange(R), lists[:, k]) for k in range(LISTS)], axis=1)
    return believed, truth


def _increments(
    model: LookaheadEvaluator, encoded: EncodedSet, requests: np.ndarray, lists_RL: np.ndarray
) -> np.ndarray:
    """Expected clicks of every slot, (R, L)."""
    batch = to_batch(encoded, requests, only_BX=lists_RL)
    with torch.inference_mode():
        return model.increments(batch, torch.arange(lists_RL.shape[1]).expand(len(requests), -1))[0][..., 0].numpy()


def _groups(parts: Iterable[tuple[int, np.ndarray, np.ndarray]]) -> tuple[Group, ...]:
    return tuple(
        Group(of, b.size, float(b.mean()), float(t.mean()), float(np.sqrt(((b - t) ** 2).mean()))) for of, b, t in parts
    )
