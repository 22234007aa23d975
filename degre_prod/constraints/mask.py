"""THE mask: which items may come next. Mining, targets, training and serving all ask here."""

from __future__ import annotations

import numpy as np

from degre_prod.constraints.completion import State, completable, pass_pinned, place, priorities
from degre_prod.constraints.rules import NONE, Rules
from degre_prod.constraints.types import Types, too_close


def feasible_next(rules: Rules, prefixes_BKT: np.ndarray, among_BKC: np.ndarray | None = None) -> np.ndarray:
    """mask_BKC, bool: the candidates that may stand in slot T after each prefix (indices into the candidates; T < length).

    One may when no rule forbids it there and a completion after it is found (degre_prod.constraints.completion). So every
    list built through the mask obeys every rule, and the mask that is not empty at the empty prefix is never empty later.
    It is empty after a prefix that breaks a rule, and where no completion is found. With `among_BKC` (bool) only these are
    looked at, all others are False: a greedy pass needs the best that may come next, not all of them.
    """
    B, K, slot = prefixes_BKT.shape
    types = rules.types
    request = np.repeat(np.arange(B), K)
    items = prefixes_BKT.reshape(B * K, slot)
    state, sound = _state(rules, types, request, items)
    out = np.zeros((B * K, rules.allowed_BC.shape[1]), bool)
    pinned = types.pinned_BL[request, slot]
    held = np.flatnonzero(sound & pinned)
    if len(held):
        after = pass_pinned(rules, types, state.take(held), slot)
        found = held[completable(rules, types, after, slot + 1)]
        out[found, rules.pinned_BL[request[found], slot]] = True
    open_ = np.flatnonzero(sound & ~pinned)
    if len(open_):
        before = state.take(open_)
        may = priorities(rules, types, before, slot) >= 0
        if among_BKC is not None:
            asked = np.zeros((len(open_), may.shape[1] + 1), bool)  # the last for type -1
            who, candidate = np.nonzero(among_BKC.reshape(B * K, -1)[open_])
            asked[who, types.type_BC[request[open_[who]], candidate]] = True
            may &= asked[:, :-1]
        row, kind = np.nonzero(may)
        found_RT = np.zeros((len(open_), before.supply_NT.shape[1] + 1), bool)  # the last for type -1
        found_RT[row, kind] = completable(rules, types, place(rules, types, before.take(row), kind, slot), slot + 1)
        out[open_] = np.take_along_axis(found_RT, types.type_BC[request[open_]], 1)
    np.put_along_axis(out, items, False, axis=1)
    mask = out.reshape(B, K, -1)
    return mask if among_BKC is None else mask & among_BKC


def feasible_requests(rules: Rules) -> np.ndarray:
    """bool (B,): the requests for which a list that obeys every rule is found."""
    return np.asarray(feasible_next(rules, np.zeros((len(rules), 1, 0), np.int64)).any((1, 2)))


def feasible_along(rules: Rules, lists_BKL: np.ndarray) -> np.ndarray:
    """The mask before every slot of given full lists: mask_BKLC."""
    return np.stack([feasible_next(rules, lists_BKL[:, :, :t]) for t in range(lists_BKL.shape[2])], axis=2)


def obeyed(rules: Rules, lists_BKL: np.ndarray) -> np.ndarray:
    """bool (B, K): which full lists of each request obey its rules (check_list says which a list breaks)."""
    final = feasible_next(rules, lists_BKL[:, :, :-1])
    return np.take_along_axis(final, lists_BKL[:, :, -1:], 2)[:, :, 0]


def first_lists(rules: Rules) -> np.ndarray:
    """The upstream order as far as the rules allow: slot by slot the first candidate that may come next. order_BL, -1 in
    every slot of a request without a list."""
    B = len(rules)
    order, there = np.zeros((B, 1, 0), np.int64), np.ones(B, bool)
    for _ in range(rules.length):
        feasible = feasible_next(rules, order)
        there &= feasible.any((1, 2))
        order = np.concatenate([order, feasible.argmax(2)[:, :, None]], axis=2)
    return np.where(there[:, None], order[:, 0], NONE)


def _state(rules: Rules, types: Types, request_N: np.ndarray, items_NT: np.ndarray) -> tuple[State, np.ndarray]:
    """The state after each prefix, and whether the prefix breaks no rule."""
    slot = items_NT.shape[1]
    rows = request_N[:, None]
    pinned = types.pinned_BL[rows, np.arange(slot)]
    kind = types.type_BC[rows, items_NT]
    right = np.where(pinned, rules.pinned_BL[rows, np.arange(slot)] == items_NT, kind >= 0)
    used_once = (np.diff(np.sort(items_NT, axis=1), axis=1) > 0).all(1)
    sound = types.possible_B[request_N] & right.all(1) & used_once
    supply = types.supply_BT[request_N]
    free = ~pinned & (kind >= 0)
    n, t = np.nonzero(free)
    np.subtract.at(supply, (n, kind[n, t]), 1)
    used = types.used_BQ[request_N]
    if used.shape[1]:
        used = used.copy()
        np.add.at(used, n, types.member_BQT[request_N[n], :, kind[n, t]])
        sound &= (used <= rules.max_BQ[request_N]).all(1)
    free_at = np.zeros(supply.shape, np.int64)
    if rules.gap_slots > 1:
        group = rules.gap_group_BC[rows, items_NT]
        sound &= ~too_close(group, rules.gap_slots)
        sound[n[types.blocked_BLT[request_N[n], t, kind[n, t]]]] = False
        for s in range(max(0, slot - rules.gap_slots + 1), slot):
            hit = (types.group_BT[request_N] == group[:, s, None]) & (group[:, s] >= 0)[:, None]
            free_at[hit] = s + rules.gap_slots
    return State(request_N, supply, free_at, used), sound
