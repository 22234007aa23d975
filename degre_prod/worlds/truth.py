"""The truth of a world: exact click probabilities and expected clicks of any list.

Exact because the probability of a click depends on the items shown before, never on earlier clicks; the user is still
there after a slot with probability p + (1 − p)(1 − h).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from degre_prod.errors import DataError
from degre_prod.worlds.catalogue import Catalogue, draw_catalogue
from degre_prod.worlds.spec import WorldSpec, world_spec

TRUTH_FILE = Path("truth") / "world.json"


@dataclass(frozen=True, slots=True)
class Problems:
    """The truth of B requests over their C candidates, float64.

    logits_BC: base logits · leave_BC: chance to leave after an unclicked item · effects_BCC[b, w, v]: what an earlier w
    adds to a later v, before saturation.
    """

    logits_BC: np.ndarray
    leave_BC: np.ndarray
    effects_BCC: np.ndarray


@dataclass(frozen=True, slots=True)
class World:
    """A world with its catalogue. Lists are given as indices into the request's candidates."""

    spec: WorldSpec
    seed: int
    catalogue: Catalogue

    def base_logits(self, user_ids_B: np.ndarray, item_ids_BC: np.ndarray) -> np.ndarray:
        """Logits (B, C) of a click in the first slot with nothing shown before."""
        items, spec = self._rows(item_ids_BC), self.spec
        taste_B3 = self.catalogue.taste[self._users(user_ids_B)].astype(np.float64)
        match_BC = np.einsum("bd,bcd->bc", taste_B3, self.catalogue.style[items].astype(np.float64))
        quality_BC = self.catalogue.quality[items].astype(np.float64)
        hook_BC = self.catalogue.hook[items].astype(np.float64)
        return spec.base + spec.taste_weight * match_BC + spec.quality_weight * quality_BC - spec.hook_penalty * hook_BC

    def leave(self, item_ids: np.ndarray) -> np.ndarray:
        """Chance to leave after showing each item without a click, in the shape of `item_ids`."""
        boredom = self.catalogue.boredom[self._rows(item_ids)].astype(np.float64)
        return self.spec.leave_low + (self.spec.leave_high - self.spec.leave_low) * boredom

    def effects(self, item_ids_BC: np.ndarray) -> np.ndarray:
        """W (…, C, C): what item w (second to last axis), shown earlier, adds to the logit of item v (last axis)."""
        items, spec = self._rows(item_ids_BC), self.spec
        style = self.catalogue.style[items].astype(np.float64)
        hook = self.catalogue.hook[items].astype(np.float64)
        similar = np.maximum(style @ np.swapaxes(style, -1, -2), 0.0)
        lift = hook[..., :, None] * (1.0 - hook[..., None, :]) * (spec.lift + spec.lift_similar * similar)
        return lift - spec.substitution * similar

    def problems(self, user_ids_B: np.ndarray, candidate_ids_BC: np.ndarray) -> Problems:
        """Everything the value of a list of these candidates depends on."""
        return Problems(
            self.base_logits(user_ids_B, candidate_ids_BC),
            self.leave(candidate_ids_BC),
            self.effects(candidate_ids_BC),
        )

    def click_probabilities(self, user_ids_B: np.ndarray, shown_ids_BL: np.ndarray) -> np.ndarray:
        """p (B, L): chance of a click at each slot of a shown list, given that the user is still there."""
        slots = np.arange(shown_ids_BL.shape[1])
        before_LL = slots[:, None] < slots[None, :]
        carried_BL = combine(self.spec, self.effects(shown_ids_BL) * before_LL)
        return sigmoid(self.base_logits(user_ids_B, shown_ids_BL) - self.spec.position * slots + carried_BL)

    def true_values(self, user_ids_B: np.ndarray, candidate_ids_BC: np.ndarray, lists_BKL: np.ndarray) -> np.ndarray:
        """Expected clicks (B, K) of lists given as indices into `candidate_ids_BC`; L may be shorter than the world's.

        Raises DataError for an id outside the catalogue or an index outside the candidates.
        """
        B, K, L = lists_BKL.shape
        if lists_BKL.size and not 0 <= lists_BKL.min() <= lists_BKL.max() < candidate_ids_BC.shape[1]:
            raise DataError(f"lists are indices into {candidate_ids_BC.shape[1]} candidates, from 0", rule="index")
        shown_BKL = np.take_along_axis(np.asarray(candidate_ids_BC)[:, None, :], lists_BKL, axis=2)
        values_BK = np.empty((B, K))
        rows = max(1, 20_000 // max(1, K))  # bounds the L×L effects held at once
        for start in range(0, B, rows):
            shown_XL = shown_BKL[start : start + rows].reshape(-1, L)
            clicks_XL = self.click_probabilities(np.repeat(user_ids_B[start : start + rows], K), shown_XL)
            values_BK[start : start + rows] = expected_clicks(clicks_XL, self.leave(shown_XL)).reshape(-1, K)
        return values_BK

    def _users(self, user_ids: np.ndarray) -> np.ndarray:
        return _row_numbers(user_ids, len(self.catalogue.taste), "user_id")

    def _rows(self, item_ids: np.ndarray) -> np.ndarray:
        return _row_numbers(item_ids, len(self.catalogue.style), "item_id")


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^−x)."""
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


def combine(spec: WorldSpec, effects: np.ndarray) -> np.ndarray:
    """What the earlier items add to a slot's logit: effects (…, W, V), zero where w isn't before v → (…, V)."""
    if not spec.saturated:
        return np.asarray(effects.sum(axis=-2))
    return np.tanh(np.maximum(effects, 0.0).sum(axis=-2)) + 2.0 * np.minimum(effects, 0.0).min(axis=-2)


def expected_clicks(clicks_XL: np.ndarray, leave_XL: np.ndarray) -> np.ndarray:
    """Σ_t (chance to be still there) × (click probability), over the last axis."""
    stays = 1.0 - (1.0 - clicks_XL) * leave_XL
    there = np.ones_like(stays)
    there[..., 1:] = np.cumprod(stays[..., :-1], axis=-1)
    return np.asarray((there * clicks_XL).sum(axis=-1))


def make_world(world: str, size: str, seed: int) -> World:
    """A world from its name, size ("small" or "large") and seed."""
    spec = world_spec(world, size)
    return World(spec, seed, draw_catalogue(spec, seed))


def load_world(dataset: Path) -> World:
    """The world behind a simulated data set; raises DataError when the data set isn't simulated."""
    file = dataset / TRUTH_FILE
    try:
        told = json.loads(file.read_text())
        return make_world(told["world"], told["size"], told["seed"])
    except FileNotFoundError:
        raise DataError("this data set has no known truth; `degre data simulate` writes one", file=str(file)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"not a world's description: {error!r}", file=str(file)) from error


def _row_numbers(ids: np.ndarray, count: int, column: str) -> np.ndarray:
    rows = np.asarray(ids, dtype=np.int64) - 1
    if rows.size and not 0 <= rows.min() <= rows.max() < count:
        raise DataError(f"ids of this world go from 1 to {count}", column=column, rule="known id")
    return rows
