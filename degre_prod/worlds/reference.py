"""The best list of a request by its true value: exact in small worlds, a strong search in large ones."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np

from degre_prod.worlds.search import beam, local_search
from degre_prod.worlds.spec import WorldSpec
from degre_prod.worlds.truth import Problems, World, combine, expected_clicks, sigmoid

_CHUNK = 16  # requests searched together: the arrays of a beam of 256 stay in the cache
_HOOK_STARTS = 5
_BEAMS = (16, 256)


def reference_values(
    world: World,
    user_ids_B: np.ndarray,
    candidate_ids_BC: np.ndarray,
    *,
    progress: Callable[[int], object] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The reference list of each request: values (B,) and lists (B, L) as indices into the candidates.

    Small worlds are enumerated, so the value is the optimum. Large ones get the best of true-value beams (width 16 and
    256) and hook-first starts, each climbed to a local optimum under swap, insert and replace: a lower bound of the
    optimum. `progress` is called with the number of requests just done.
    """
    best = enumerated if world.spec.size == "small" else searched
    values, lists = [np.empty(0)], [np.empty((0, world.spec.list_length), dtype=np.int64)]
    for start in range(0, len(user_ids_B), _CHUNK):
        part = slice(start, start + _CHUNK)
        values_b, lists_bL = best(world.spec, world.problems(user_ids_B[part], candidate_ids_BC[part]))
        values.append(values_b)
        lists.append(lists_bL)
        if progress is not None:
            progress(len(values_b))
    return np.concatenate(values), np.concatenate(lists)


def true_beam_values(world: World, user_ids_B: np.ndarray, candidate_ids_BC: np.ndarray, width: int) -> np.ndarray:
    """Values (B,) of the best list that a beam of this width finds by the true value of prefixes: how far a perfect
    evaluator without a value to go would get."""
    out = np.empty(len(user_ids_B))
    for start in range(0, len(out), _CHUNK):
        part = slice(start, start + _CHUNK)
        users, candidates = user_ids_B[part], candidate_ids_BC[part]
        lists_BL = beam(world.spec, world.problems(users, candidates), width)
        out[part] = world.true_values(users, candidates, lists_BL[:, None])[:, 0]
    return out


def enumerated(spec: WorldSpec, problems: Problems) -> tuple[np.ndarray, np.ndarray]:
    """The optimum over all ordered lists: values (B,), lists (B, L)."""
    B, C = problems.logits_BC.shape
    L = spec.list_length
    lists_XL = np.array(list(permutations(range(C), L)), dtype=np.int64)
    clicks_BXL = np.empty((B, len(lists_XL), L))
    for t in range(L):
        effects_BXW = problems.effects_BCC[:, lists_XL[:, :t], lists_XL[:, t : t + 1]]
        carried_BX = combine(spec, effects_BXW[..., None])[..., 0] if t else 0.0
        clicks_BXL[:, :, t] = sigmoid(problems.logits_BC[:, lists_XL[:, t]] - spec.position * t + carried_BX)
    values_BX = expected_clicks(clicks_BXL, problems.leave_BC[:, lists_XL])
    best_B = values_BX.argmax(axis=1)
    return values_BX[np.arange(B), best_B], lists_XL[best_B]


def searched(spec: WorldSpec, problems: Problems) -> tuple[np.ndarray, np.ndarray]:
    """The best local optimum over all starts: values (B,), lists (B, L)."""
    starts = [beam(spec, problems, width) for width in _BEAMS] + hook_first(spec, problems)
    lists_SBL = np.stack(starts)
    S, B, L = lists_SBL.shape
    values_N, lists_NL = local_search(spec, problems, np.tile(np.arange(B), S), lists_SBL.reshape(-1, L))
    best_B = values_N.reshape(S, B).argmax(axis=0)
    each = np.arange(B)
    return values_N.reshape(S, B)[best_B, each], lists_NL.reshape(S, B, L)[best_B, each]


def hook_first(spec: WorldSpec, problems: Problems) -> list[np.ndarray]:
    """Lists that open with the 1, 2, … most lifting items and go on greedily; none where nothing lifts."""
    if not spec.has_hooks:
        return []
    top_BL = np.argsort(-problems.logits_BC, axis=1, kind="stable")[:, : spec.list_length]
    lift_BCL = np.take_along_axis(np.maximum(problems.effects_BCC, 0.0), top_BL[:, None, :], axis=2)
    order_BC = np.argsort(-lift_BCL.sum(axis=2), axis=1, kind="stable")
    return [beam(spec, problems, 1, first_BT=order_BC[:, :count]) for count in range(1, _HOOK_STARTS + 1)]
