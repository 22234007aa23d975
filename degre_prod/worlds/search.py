"""True-value beam search and local search over many requests at once: the parts of a large world's reference.

Effects of earlier items enter a slot's logit through two statistics: their sum and, in a saturated world, their
minimum. Both can be updated instead of recomputed, which makes this affordable.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from degre_prod.worlds.spec import WorldSpec
from degre_prod.worlds.truth import Problems, expected_clicks, sigmoid

_GAIN = 1e-9  # smaller improvements are rounding, and could cycle


@dataclass(frozen=True, slots=True)
class Effects:
    """Effects split into what is summed and what is minimised; `low` is None where nothing saturates.

    add_BCC, low_BCC: [b, w, v], earlier w on later v.
    """

    add_BCC: np.ndarray
    low_BCC: np.ndarray | None

    @classmethod
    def of(cls, spec: WorldSpec, effects_BCC: np.ndarray) -> Effects:
        if not spec.saturated:
            return cls(effects_BCC, None)
        return cls(np.maximum(effects_BCC, 0.0), np.minimum(effects_BCC, 0.0))


def carried(total: np.ndarray, lowest: np.ndarray | None) -> np.ndarray:
    """The logit's gain from the two statistics of the items before."""
    return total if lowest is None else np.tanh(total) + 2.0 * lowest


def beam(spec: WorldSpec, problems: Problems, width: int, first_BT: np.ndarray | None = None) -> np.ndarray:
    """The best list (B, L) of a beam on true prefix values; `first_BT` fixes the first slots."""
    effects = Effects.of(spec, problems.effects_BCC)
    B, C = problems.logits_BC.shape
    rows_B1 = np.arange(B)[:, None]
    lists_BKL = np.zeros((B, 1, spec.list_length), dtype=np.int64)
    value_BK, there_BK = np.zeros((B, 1)), np.ones((B, 1))
    free_BKC = np.ones((B, 1, C), dtype=bool)
    total_BKC = np.zeros((B, 1, C))
    lowest_BKC = None if effects.low_BCC is None else np.zeros((B, 1, C))
    for t in range(spec.list_length):
        clicks_BKC = sigmoid(problems.logits_BC[:, None] - spec.position * t + carried(total_BKC, lowest_BKC))
        child_BKC = np.where(free_BKC, value_BK[..., None] + there_BK[..., None] * clicks_BKC, -1.0)
        if first_BT is not None and t < first_BT.shape[1]:
            chosen_BK = first_BT[:, t : t + 1]
        else:
            chosen_BK = _best(child_BKC.reshape(B, -1), 1 if t == spec.list_length - 1 else width)
        parent_BK, item_BK = chosen_BK // C, chosen_BK % C
        value_BK = child_BKC[rows_B1, parent_BK, item_BK]
        missed_BK = 1.0 - clicks_BKC[rows_B1, parent_BK, item_BK]
        there_BK = there_BK[rows_B1, parent_BK] * (1.0 - missed_BK * problems.leave_BC[rows_B1, item_BK])
        lists_BKL = lists_BKL[rows_B1, parent_BK]
        lists_BKL[:, :, t] = item_BK
        free_BKC = free_BKC[rows_B1, parent_BK]
        np.put_along_axis(free_BKC, item_BK[..., None], False, axis=2)
        total_BKC = total_BKC[rows_B1, parent_BK] + effects.add_BCC[rows_B1, item_BK]
        if lowest_BKC is not None and effects.low_BCC is not None:
            lowest_BKC = np.minimum(lowest_BKC[rows_B1, parent_BK], effects.low_BCC[rows_B1, item_BK])
    return lists_BKL[:, 0]


def _best(values_BX: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` highest values (fewer when there are fewer valid ones), lower index first among equals."""
    valid = int((values_BX >= 0).sum(axis=1).min())
    count = min(count, valid)
    if count == 1:
        return values_BX.argmax(axis=1)[:, None]
    if count < values_BX.shape[1]:
        return np.argpartition(-values_BX, count - 1, axis=1)[:, :count]
    return np.broadcast_to(np.arange(values_BX.shape[1]), values_BX.shape)


@dataclass(frozen=True, slots=True)
class _Moves:
    """All swaps and insertions of a list of L slots: order_ML permutes slots; before_LML[x, m, y]: y comes before x."""

    order_ML: np.ndarray
    slot_ML: np.ndarray
    before_LML: np.ndarray


@lru_cache(maxsize=8)
def _moves(L: int) -> _Moves:
    orders = set()
    for i in range(L):
        for j in range(L):
            swapped, moved = list(range(L)), list(range(L))
            swapped[i], swapped[j] = swapped[j], swapped[i]
            moved.insert(j, moved.pop(i))
            orders |= {tuple(swapped), tuple(moved)}
    orders.discard(tuple(range(L)))
    order_ML = np.array(sorted(orders), dtype=np.int64).reshape(-1, L)
    slot_ML = np.argsort(order_ML, axis=1)
    before_MLL = slot_ML[:, None, :] < slot_ML[:, :, None]  # [m, x, y]
    return _Moves(order_ML, slot_ML, np.ascontiguousarray(before_MLL.transpose(1, 0, 2)))


def local_search(
    spec: WorldSpec, problems: Problems, rows_N: np.ndarray, lists_NL: np.ndarray, chunk: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Climb from each list to a local optimum under swap, insert and replace, always by the best neighbour.

    `rows_N` says which request a list belongs to. Returns values (N,) and lists (N, L).
    """
    effects = Effects.of(spec, problems.effects_BCC)
    lists_NL = lists_NL.copy()
    values_N = np.empty(len(lists_NL))
    active = np.arange(len(lists_NL))
    while active.size:
        climbing = []
        for start in range(0, len(active), chunk):
            part = active[start : start + chunk]
            value, best_value, best_list = _best_neighbour(spec, problems, effects, rows_N[part], lists_NL[part])
            better = best_value > value + _GAIN
            values_N[part] = np.where(better, best_value, value)
            lists_NL[part[better]] = best_list[better]
            climbing.append(part[better])
        active = np.concatenate(climbing)
    return values_N, lists_NL


def _best_neighbour(
    spec: WorldSpec, problems: Problems, effects: Effects, rows_N: np.ndarray, lists_NL: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value of each list (N,), value of its best neighbour (N,), and that neighbour (N, L)."""
    N, L = lists_NL.shape
    moves, each = _moves(L), np.arange(N)
    moved_NM = _moved_values(spec, problems, effects, rows_N, lists_NL)
    values_N, replaced_NLC = _replaced_values(spec, problems, effects, rows_N, lists_NL)
    move_N = moved_NM.argmax(axis=1)
    replace_N = replaced_NLC.reshape(N, -1).argmax(axis=1)
    slot_N, item_N = np.divmod(replace_N, replaced_NLC.shape[2])
    by_move_N, by_replace_N = moved_NM[each, move_N], replaced_NLC[each, slot_N, item_N]
    neighbour_NL = np.take_along_axis(lists_NL, moves.order_ML[move_N], axis=1)
    replace = by_replace_N > by_move_N
    neighbour_NL[replace] = lists_NL[replace]
    neighbour_NL[replace, slot_N[replace]] = item_N[replace]
    return values_N, np.maximum(by_move_N, by_replace_N), neighbour_NL


def _moved_values(
    spec: WorldSpec, problems: Problems, effects: Effects, rows_N: np.ndarray, lists_NL: np.ndarray
) -> np.ndarray:
    """Values (N, M) of all swaps and insertions."""
    moves, at = _moves(lists_NL.shape[1]), (rows_N[:, None, None], lists_NL[:, :, None], lists_NL[:, None, :])
    add_LNL = effects.add_BCC[at].transpose(2, 0, 1)  # [x, n, y]: y on x
    total_LNM = add_LNL @ moves.before_LML.transpose(0, 2, 1).astype(np.float64)
    lowest_LNM = None
    if effects.low_BCC is not None:
        low_LNL = effects.low_BCC[at].transpose(2, 0, 1)
        lowest_LNM = np.where(moves.before_LML[:, None], low_LNL[:, :, None, :], 0.0).min(axis=3)
    base_LN = problems.logits_BC[rows_N[:, None], lists_NL].T
    place_LM = spec.position * moves.slot_ML.T
    clicks_LNM = sigmoid(base_LN[:, :, None] - place_LM[:, None, :] + carried(total_LNM, lowest_LNM))
    if not spec.has_exit:
        return np.asarray(clicks_LNM.sum(axis=0))
    clicks_NML = np.take_along_axis(clicks_LNM.transpose(1, 2, 0), moves.order_ML[None], axis=2)
    leave_NL = problems.leave_BC[rows_N[:, None], lists_NL]
    return expected_clicks(clicks_NML, leave_NL[:, moves.order_ML])


def _replaced_values(
    spec: WorldSpec, problems: Problems, effects: Effects, rows_N: np.ndarray, lists_NL: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values (N,) of the lists, and (N, L, C) with each slot given to each other candidate; −1 where it is in use."""
    N, L = lists_NL.shape
    C = problems.logits_BC.shape[1]
    each_N1, slots = np.arange(N)[:, None], np.arange(L)
    later_LL = slots[:, None] < slots[None, :]
    base_NC, leave_NC = problems.logits_BC[rows_N], problems.leave_BC[rows_N]
    add = _Statistic.of(effects.add_BCC, rows_N, lists_NL)
    low = None if effects.low_BCC is None else _Statistic.of(effects.low_BCC, rows_N, lists_NL)

    total_NL = (add.inside_NLL * later_LL).sum(axis=1)
    lowest_NL = None if low is None else (low.inside_NLL * later_LL).min(axis=1)
    fixed_NL = base_NC[each_N1, lists_NL] - spec.position * slots
    clicks_NL = sigmoid(fixed_NL + carried(total_NL, lowest_NL))
    leave_NL = leave_NC[each_N1, lists_NL]
    there_NL = np.ones((N, L + 1))
    there_NL[:, 1:] = np.cumprod(1.0 - (1.0 - clicks_NL) * leave_NL, axis=1)
    value_NL = np.zeros((N, L + 1))
    value_NL[:, 1:] = np.cumsum(there_NL[:, :-1] * clicks_NL, axis=1)

    out_NLC = np.empty((N, L, C))
    before_total_NC = np.zeros((N, C))
    before_lowest_NC = None if low is None else np.zeros((N, C))
    for i in range(L):
        new_NC = sigmoid(base_NC - spec.position * i + carried(before_total_NC, before_lowest_NC))
        tail = slice(i + 1, L)
        total_NTC = (total_NL[:, tail] - add.inside_NLL[:, i, tail])[:, :, None] + add.into_NLC[:, tail]
        lowest_NTC = None
        if low is not None and before_lowest_NC is not None:
            rest_LL = later_LL & (slots[:, None] != i)
            rest_NT = (low.inside_NLL * rest_LL)[:, :, tail].min(axis=1)
            lowest_NTC = np.minimum(rest_NT[:, :, None], low.into_NLC[:, tail])
            before_lowest_NC = np.minimum(before_lowest_NC, low.from_NLC[:, i])
        clicks_NTC = sigmoid(fixed_NL[:, tail, None] + carried(total_NTC, lowest_NTC))
        if spec.has_exit:
            following_NC = np.zeros((N, C))
            for t in range(clicks_NTC.shape[1] - 1, -1, -1):  # value from slot t on, if still there
                stay_NC = 1.0 - (1.0 - clicks_NTC[:, t]) * leave_NL[:, i + 1 + t, None]
                following_NC = clicks_NTC[:, t] + stay_NC * following_NC
            following_NC *= 1.0 - (1.0 - new_NC) * leave_NC
        else:
            following_NC = clicks_NTC.sum(axis=1)
        out_NLC[:, i] = value_NL[:, i, None] + there_NL[:, i, None] * (new_NC + following_NC)
        before_total_NC = before_total_NC + add.from_NLC[:, i]
    used_NC = np.zeros((N, C), dtype=bool)
    used_NC[each_N1, lists_NL] = True
    return value_NL[:, -1], np.where(used_NC[:, None], -1.0, out_NLC)


@dataclass(frozen=True, slots=True)
class _Statistic:
    """Effects around lists; axis L is always a listed item.

    from_NLC: of listed items on candidates · into_NLC: of candidates on listed items · inside_NLL[n, w, v]: of listed w
    on listed v.
    """

    from_NLC: np.ndarray
    into_NLC: np.ndarray
    inside_NLL: np.ndarray

    @classmethod
    def of(cls, effects_BCC: np.ndarray, rows_N: np.ndarray, lists_NL: np.ndarray) -> _Statistic:
        from_NLC = effects_BCC[rows_N[:, None], lists_NL]
        into_NCL = np.take_along_axis(effects_BCC[rows_N], lists_NL[:, None, :], axis=2)
        inside_NLL = np.take_along_axis(from_NLC, lists_NL[:, None, :], axis=2)
        return cls(from_NLC, np.ascontiguousarray(into_NCL.transpose(0, 2, 1)), inside_NLL)
