"""Constraints as a user gives them: those of the data set (schema.yaml), and those that one request adds."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field, model_validator

from degre_prod.errors import ConstraintError
from degre_prod.requests import Id


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GapRule(_Frozen):
    """Two items with the same value of the categorical column `by` stand at least `slots` slots apart.

    `slots: 2` forbids neighbours. An item without a value is never restricted.
    """

    by: str
    slots: int = Field(ge=2)


class QuotaRule(_Frozen):
    """The list holds at least `min` and at most `max` items whose categorical column `by` has this value."""

    by: str
    value: str
    min: int = Field(0, ge=0)
    max: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _bounds(self) -> QuotaRule:
        if self.min == 0 and self.max is None:
            raise ValueError(f"quota {self.by}={self.value}: give `min`, `max` or both")
        if self.max is not None and self.min > self.max:
            raise ValueError(f"quota {self.by}={self.value}: min {self.min} is more than max {self.max}")
        return self


class StandingConstraints(_Frozen):
    """Constraints of every list of a data set: they hold in mining, targets, training and serving alike."""

    gap: GapRule | None = None
    quotas: tuple[QuotaRule, ...] = ()

    @model_validator(mode="after")
    def _once_each(self) -> StandingConstraints:
        named = [(q.by, q.value) for q in self.quotas]
        twice = sorted({f"{by}={value}" for by, value in named if named.count((by, value)) > 1})
        if twice:
            raise ValueError(f"more than one quota for {', '.join(twice)}; give one with min and max")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """The categorical columns the constraints read, each once."""
        named = [q.by for q in self.quotas] if self.gap is None else [self.gap.by, *(q.by for q in self.quotas)]
        return tuple(dict.fromkeys(named))

    def __bool__(self) -> bool:
        return self.gap is not None or bool(self.quotas)


class Constraints(StandingConstraints):
    """All that one request's list has to obey. `pinned` maps a slot, counted from 0, to the item that stands there."""

    exclude: tuple[Id, ...] = ()
    must_include: tuple[Id, ...] = ()
    pinned: Mapping[int, Id] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _pins(self) -> Constraints:
        if any(slot < 0 for slot in self.pinned):
            raise ValueError("pinned: slots are counted from 0")
        if len(set(self.pinned.values())) < len(self.pinned):
            raise ValueError("pinned: an item can be pinned to one slot only")
        return self

    def __bool__(self) -> bool:
        return super().__bool__() or bool(self.exclude or self.must_include or self.pinned)


def merge(standing: StandingConstraints, request: Constraints | None) -> Constraints:
    """The standing constraints and the request's, all of which must hold: a request can tighten, never loosen.

    Gap: of two with the same `by` the larger number of slots holds. A list has one gap, so a request's gap by another
    column than the standing one is refused. Quotas of the same value: the larger `min`, the smaller `max`. Raises
    ConstraintError where the two contradict each other.
    """
    if request is None:
        return Constraints(gap=standing.gap, quotas=standing.quotas)
    gap = request.gap or standing.gap
    if request.gap and standing.gap:
        if request.gap.by != standing.gap.by:
            raise ConstraintError(
                f"gap by {request.gap.by}: the data set has a gap by {standing.gap.by}, which a request can only widen"
            )
        gap = max(request.gap, standing.gap, key=lambda g: g.slots)
    quotas = {(q.by, q.value): q for q in standing.quotas}
    for q in request.quotas:
        known = quotas.get((q.by, q.value))
        quotas[q.by, q.value] = q if known is None else _both(known, q)
    return request.model_copy(update={"gap": gap, "quotas": tuple(quotas.values())})


def _both(one: QuotaRule, other: QuotaRule) -> QuotaRule:
    least = max(one.min, other.min)
    caps = [q.max for q in (one, other) if q.max is not None]
    most = min(caps) if caps else None
    if most is not None and least > most:
        raise ConstraintError(
            f"quota {one.by}={one.value}: at least {least} and at most {most} cannot both hold; "
            "the data set and the request contradict each other"
        )
    return QuotaRule(by=one.by, value=one.value, min=least, max=most)
