"""Can a prefix still become a list that obeys every rule? A deterministic search that finds one, or gives up.

It fills slot by slot. Which type may stand next, and how they rank, depends on the state (the prefix) alone; so when it
finds a completion of a prefix, it also finds one of that prefix with the completion's own next item. This is why a mask
made of it, non-empty at the empty prefix, is never empty later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from degre_prod.constraints.rules import Rules
from degre_prod.constraints.types import Types

WIDTH = 16  # ways on kept by the second, wider try
WIDE = 2000  # types × (1 + quotas) up to which there is one: a request made to be costly gets the greedy try alone
_FAR = 1 << 20


@dataclass(frozen=True)
class State:
    """N prefixes: the request of each, what is left of each type, when its gap group is free again, quotas used
    (pinned items to come included), and whether no rule is broken."""

    request_N: np.ndarray
    supply_NT: np.ndarray
    free_at_NT: np.ndarray
    used_NQ: np.ndarray

    def take(self, rows: np.ndarray) -> State:
        """The states at these rows."""
        return State(self.request_N[rows], self.supply_NT[rows], self.free_at_NT[rows], self.used_NQ[rows])


def completable(rules: Rules, types: Types, state: State, slot: int) -> np.ndarray:
    """bool (N,): a completion from `slot` on was found, by the greedy choice or else by `WIDTH` ways side by side.

    Whether there is a wider try depends on the request alone, so that what was found stays found slot after slot.
    """
    found = _search(rules, types, state, slot, 1)
    missed = np.flatnonzero(~found)
    if len(missed) and state.supply_NT.shape[1] * (1 + state.used_NQ.shape[1]) <= WIDE:
        found[missed] = _search(rules, types, state.take(missed), slot, WIDTH)
    return found


def _search(rules: Rules, types: Types, state: State, slot: int, width: int) -> np.ndarray:
    """Ways are ordered by how far they left the first choices (sum of ranks), the best `width` of a prefix go on."""
    N = len(state.request_N)
    owner, cost, out = np.arange(N), np.zeros(N, np.int64), np.zeros(N, bool)
    for u in range(slot, rules.length):
        out[owner[ample(rules, types, state, u)]] = True
        going = np.flatnonzero(~out[owner])
        if len(going) < len(owner):
            state, owner, cost = state.take(going), owner[going], cost[going]
        if len(owner) == 0:
            return out
        pinned = types.pinned_BL[state.request_N, u]
        stay = np.flatnonzero(pinned)
        move = np.flatnonzero(~pinned)
        if len(stay) == len(pinned):
            state = pass_pinned(rules, types, state, u)
            continue
        ways = state if len(stay) == 0 else state.take(move)
        keys = priorities(rules, types, ways, u)
        if width == 1:
            chosen = keys.argmax(1)
            parent = np.flatnonzero(keys[np.arange(len(keys)), chosen] >= 0)
            chosen, rank = chosen[parent], np.zeros(len(parent), np.int64)
        else:
            order = np.argsort(-keys, axis=1, kind="stable")
            ranks = np.empty_like(order)
            np.put_along_axis(ranks, order, np.arange(keys.shape[1])[None], 1)
            parent, chosen = np.nonzero(keys >= 0)
            rank = ranks[parent, chosen]
        after = place(rules, types, ways.take(parent), chosen, u)
        whose, price = owner[move][parent], cost[move][parent] + rank
        if len(stay):
            rest = pass_pinned(rules, types, state.take(stay), u)
            after = _join(after, rest)
            whose, price = np.concatenate([whose, owner[stay]]), np.concatenate([price, cost[stay]])
        if width > 1:
            kept = _cheapest(whose, price, width)
            after, whose, price = after.take(kept), whose[kept], price[kept]
        state, owner, cost = after, whose, price
    out[owner[fulfilled(rules, types, state)]] = True
    return out


def _cheapest(owner_M: np.ndarray, cost_M: np.ndarray, width: int) -> np.ndarray:
    """The `width` cheapest ways of each owner, in order; ties in the order they come."""
    order = np.lexsort((cost_M, owner_M))
    owners = owner_M[order]
    starts = np.flatnonzero(np.concatenate([[True], owners[1:] != owners[:-1]])) if len(owners) else owners
    place_in = np.arange(len(owners)) - np.repeat(starts, np.diff(np.append(starts, len(owners))))
    return order[place_in < width]


def _join(one: State, other: State) -> State:
    return State(
        np.concatenate([one.request_N, other.request_N]),
        np.concatenate([one.supply_NT, other.supply_NT]),
        np.concatenate([one.free_at_NT, other.free_at_NT]),
        np.concatenate([one.used_NQ, other.used_NQ]),
    )


def place(rules: Rules, types: Types, state: State, type_N: np.ndarray, slot: int) -> State:
    """The states after putting an item of this type at the slot."""
    request, rows = state.request_N, np.arange(len(type_N))
    supply = state.supply_NT.copy()
    supply[rows, type_N] -= 1
    free_at = state.free_at_NT
    if rules.gap_slots > 1:
        group = types.group_BT[request, type_N]
        free_at = _stands(rules, types, state, group, slot)
    used = state.used_NQ
    if used.shape[1]:
        used = used + types.member_BQT[request, :, type_N]
    return State(request, supply, free_at, used)


def pass_pinned(rules: Rules, types: Types, state: State, slot: int) -> State:
    """The states after the slot's pinned item; its share of the quotas was taken at the start."""
    if rules.gap_slots == 1:
        return state
    group = types.pin_group_BL[state.request_N, slot]
    return State(state.request_N, state.supply_NT, _stands(rules, types, state, group, slot), state.used_NQ)


def _stands(rules: Rules, types: Types, state: State, group_N: np.ndarray, slot: int) -> np.ndarray:
    """free_at_NT with an item of this group at the slot."""
    hit = (types.group_BT[state.request_N] == group_N[:, None]) & (group_N >= 0)[:, None]
    return np.where(hit, slot + rules.gap_slots, state.free_at_NT)


def fulfilled(rules: Rules, types: Types, state: State) -> np.ndarray:
    """bool (N,) of full lists: every minimum reached, nothing that must be there left over."""
    left = ((state.supply_NT > 0) & types.must_BT[state.request_N]).any(1)
    return ~left & (state.used_NQ >= rules.min_BQ[state.request_N]).all(1)


def ample(rules: Rules, types: Types, state: State, slot: int) -> np.ndarray:
    """bool (N,): plainly completable, without searching: nothing is required any more, and there is more than enough.

    Only types count whose quotas have room for all the F slots left. Without a gap F such items are enough. With a gap of d
    slots, d groups in turn, the one placed longest ago first, fill F = q·d + r slots when each has q items and the first r of
    them one more: groups placed at different slots are then always d apart. Placing the first of them leaves this true.
    """
    request, d = state.request_N, rules.gap_slots
    free = rules.length - slot
    out = fulfilled(rules, types, state) & (types.free_slots_BL[request, slot] == free)
    rows = np.flatnonzero(out)
    if len(rows) == 0:
        return out
    state, request = state.take(rows), request[rows]
    usable = state.supply_NT
    if state.used_NQ.shape[1]:
        full = rules.max_BQ[request] - state.used_NQ < free
        usable = np.where((types.member_BQT[request] & full[:, :, None]).any(1), 0, usable)
    if d == 1:
        out[rows] = usable.sum(1) >= free
        return out
    lone = types.group_BT[request] < 0
    left = np.maximum(free - np.where(lone, usable, 0).sum(1), 0)
    share, rest = (left // d)[:, None], (left % d)[:, None]
    group = types.leads_BT[request] & ~lone
    items = types.by_group(request, usable)
    more, enough = group & (items > share), group & (items >= share)
    order = np.argsort(2 * state.free_at_NT - more, axis=1, kind="stable")
    more, enough = np.take_along_axis(more, order, 1), np.take_along_axis(enough, order, 1)
    before = more.cumsum(1) - more
    turns = (more & (before < rest)).sum(1) + (enough & (before >= rest)).sum(1)
    out[rows] = (left == 0) | ((more.sum(1) >= rest[:, 0]) & (turns >= d))
    return out


def priorities(rules: Rules, types: Types, state: State, slot: int) -> np.ndarray:
    """How the types rank for a slot that is not pinned: (N, T), larger first, -1 where the type may not stand there.

    First groups that fit only when they start now, then those with most items still required (by a rule, or because the
    others cannot fill the list), then types that lower a minimum or must be there, then the most items left.
    """
    request, supply = state.request_N, state.supply_NT
    free = types.free_slots_BL[request, slot]
    may = supply > 0
    must = types.must_BT[request]
    most = supply  # of a type: at most so many can still be placed
    need = must.astype(np.int64)
    must_left = np.where(must, supply, 0)
    required = must_left.sum(1)
    dead = required > free
    may &= must | (required < free)[:, None]
    asked: list[tuple[np.ndarray, np.ndarray]] = []  # (types of one group, items required of it)
    if state.used_NQ.shape[1]:
        member = types.member_BQT[request]
        due = np.maximum(rules.min_BQ[request] - state.used_NQ, 0)
        must_due = (member & (must_left > 0)[:, None]) * must_left[:, None]
        must_due = must_due.sum(2)
        room = rules.max_BQ[request] - state.used_NQ - must_due
        dead |= (room < 0).any(1)
        most = np.where(must, supply, np.minimum(supply, np.where(member, room[:, :, None], _FAR).min(1)))
        may &= most > 0
        lowers = member & (due > must_due)[:, :, None]
        need = need + (lowers & ~must[:, None]).sum(1)
        columns = np.array(rules.quota_column_Q)
        for column in range(columns.max() + 1):
            of = columns == column
            required = must_left.sum(1) + np.maximum(due - must_due, 0)[:, of].sum(1)
            dead |= required > free
            may &= must | (required < free)[:, None] | lowers[:, of].any(1)
            outside = np.where(member[:, of].any(1), 0, supply).sum(1)
            inside = np.minimum(
                (member[:, of] * supply[:, None]).sum(2), (rules.max_BQ[request] - state.used_NQ)[:, of]
            )
            dead |= inside.sum(1) + outside < free
        if rules.gap_slots > 1:
            within = types.within_BQT[request]
            asked = [(within[:, q], np.maximum(due, must_due)[:, q]) for q in range(within.shape[1])]
    T = supply.shape[1]
    key = need * 1024 + np.minimum(most, 1023)
    if rules.gap_slots > 1:
        may &= (state.free_at_NT <= slot) & ~types.blocked_BLT[request, slot]
        key, short = _spaced(rules, types, state, slot, most, must_left, asked, key, free)
        dead |= short
    else:
        dead |= np.maximum(most, 0).sum(1) < free
    key = key * T + np.arange(T - 1, -1, -1)
    return np.where(may & ~dead[:, None], key, -1)


def _spaced(
    rules: Rules,
    types: Types,
    state: State,
    slot: int,
    most_NT: np.ndarray,
    must_left_NT: np.ndarray,
    asked: list[tuple[np.ndarray, np.ndarray]],
    key_NT: np.ndarray,
    free_N: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The key with the groups' needs on top, and where some group cannot be spaced any more."""
    request, d, L = state.request_N, rules.gap_slots, rules.length
    grouped = types.group_BT[request] >= 0
    start = np.maximum(state.free_at_NT, slot)
    fits = np.where(grouped, np.maximum((L - 1 - start) // d + 1, 0), _FAR)
    most = np.minimum(types.by_group(request, np.maximum(most_NT, 0)), fits)
    required = np.where(grouped, types.by_group(request, must_left_NT), 0)
    for of_group, count in asked:
        required = np.maximum(required, of_group * count[:, None] * grouped)
    total = np.where(types.leads_BT[request], most, 0).sum(1)
    required = np.where(grouped, np.maximum(required, free_N[:, None] - (total[:, None] - most)), 0)
    short = (total < free_N) | (required > most).any(1)
    now = (required > 0) & (slot + 1 + (required - 1) * d > L - 1)
    most_of_group = np.where(grouped, np.minimum(most, 1023), 0)
    return ((now * 1024 + np.minimum(required, 1023)) * 1024 + most_of_group) * (1 << 20) + key_NT, short
