"""Validation of a data set: log rows are rejected with a reason, feature tables are right or an error.

Feature rows are not rejected one by one, since the feature store reads the file itself: what we set aside would still be
in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from degre_prod.artefact import written_aside
from degre_prod.conform import conform, read_parquet
from degre_prod.coverage import Coverage, coverage
from degre_prod.errors import DataError
from degre_prod.feature_tables import FeatureReport, validate_features
from degre_prod.log_rules import RULES, broken_rules
from degre_prod.records import impression_columns
from degre_prod.schema import DataSchema, load_schema

LOG, REJECTED = "impressions.parquet", "rejected.parquet"
NOT_WRITTEN = "; `degre data validate` writes the rejected rows aside"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class FirstBroken(_Frozen):
    """The first row that broke a rule; `row` is 0-based in its file."""

    file: str
    row: int
    column: str


class ValidationReport(_Frozen):
    """What validation found in one impression log. Times are ISO 8601, UTC, of the accepted rows."""

    requests: int
    accepted: int
    rejected: int
    rejected_share: float
    rejected_by_rule: dict[str, int]
    first_by_rule: dict[str, FirstBroken]
    ignored_columns: tuple[str, ...]
    users: int
    items: int
    first_request: str | None
    last_request: str | None


class DatasetReport(_Frozen):
    """A whole data set folder."""

    dataset: str
    log: ValidationReport
    user_features: FeatureReport
    item_features: FeatureReport
    coverage: Coverage


@dataclass(frozen=True, slots=True)
class CheckedLog:
    """`accepted`: the contract's columns. `rejected`: reason, rule, column, file, row, original (the row as JSON)."""

    accepted: pa.Table
    rejected: pa.Table
    report: ValidationReport


def check_log(path: Path | Sequence[Path], schema: DataSchema, *, now_us: int) -> CheckedLog:
    """Split a log (a parquet file, a folder of them, or files) into accepted and rejected rows.

    Raises DataError for a file that cannot be read, lacks a required column or has one of a wrong type.
    """
    files = _files(path)
    wanted = [(c.name, c.type, c.required) for c in impression_columns(schema)]
    raw = [read_parquet(file) for file in files]
    table = pa.concat_tables([conform(t, wanted, file=str(f)) for t, f in zip(raw, files, strict=True)])
    file_R = np.repeat(np.arange(len(files)), [t.num_rows for t in raw])
    row_R = np.concatenate([np.arange(t.num_rows) for t in raw])
    rule_R = np.full(table.num_rows, "", object)
    column_R = np.full(table.num_rows, "", object)
    for broken in broken_rules(table, schema, now_us=now_us):
        fresh = broken.rows & (rule_R == "")
        rule_R[fresh], column_R[fresh] = broken.rule, broken.column
    bad = np.flatnonzero(rule_R != "")
    rejected = pa.table(
        {
            "reason": pa.array([f"{column_R[r]}: {RULES[rule_R[r]]}" for r in bad], pa.string()),
            "rule": pa.array(rule_R[bad], pa.string()),
            "column": pa.array(column_R[bad], pa.string()),
            "file": pa.array([str(files[f]) for f in file_R[bad]], pa.string()),
            "row": pa.array(row_R[bad], pa.int64()),
            "original": pa.array(_originals(raw, file_R[bad], row_R[bad]), pa.string()),
        }
    )
    accepted = table.filter(pa.array(rule_R == ""))
    ignored = {name for t in raw for name in t.column_names} - {name for name, _, _ in wanted}
    return CheckedLog(accepted, rejected, _report(accepted, rejected, tuple(sorted(ignored))))


def validate_log(
    path: Path, schema: DataSchema, *, now_us: int, max_rejected_share: float, rejected_to: Path | None = None
) -> ValidationReport:
    """Check a log and write its rejected rows to `rejected_to` (default: `rejected.parquet` beside it).

    A log without any rejected row leaves no such file. Raises DataError for an unreadable or mistyped file, and when
    more than `max_rejected_share` of the rows are rejected, naming the most frequent rule and its first row.
    """
    aside = rejected_to or path.parent / REJECTED
    checked = check_log(path, schema, now_us=now_us)
    _write_rejected(checked, aside)
    _raise_if_too_many(checked.report, max_rejected_share, f"; the rejected rows are in {aside}")
    return checked.report


def _write_rejected(checked: CheckedLog, aside: Path) -> None:
    if checked.rejected.num_rows:
        with written_aside(aside) as temporary:
            pq.write_table(checked.rejected, temporary)
    else:
        aside.unlink(missing_ok=True)


def accepted_log(path: Path, schema: DataSchema, *, now_us: int, max_rejected_share: float) -> pa.Table:
    """The rows of a log that keep every rule, with the contract's types; writes nothing. Raises as `validate_log`."""
    checked = check_log(path, schema, now_us=now_us)
    _raise_if_too_many(checked.report, max_rejected_share, NOT_WRITTEN)
    return checked.accepted


def validate_dataset(
    folder: Path, *, now_us: int, max_rejected_share: float, write_rejected: bool = True
) -> DatasetReport:
    """Check a data set folder: its schema.yaml, log and feature tables. Raises SchemaError or DataError.

    Rejected rows go to `rejected.parquet` beside the log, or nowhere without `write_rejected`.
    """
    schema = load_schema(folder)
    checked = check_log(folder / LOG, schema, now_us=now_us)
    where = f"; the rejected rows are in {folder / REJECTED}"
    if write_rejected:
        _write_rejected(checked, folder / REJECTED)
    _raise_if_too_many(checked.report, max_rejected_share, where if write_rejected else NOT_WRITTEN)
    users, items = (validate_features(folder, schema, role, now_us=now_us) for role in ("user", "item"))
    return DatasetReport(
        dataset=schema.name,
        log=checked.report,
        user_features=users,
        item_features=items,
        coverage=coverage(checked.accepted, folder, schema),
    )


def _files(path: Path | Sequence[Path]) -> list[Path]:
    if isinstance(path, Path):
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    else:
        files = list(path)
    if not files or not files[0].is_file():
        raise DataError("no impression log: a parquet file or a folder of them is needed", file=str(path))
    return files


def _originals(raw: list[pa.Table], file_N: np.ndarray, row_N: np.ndarray) -> list[str]:
    out: list[str] = []
    for index, table in enumerate(raw):  # rows are in file order, so appending keeps the order
        rows = table.take(pa.array(row_N[file_N == index])).to_pylist()
        out += [json.dumps(row, default=str) for row in rows]
    return out


def _report(accepted: pa.Table, rejected: pa.Table, ignored: tuple[str, ...]) -> ValidationReport:
    rules = rejected["rule"].to_pylist()
    counts = {rule: rules.count(rule) for rule in RULES if rule in rules}
    firsts = (
        rejected.slice(0, 0).to_pylist()
        if not rules
        else [rejected.slice(rules.index(r), 1).to_pylist()[0] for r in counts]
    )
    total = accepted.num_rows + rejected.num_rows
    times = pc.min_max(accepted["event_timestamp"])
    return ValidationReport(
        requests=total,
        accepted=accepted.num_rows,
        rejected=len(rules),
        rejected_share=len(rules) / total if total else 0.0,
        rejected_by_rule=counts,
        first_by_rule={f["rule"]: FirstBroken(file=f["file"], row=f["row"], column=f["column"]) for f in firsts},
        ignored_columns=ignored,
        users=pc.count_distinct(accepted["user_id"]).as_py(),
        items=pc.count_distinct(pc.list_flatten(accepted["candidate_ids"])).as_py(),
        first_request=_iso(times["min"]),
        last_request=_iso(times["max"]),
    )


def _iso(moment: pa.Scalar) -> str | None:
    return moment.as_py().isoformat() if moment.is_valid else None


def _raise_if_too_many(report: ValidationReport, max_share: float, where: str) -> None:
    if report.rejected_share <= max_share:
        return
    rule, count = max(report.rejected_by_rule.items(), key=lambda pair: pair[1])
    first = report.first_by_rule[rule]
    raise DataError(
        f"{report.rejected} of {report.requests} requests rejected ({report.rejected_share:.1%}), more than "
        f"data.max_rejected_share = {max_share:.1%}. Most frequent, {count} times: {RULES[rule]}{where}",
        file=first.file,
        row=first.row,
        column=first.column,
        rule=rule,
    )
