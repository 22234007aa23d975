"""From the constraints of the data set and of one request to the rules of its list, online and offline alike.

What a request asks for holds, or it is told why it can't. Standing constraints never make an answer impossible: where the
candidates admit no list that obeys them all, they yield, in this order, until there is one: the trust region, the gap, the
quotas from the last declared to the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from degre_prod.constraints.check import compile_feasible
from degre_prod.constraints.greedy import feasible
from degre_prod.constraints.rules import Rules, compile_rules
from degre_prod.constraints.spec import Constraints, StandingConstraints, merge
from degre_prod.requests import FeatureColumns, Id, Request
from degre_prod.schema import DataSchema

YIELDED = "standing_constraints_infeasible"
UNCHECKED = "constraints_unchecked"

Columns = Mapping[str, Sequence[Any]]
C = TypeVar("C", bound=StandingConstraints)


@dataclass(frozen=True, slots=True)
class Settled:
    """Rules of one request's list, None where nothing but distinct items is asked for, and what was given up, as flags:
    YIELDED, UNCHECKED (rules by columns whose values are not at hand)."""

    rules: Rules | None = None
    flags: tuple[str, ...] = ()


def settle(
    standing: StandingConstraints,
    own: Constraints | None,
    candidate_ids: Sequence[Id],
    columns: Columns,
    length: int,
    *,
    trust_region: int | None = None,
) -> Settled:
    """The rules of a list of `length` slots; `columns`: raw categorical values of the candidates, those that are at hand.

    Raises ConstraintError when the request's own constraints cannot hold or contradict the standing ones (`merge`).
    """
    named = {*standing.columns, *(own.columns if own else ())}
    flags = () if named <= set(columns) else (UNCHECKED,)
    standing, own = _readable(standing, columns), own and _readable(own, columns)
    if not standing and not own and (trust_region is None or trust_region >= len(candidate_ids)):
        return Settled(flags=flags)
    for kept, region in _yielding(standing, trust_region):
        rules = compile_rules(merge(kept, own), candidate_ids, columns, length, trust_region=region)
        if feasible(rules):
            whole = kept == standing and region == trust_region
            return Settled(rules, flags if whole else (*flags, YIELDED))
    if not own:
        return Settled(flags=(*flags, YIELDED))
    without = standing or trust_region is not None
    rules = compile_feasible(own, candidate_ids, columns, length)
    return Settled(rules, (*flags, YIELDED) if without else flags)


def categorical_columns(schema: DataSchema) -> tuple[str, ...]:
    """The columns a rule may be by: categorical ones of the item table and of the request's candidates, each name once."""
    features = (*schema.item.features, *schema.candidate_features)
    return tuple(dict.fromkeys(f.name for f in features if f.kind == "categorical"))


def candidate_columns(schema: DataSchema, request: Request, items: FeatureColumns | None) -> dict[str, Sequence[Any]]:
    """Raw categorical values of the candidates by column: what the request carries, and what was read of the items.

    Of a name that both declare the item's counts. Without `items` their columns are missing.
    """
    absent = [None] * len(request.candidate_ids)
    of_items = [f.name for f in schema.item.features if f.kind == "categorical"]
    columns: dict[str, Sequence[Any]] = {
        f.name: request.candidate_features.get(f.name, absent)
        for f in schema.candidate_features
        if f.kind == "categorical" and f.name not in of_items
    }
    if items is not None:
        columns.update((name, list(items.values[name])) for name in of_items)
    return columns


def _readable(constraints: C, columns: Columns) -> C:
    """Without the rules by columns that are not at hand."""
    if all(name in columns for name in constraints.columns):
        return constraints
    gap = constraints.gap if constraints.gap is not None and constraints.gap.by in columns else None
    quotas = tuple(q for q in constraints.quotas if q.by in columns)
    return constraints.model_copy(update={"gap": gap, "quotas": quotas})


def _yielding(
    standing: StandingConstraints, trust_region: int | None
) -> Iterator[tuple[StandingConstraints, int | None]]:
    """All of them, then fewer and fewer, down to the last that is left."""
    yield standing, trust_region
    if trust_region is not None and standing:
        yield standing, None
    if standing.gap is not None and standing.quotas:
        standing = standing.model_copy(update={"gap": None})
        yield standing, None
    for count in range(len(standing.quotas) - 1, 0, -1):
        yield standing.model_copy(update={"quotas": standing.quotas[:count]}), None
