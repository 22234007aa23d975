"""The rules of one request's list: the bundle's standing constraints, the request's own, as far as values are at hand."""

from __future__ import annotations

from typing import Protocol

from degre_prod.constraints.settle import YIELDED, Settled, candidate_columns, settle
from degre_prod.constraints.spec import StandingConstraints
from degre_prod.errors import ConstraintError
from degre_prod.requests import FeatureColumns
from degre_prod.schema import DataSchema
from serving.cache import CachedList
from serving.preparation import Prepared
from serving.problems import invalid_field
from serving.validation import validate


class Restricts(Protocol):
    """What a bundle says of every list."""

    @property
    def schema(self) -> DataSchema: ...
    @property
    def trust_region(self) -> int | None: ...


def restricted(prepared: Prepared, bundle: Restricts) -> bool:
    """Whether anything but distinct items is asked for."""
    return bool(prepared.own or bundle.schema.constraints or bundle.trust_region)


def rules_for(prepared: Prepared, bundle: Restricts, items: FeatureColumns | None) -> Settled:
    """See `settle`; without `items` the rules by their columns are left unchecked. Raises a 422 Problem when the request's
    own constraints cannot hold."""
    if not restricted(prepared, bundle):
        return Settled()
    ids, columns = prepared.request.candidate_ids, candidate_columns(bundle.schema, prepared.request, items)
    try:
        return settle(
            bundle.schema.constraints, prepared.own, ids, columns, prepared.length, trust_region=bundle.trust_region
        )
    except ConstraintError as error:
        raise invalid_field("constraints", str(error)) from None


def fits(found: CachedList, prepared: Prepared, bundle: Restricts) -> bool:
    """Whether a cached list is one for this request. Rules by columns of the item table, not read here, held when it was
    made; the trust region is no promise to the caller."""
    ids, rules = prepared.request.candidate_ids, None
    try:
        if restricted(prepared, bundle):
            standing = StandingConstraints() if YIELDED in found.degraded else bundle.schema.constraints
            columns = candidate_columns(bundle.schema, prepared.request, None)
            rules = settle(standing, prepared.own, ids, columns, prepared.length).rules
        validate(found.item_ids, ids, prepared.length, rules)
    except ConstraintError:
        return False
    return True
