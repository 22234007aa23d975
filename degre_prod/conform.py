"""Bringing a parquet file's columns to the contract's types, or saying which one cannot be brought there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from degre_prod.errors import DataError


def read_parquet(file: Path) -> pa.Table:
    """A parquet file's rows; raises DataError naming the file when it is not one."""
    try:
        return pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot be read as parquet: {error}", file=str(file), rule="unreadable_file") from None


def conform(table: pa.Table, wanted: Iterable[tuple[str, pa.DataType, bool]], *, file: str) -> pa.Table:
    """The wanted columns (name, type, required) in that order; an absent optional column becomes nulls.

    Types of the same family are cast (int32 to int64, double to float, ns to µs, a zone to UTC); anything else, a time
    without a zone included, raises DataError naming file and column.
    """
    columns, fields = [], []
    for name, kind, required in wanted:
        if name in table.column_names:
            columns.append(_cast(table.column(name), kind, file, name))
        elif required:
            have = ", ".join(table.column_names) or "none"
            raise DataError(
                f"required column is missing; {kind} is needed, the file has {have}",
                file=file,
                column=name,
                rule="missing_column",
            )
        else:
            columns.append(pa.nulls(table.num_rows, kind))
        fields.append(pa.field(name, kind))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _cast(column: pa.ChunkedArray, kind: pa.DataType, file: str, name: str) -> pa.ChunkedArray:
    problem = _mismatch(column.type, kind, name)
    if problem is None:
        try:
            return column.cast(options=pc.CastOptions(target_type=kind, allow_time_truncate=True))
        except pa.ArrowInvalid as error:
            problem = (name, str(error))
    where, what = problem
    rule = "missing_column" if what.startswith("required") else "wrong_type"
    raise DataError(what, file=file, column=where, rule=rule)


def _mismatch(have: pa.DataType, want: pa.DataType, name: str) -> tuple[str, str] | None:
    """(column, what is wrong) of the first part that cannot be cast honestly."""
    if pa.types.is_dictionary(have):
        have = have.value_type
    if pa.types.is_null(have) or have.equals(want):
        return None
    if pa.types.is_struct(want) and pa.types.is_struct(have):
        there = {field.name: field.type for field in have}
        for field in want:
            if field.name not in there:
                return f"{name}.{field.name}", f"required field is missing; {field.type} is needed"
            problem = _mismatch(there[field.name], field.type, f"{name}.{field.name}")
            if problem:
                return problem
        return None
    if pa.types.is_list(want) and (
        pa.types.is_list(have) or pa.types.is_large_list(have) or pa.types.is_fixed_size_list(have)
    ):
        return _mismatch(have.value_type, want.value_type, name)
    if pa.types.is_timestamp(want) and pa.types.is_timestamp(have) and have.tz is None:
        return name, "time without a zone; store UTC times, e.g. pandas `.dt.tz_localize('UTC')`"
    same_family = (
        (pa.types.is_integer(want) and pa.types.is_integer(have))
        or (
            pa.types.is_floating(want)
            and (pa.types.is_floating(have) or pa.types.is_integer(have) or pa.types.is_boolean(have))
        )
        or (pa.types.is_string(want) and pa.types.is_large_string(have))
        or (pa.types.is_timestamp(want) and pa.types.is_timestamp(have))
    )
    return None if same_family else (name, f"is {have}, but {want} is needed")
