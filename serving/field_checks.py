"""What is wrong with single fields of a request: ids, names, kinds of values, as the bundle's schema has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from degre_prod.requests import Id
from degre_prod.schema import DataSchema, Feature
from serving.problems import FieldError


def id_error(field: str, value: Id, schema: DataSchema) -> FieldError | None:
    """Of an id that is not of the bundle's type."""
    if isinstance(value, int) == (schema.id_type == "int64"):
        return None
    right = "integers" if schema.id_type == "int64" else "strings"
    return FieldError(field, f"ids of this bundle are {right}, not {type(value).__name__}")


def name_error(field: str, name: str, names: tuple[str, ...] | list[str], what: str) -> FieldError | None:
    """Of a name that is none of `names`."""
    if name in names:
        return None
    return FieldError(field, f"not {what} of this bundle; it has {', '.join(names) or 'none'}")


def value_errors(
    field: str, values: Mapping[str, Any], features: Mapping[str, Feature], what: str
) -> Iterator[FieldError | None]:
    """Of values whose name or kind the schema does not know."""
    for name, value in values.items():
        feature = features.get(name)
        if feature is None:
            yield name_error(f"{field}.{name}", name, list(features), what)
        elif value is not None and isinstance(value, str) != (feature.kind == "categorical"):
            right = "a string" if feature.kind == "categorical" else "a number"
            yield FieldError(f"{field}.{name}", f"{feature.kind}: {right} is needed")
