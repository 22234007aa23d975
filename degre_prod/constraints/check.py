"""Does a list obey the rules, and if no list can: which rule is to blame?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from degre_prod.constraints.greedy import feasible
from degre_prod.constraints.rules import NONE, Rules, compile_rules
from degre_prod.constraints.spec import Constraints, QuotaRule, StandingConstraints
from degre_prod.errors import ConstraintError
from degre_prod.requests import Id

MOST_TRIED = 16  # rules left out in turn to find the one to blame: each try may search long
Columns = Mapping[str, Sequence[Any]]


def check_list(rules: Rules, order: Sequence[int] | np.ndarray, request: int = 0) -> None:
    """Raise ConstraintError naming the first rule that a full list (indices into the candidates) of a request breaks."""
    items = np.asarray(order, np.int64)
    if len(items) != rules.length:
        raise ConstraintError(f"the list has {len(items)} items, {rules.length} were due")
    if len(set(items.tolist())) != len(items):
        raise ConstraintError("the list holds an item twice")
    if (items < 0).any() or (items >= rules.allowed_BC.shape[1]).any():
        raise ConstraintError("the list holds items that were not candidates")
    barred = np.flatnonzero(~rules.allowed_BC[request, items])
    if len(barred):
        raise ConstraintError(f"slot {barred[0]} holds a candidate that is excluded or not allowed")
    pinned = rules.pinned_BL[request]
    moved = np.flatnonzero((pinned != NONE) & (pinned != items))
    if len(moved):
        raise ConstraintError(f"pinned: slot {moved[0]} holds another item than the one pinned to it")
    missing = np.setdiff1d(np.flatnonzero(rules.must_BC[request]), items)
    if len(missing):
        raise ConstraintError(f"must_include: {len(missing)} items that had to be in the list are not")
    groups = rules.gap_group_BC[request, items]
    for ahead in range(1, min(rules.gap_slots, len(items))):
        close = np.flatnonzero((groups[ahead:] == groups[:-ahead]) & (groups[ahead:] >= 0))
        if len(close):
            raise ConstraintError(
                f"gap: slots {close[0]} and {close[0] + ahead} hold items of one group, which need {rules.gap_slots} "
                "slots between each other's places"
            )
    counts = rules.membership_BQC[request][:, items].sum(1)
    for q, count in enumerate(counts):
        least, most = rules.min_BQ[request, q], rules.max_BQ[request, q]
        if not least <= count <= most:
            bound = f"at least {least}" if count < least else f"at most {most}"
            raise ConstraintError(f"quota {q}: the list holds {count} of its items, {bound} were due")


def compile_feasible(
    constraints: StandingConstraints,
    candidate_ids: Sequence[Id],
    columns: Columns,
    length: int,
    *,
    trust_region: int | None = None,
) -> Rules:
    """`compile_rules` of one request, raising ConstraintError that says why where no list obeys them."""
    rules = compile_rules(constraints, candidate_ids, columns, length, trust_region=trust_region)
    if not feasible(rules):
        raise ConstraintError(
            explain_infeasible(constraints, candidate_ids, columns, length, trust_region=trust_region)
        )
    return rules


def explain_infeasible(
    constraints: StandingConstraints,
    candidate_ids: Sequence[Id],
    columns: Columns,
    length: int,
    *,
    trust_region: int | None = None,
) -> str:
    """Why no list obeys the constraints of a request for which none was found.

    First what is plain at sight; else each rule (of the first MOST_TRIED) without which a list is found; else all of them.
    Raises ConstraintError, as `compile_rules` does, for what cannot be compiled at all.
    """
    rules = compile_rules(constraints, candidate_ids, columns, length, trust_region=trust_region)
    plain = list(_plain(constraints, rules, candidate_ids))
    if plain:
        return "no list can obey the constraints: " + "; ".join(plain)
    parts = list(_without_one(constraints))
    if trust_region is not None:
        parts.append((f"trust region of {trust_region}", constraints))
    freed = [
        name
        for name, rest in parts[:MOST_TRIED]
        if feasible(
            compile_rules(
                rest, candidate_ids, columns, length, trust_region=None if name.startswith("trust") else trust_region
            )
        )
    ]
    if freed:
        return f"no list was found that obeys {' or '.join(freed)} together with the other constraints"
    return f"no list was found that obeys these constraints together: {', '.join(name for name, _ in parts)}"


def _plain(constraints: StandingConstraints, rules: Rules, candidate_ids: Sequence[Id]) -> Iterator[str]:
    """Contradictions that one rule, or two, show by themselves."""
    allowed = rules.allowed_BC[0]
    if isinstance(constraints, Constraints):
        demanded = {*constraints.must_include, *constraints.pinned.values()}
        both = sorted(map(str, demanded & set(constraints.exclude)))
        if both:
            yield f"{', '.join(both)} excluded, and pinned or in must_include"
        slots = rules.length - int((rules.pinned_BL[0] >= 0).sum())
        musts = int(rules.must_BC[0].sum())
        if musts > slots:
            yield f"must_include: {musts} items for {slots} slots that are not pinned"
    if allowed.sum() < rules.length:
        yield f"{allowed.sum()} of {len(candidate_ids)} candidates may be placed, {rules.length} slots are to be filled"
    required = rules.must_BC[0].copy()
    required[rules.pinned_BL[0][rules.pinned_BL[0] >= 0]] = True
    for q, quota in enumerate(constraints.quotas):
        member = rules.membership_BQC[0, q]
        there, demanded_too = int((member & allowed).sum()), int((member & required).sum())
        if quota.min > there:
            yield f"{_name(quota)}: at least {quota.min} are due, {there} candidates may be placed"
        if quota.min > rules.length:
            yield f"{_name(quota)}: at least {quota.min} are due in {rules.length} slots"
        if quota.max is not None and demanded_too > quota.max:
            yield f"{_name(quota)}: at most {quota.max}, but {demanded_too} are pinned or in must_include"
    for column in dict.fromkeys(q.by for q in constraints.quotas):
        due = sum(q.min for q in constraints.quotas if q.by == column)
        if due > rules.length:
            yield f"quotas by {column}: {due} items are due in {rules.length} slots"


def _without_one(constraints: StandingConstraints) -> Iterator[tuple[str, StandingConstraints]]:
    """Each rule's name, and the constraints without it."""
    if constraints.gap is not None:
        yield f"gap by {constraints.gap.by} ({constraints.gap.slots} slots)", _with(constraints, gap=None)
    for q in constraints.quotas:
        yield _name(q), _with(constraints, quotas=tuple(o for o in constraints.quotas if o != q))
    if not isinstance(constraints, Constraints):
        return
    for slot, item in constraints.pinned.items():
        rest = {s: i for s, i in constraints.pinned.items() if s != slot}
        yield f"pinned {item} at slot {slot}", _with(constraints, pinned=rest)
    for item in constraints.must_include:
        rest_of = tuple(i for i in constraints.must_include if i != item)
        yield f"must_include {item}", _with(constraints, must_include=rest_of)
    if constraints.exclude:
        yield "exclude", _with(constraints, exclude=())


def _with(constraints: StandingConstraints, **changes: Any) -> StandingConstraints:
    return constraints.model_copy(update=changes)


def _name(quota: QuotaRule) -> str:
    bounds = [
        f"{name} {bound}" for name, bound in (("min", quota.min or None), ("max", quota.max)) if bound is not None
    ]
    return f"quota {quota.by}={quota.value} ({', '.join(bounds)})"
