"""The list a client makes when the service is away: the caller's own order, within the constraints that the client can check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from degre_prod.errors import ConstraintError
from serving.protocol import RerankRequest

if TYPE_CHECKING:
    from degre_prod.requests import Id

INFEASIBLE = "constraints_infeasible"


def client_order(request: RerankRequest) -> tuple[list[Id], list[str]]:
    """Ids in order, and flags.

    A client knows neither the bundle's standing constraints nor its list length nor features of the feature store. It
    honours exclude, must_include, pinned, and rules by columns that the request's own candidates carry; other rules are
    flagged `constraints_unchecked`. Where even these cannot hold (the service would answer 422) only exclude is honoured,
    flagged `constraints_infeasible`.
    """
    distinct: list[Id] = list(dict.fromkeys(c.id for c in request.candidates))
    if request.constraints is None:
        return distinct[: request.length], []
    # Here, so that whoever imports a client gets no NumPy unless it is needed.
    from degre_prod.constraints.settle import settle
    from degre_prod.constraints.spec import StandingConstraints
    from serving.fallback import first_feasible
    from serving.limits import to_constraints

    excluded = set(request.constraints.exclude)
    left = [item for item in distinct if item not in excluded]
    length = min(request.length or len(left), len(left))
    try:
        own = to_constraints(request.constraints)
        settled = settle(StandingConstraints(), own, distinct, _columns(request, distinct), length)
        if settled.rules is None:
            return left[:length], list(settled.flags)
        order = first_feasible(settled.rules, range(len(distinct)))
        return [distinct[c] for c in order], list(settled.flags)
    except (ConstraintError, ValidationError):
        return left[:length], [INFEASIBLE]


def _columns(request: RerankRequest, distinct: Sequence[Id]) -> dict[str, list[Any]]:
    """Values of the features that any candidate carries; of a duplicate its first occurrence counts."""
    first = {c.id: c.features for c in reversed(request.candidates)}
    names = dict.fromkeys(name for c in request.candidates for name in c.features)
    return {name: [first[item].get(name) for item in distinct] for name in names}
