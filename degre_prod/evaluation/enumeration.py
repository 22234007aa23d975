"""All lists of a small world's requests, and random lists of any world's, with their true values."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from degre_prod.worlds.truth import World

_CHUNK = 16


def all_values(world: World, user_ids_R: np.ndarray, candidate_ids_RC: np.ndarray) -> np.ndarray:
    """True values of every ordered list (R, X), lists in lexicographic order: X = 1,680 in small worlds."""
    C, L = candidate_ids_RC.shape[1], world.spec.list_length
    lists_XL = np.array(list(permutations(range(C), L)), dtype=np.int64)
    out = np.empty((len(user_ids_R), len(lists_XL)))
    for start in range(0, len(out), _CHUNK):
        part = slice(start, start + _CHUNK)
        every = np.broadcast_to(lists_XL, (len(user_ids_R[part]), *lists_XL.shape))
        out[part] = world.true_values(user_ids_R[part], candidate_ids_RC[part], every)
    return out


def random_lists(requests: int, candidates: int, length: int, count: int, seed: int) -> np.ndarray:
    """Uniformly random lists of distinct candidates (requests, count, length)."""
    keys = np.random.default_rng(seed).random((requests, count, candidates))
    return np.argsort(keys, axis=2)[:, :, :length]


def true_increments(
    world: World, user_ids_R: np.ndarray, candidate_ids_RC: np.ndarray, lists_RKL: np.ndarray
) -> np.ndarray:
    """True expected clicks of every slot (R, K, L); the chance to have left before is in them."""
    prefixes = [
        world.true_values(user_ids_R, candidate_ids_RC, lists_RKL[:, :, : t + 1]) for t in range(lists_RKL.shape[2])
    ]
    return np.diff(np.stack(prefixes, axis=2), axis=2, prepend=0.0)
