"""The one check every list passes before it leaves, whoever made it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from degre_prod.constraints.check import check_list
from degre_prod.constraints.rules import Rules
from degre_prod.errors import ConstraintError
from degre_prod.requests import Id


def validate(chosen: Sequence[Id], candidates: Collection[Id], length: int, rules: Rules | None = None) -> None:
    """Raises ConstraintError unless `chosen` has `length` distinct items, all of them candidates, and obeys the rules.

    With `rules`, `candidates` are the distinct ones in upstream order for which the rules were made.
    """
    if len(chosen) != length:
        raise ConstraintError(f"the list has {len(chosen)} items, {length} were due")
    distinct = set(chosen)
    if len(distinct) != length:
        raise ConstraintError("the list holds an item twice")
    strangers = distinct - set(candidates)
    if strangers:
        raise ConstraintError(f"the list holds {len(strangers)} items that were not candidates")
    if rules is not None:
        index = {item: c for c, item in enumerate(candidates)}
        check_list(rules, [index[item] for item in chosen])
