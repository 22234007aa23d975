"""The one check every list passes before it leaves, whoever made it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from degre_prod.errors import ConstraintError
from degre_prod.requests import Id


def validate(chosen: Sequence[Id], candidates: Collection[Id], length: int) -> None:
    """Raises ConstraintError unless `chosen` has `length` distinct items, all of them candidates."""
    if len(chosen) != length:
        raise ConstraintError(f"the list has {len(chosen)} items, {length} were due")
    distinct = set(chosen)
    if len(distinct) != length:
        raise ConstraintError("the list holds an item twice")
    strangers = distinct - set(candidates)
    if strangers:
        raise ConstraintError(f"the list holds {len(strangers)} items that were not candidates")
