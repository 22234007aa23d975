"""Candidates by kind: what no rule tells apart is one type, so that the look-ahead counts instead of naming items."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from degre_prod.constraints.rules import NONE, Rules


@dataclass(frozen=True)
class Types:
    """Rules of B requests in terms of their T types of freely placed candidates, ordered by the first candidate of each.

    type_BC: a candidate's type, -1 where it may not be placed freely · supply_BT · group_BT: gap group, -1 for none ·
    lead_BT: the first type of its gap group (itself without one) · must_BT · member_BQT ·
    within_BQT: the types of the one group that holds all of a quota's candidates (none when they spread) ·
    pinned_BL: whether a slot is · pin_group_BL · blocked_BLT: too close to a pinned item still to come ·
    free_slots_BL: slots from here on that are not pinned · used_BQ: the pinned items' share of the quotas ·
    possible_B: nothing contradicts itself at first sight.
    """

    type_BC: np.ndarray
    supply_BT: np.ndarray
    group_BT: np.ndarray
    lead_BT: np.ndarray
    must_BT: np.ndarray
    member_BQT: np.ndarray
    within_BQT: np.ndarray
    pinned_BL: np.ndarray
    pin_group_BL: np.ndarray
    blocked_BLT: np.ndarray
    free_slots_BL: np.ndarray
    used_BQ: np.ndarray
    possible_B: np.ndarray

    @cached_property
    def leads_BT(self) -> np.ndarray:  # noqa: N802 - axis letters
        """Whether a type is the first of its gap group."""
        return np.asarray(self.lead_BT == np.arange(self.lead_BT.shape[1]))

    @cached_property
    def grouped(self) -> bool:
        """Whether any gap group has several types."""
        return not bool(self.leads_BT.all())

    def by_group(self, request_N: np.ndarray, values_NT: np.ndarray) -> np.ndarray:
        """Sums over the types of a gap group, at each of its types: (N, T); a type without a group keeps its value."""
        if not self.grouped:
            return values_NT
        N, T = values_NT.shape
        lead = self.lead_BT[request_N]
        sums = np.bincount((np.arange(N)[:, None] * T + lead).ravel(), values_NT.ravel(), N * T).reshape(N, T)
        return np.take_along_axis(sums, lead, 1).astype(np.int64)  # counts: exact in float64


def types_of(rules: Rules) -> Types:
    """The types of every request's candidates."""
    B, C = rules.allowed_BC.shape
    pinned = rules.pinned_BL >= 0
    place = np.maximum(rules.pinned_BL, 0)
    row = np.arange(B)[:, None]
    is_pinned = np.zeros((B, C), bool)
    is_pinned[np.nonzero(pinned)[0], rules.pinned_BL[pinned]] = True
    freely = rules.allowed_BC & ~is_pinned
    type_BC, first_BT = _number(rules, freely)
    there = first_BT < C
    first = np.where(there, first_BT, 0)
    supply = np.zeros(first.shape, np.int64)
    np.add.at(supply, (np.nonzero(freely)[0], type_BC[freely]), 1)
    group = np.where(there, rules.gap_group_BC[row, first], NONE)
    lead = _leads(group)
    member = np.take_along_axis(rules.membership_BQC, first[:, None], 2) & there[:, None]
    pin_group = np.where(pinned, rules.gap_group_BC[row, place], NONE)
    pin_member = np.take_along_axis(rules.membership_BQC, place[:, None], 2) & pinned[:, None]
    must_and_free = (rules.must_BC & ~freely).any(1)
    return Types(
        type_BC=type_BC,
        supply_BT=supply,
        group_BT=group,
        lead_BT=lead,
        must_BT=rules.must_BC[row, first] & there,
        member_BQT=member,
        within_BQT=_within(member, lead),
        pinned_BL=pinned,
        pin_group_BL=pin_group,
        blocked_BLT=_blocked(group, pin_group, rules.gap_slots),
        free_slots_BL=(~pinned)[:, ::-1].cumsum(1)[:, ::-1],
        used_BQ=pin_member.sum(2),
        possible_B=~must_and_free
        & (rules.allowed_BC[row, place] | ~pinned).all(1)
        & ~too_close(pin_group, rules.gap_slots),
    )


def _number(rules: Rules, freely_BC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """type_BC (-1 where not freely placed), and the first candidate of each type (C for a type that is not there)."""
    B, C = freely_BC.shape
    signature = np.concatenate(
        [rules.gap_group_BC[:, None], rules.must_BC[:, None], rules.membership_BQC], axis=1, dtype=np.int64
    )
    if rules.gap_slots == 1:
        signature[:, 0] = NONE
    kinds = [np.unique(signature[b][:, freely_BC[b]], axis=1, return_index=True, return_inverse=True) for b in range(B)]
    T = max(1, *(len(index) for _, index, _ in kinds)) if B else 1
    out, first = np.full((B, C), NONE), np.full((B, T), C)
    for b, (_, index, inverse) in enumerate(kinds):
        order = np.argsort(index)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        candidates = np.flatnonzero(freely_BC[b])
        out[b, candidates] = rank[inverse.ravel()]
        first[b, : len(order)] = candidates[index[order]]
    return out, first


def _leads(group_BT: np.ndarray) -> np.ndarray:
    B, T = group_BT.shape
    own = np.tile(np.arange(T), (B, 1))
    first = np.full((B, group_BT.max(initial=0) + 1), T)
    np.minimum.at(first, (np.arange(B)[:, None], np.maximum(group_BT, 0)), np.where(group_BT >= 0, own, T))
    return np.where(group_BT >= 0, np.take_along_axis(first, np.maximum(group_BT, 0), 1), own)


def _within(member_BQT: np.ndarray, lead_BT: np.ndarray) -> np.ndarray:
    T = lead_BT.shape[1]
    lead = lead_BT[:, None]
    least = np.where(member_BQT, lead, T).min(2, keepdims=True)
    most = np.where(member_BQT, lead, -1).max(2, keepdims=True)
    return np.asarray((least == most) & (lead == least))


def _blocked(group_BT: np.ndarray, pin_group_BL: np.ndarray, gap_slots: int) -> np.ndarray:
    B, L = pin_group_BL.shape
    out = np.zeros((B, L, group_BT.shape[1]), bool)
    for ahead in range(1, min(gap_slots, L)):
        near = pin_group_BL[:, ahead:, None]
        out[:, : L - ahead] |= (near == group_BT[:, None]) & (near >= 0)
    return out


def too_close(group_BL: np.ndarray, gap_slots: int) -> np.ndarray:
    """bool (B,): two entries of one group less than `gap_slots` apart."""
    out = np.zeros(len(group_BL), bool)
    for ahead in range(1, min(gap_slots, group_BL.shape[1])):
        later, earlier = group_BL[:, ahead:], group_BL[:, :-ahead]
        out |= ((later == earlier) & (later >= 0)).any(1)
    return out
