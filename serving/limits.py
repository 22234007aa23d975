"""A request's constraints, checked against its candidates and the bundle's schema."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pydantic import ValidationError

from degre_prod.constraints.settle import categorical_columns
from degre_prod.constraints.spec import Constraints, merge
from degre_prod.errors import ConstraintError
from degre_prod.requests import Id
from degre_prod.schema import DataSchema
from serving.field_checks import id_error, name_error
from serving.problems import FieldError, field_path, invalid, invalid_field
from serving.protocol import ConstraintsIn

MAX_WORK = 4_000  # quotas × candidates: what looking ahead costs time and memory for


def limits_of(asked: ConstraintsIn, schema: DataSchema, candidates: Collection[Id]) -> Constraints:
    """The constraints in the library's form.

    Raises a 422 Problem naming each field that is wrong, contradicts another, or contradicts the standing constraints.
    Whether a list can obey them all is not known before the features are read.
    """
    if errors := list(_errors(asked, schema, candidates)):
        raise invalid(errors)
    try:
        own = to_constraints(asked)
    except ValidationError as error:
        raise invalid(
            FieldError(field_path(("constraints", *e["loc"])), e["msg"].removeprefix("Value error, "))
            for e in error.errors(include_url=False, include_context=False, include_input=False)
        ) from None
    try:
        merge(schema.constraints, own)
    except ConstraintError as error:
        raise invalid_field("constraints", str(error)) from None
    return own


def to_constraints(asked: ConstraintsIn) -> Constraints:
    """The same in the library's form; raises pydantic's ValidationError for rules that contradict themselves."""
    document = asked.model_dump()
    return Constraints.model_validate(document | {"pinned": {int(slot): item for slot, item in asked.pinned.items()}})


def _errors(asked: ConstraintsIn, schema: DataSchema, candidates: Collection[Id]) -> Iterator[FieldError]:
    pinned = {f"constraints.pinned.{slot}": item for slot, item in asked.pinned.items()}
    must = {f"constraints.must_include[{i}]": item for i, item in enumerate(asked.must_include)}
    excluded = set(asked.exclude)
    found = [id_error(f"constraints.exclude[{i}]", item, schema) for i, item in enumerate(asked.exclude)]
    for demanded in (pinned, must):
        seen: set[Id] = set()
        for field, item in demanded.items():
            wrong_type = id_error(field, item, schema)
            found.append(wrong_type)
            if wrong_type is None and item not in candidates:
                found.append(FieldError(field, f"{item!r} is not among the candidates"))
            if item in excluded:
                found.append(FieldError(field, f"{item!r} is excluded, too"))
            if item in seen:
                found.append(FieldError(field, f"{item!r} is given twice"))
            seen.add(item)
    if len(asked.quotas) * len(candidates) > MAX_WORK:
        most = MAX_WORK // len(candidates)
        found.append(FieldError("constraints.quotas", f"at most {most} with {len(candidates)} candidates"))
    names = categorical_columns(schema)
    if asked.gap is not None:
        found.append(name_error("constraints.gap.by", asked.gap.by, names, "a categorical column of the candidates"))
    for i, quota in enumerate(asked.quotas):
        field = f"constraints.quotas[{i}].by"
        found.append(name_error(field, quota.by, names, "a categorical column of the candidates"))
    return (error for error in found if error is not None)
