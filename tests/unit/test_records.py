"""The impression-log contract: one definition for parquet and pydantic, and every rule of the validation."""

import json
import time
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from degre_prod.errors import DataError
from degre_prod.feature_tables import feature_table_schema, validate_features
from degre_prod.log_rules import RULES
from degre_prod.records import impression_columns, impression_model, impression_schema
from degre_prod.schema import DataSchema
from degre_prod.validation import accepted_log, check_log, validate_dataset, validate_log

NOW = datetime(2026, 1, 2, tzinfo=UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000
SCHEMA = DataSchema.model_validate(
    {
        "name": "tiny",
        "id_type": "int64",
        "list_length": 2,
        "shown_length": 3,
        "max_candidates": 5,
        "objectives": [{"name": "click", "at_most_one": True}, {"name": "like"}],
        "user": {"features": [{"name": "age", "kind": "numeric"}]},
        "item": {
            "features": [
                {"name": "price", "kind": "numeric"},
                {"name": "colour", "kind": "categorical"},
                {"name": "style", "kind": "vector", "size": 2},
                {"name": "similar", "kind": "id_sequence", "max_length": 2},
            ]
        },
        "context": [{"name": "device", "kind": "categorical"}, {"name": "temperature", "kind": "numeric"}],
        "scores": ["upstream"],
        "candidate_features": [{"name": "offer", "kind": "numeric"}, {"name": "badge", "kind": "categorical"}],
        "recent_event_types": ["click"],
    }
)


def row(number: int = 0) -> dict:
    at = NOW - timedelta(hours=1, seconds=number)
    return {
        "request_id": f"r{number}",
        "event_timestamp": at,
        "user_id": 7,
        "context": {"device": "phone", "temperature": None},
        "candidate_ids": [10, 11, 12, 13],
        "upstream_scores": {"upstream": [0.5, None, 0.25, 0.125]},
        "candidate_features": {"offer": [1.0, 2.0, None, 4.0], "badge": ["new", None, None, "sale"]},
        "recent_events": [{"item_id": 99, "type": "click", "timestamp": at - timedelta(microseconds=1)}],
        "shown_ids": [12, 10, 13],
        "feedback": {"click": [0.0, 1.0, 0.0], "like": [1.0, 1.0, 0.0]},
        "seen": [True, True, False],
        "propensity": [0.5, 0.25, 1.0],
        "list_propensity": 0.125,
        "bundle": None,
        "arm": None,
        "source": "log",
        "constraints": None,
        "confirmed": None,
        "created_timestamp": None,
    }


def change(path: str, value: object) -> dict:
    out = deepcopy(row(1))
    *parents, last = path.split(".")
    target = out
    for name in parents:
        target = target[name]
    target[last] = value
    return out


def write(path: Path, rows: list[dict]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(nullable(impression_schema(SCHEMA))))), path)
    return path


def nullable(schema: pa.Schema) -> list[pa.Field]:
    return [field.with_nullable(True) for field in schema]


def test_a_row_is_the_same_through_parquet_and_pydantic(tmp_path):
    accepted = accepted_log(write(tmp_path / "log.parquet", [row()]), SCHEMA, now_us=NOW_US, max_rejected_share=0)
    model = impression_model(SCHEMA)
    (back,) = accepted.to_pylist()
    assert back == row()
    assert model.model_validate(back).model_dump() == row()
    assert model.model_validate_json(model(**row()).model_dump_json()) == model(**row())
    assert list(model.model_fields) == impression_schema(SCHEMA).names


@pytest.mark.parametrize("column", impression_columns(SCHEMA), ids=lambda c: c.name)
def test_required_columns_are_required_in_both_forms(column, tmp_path):
    table = pa.Table.from_pylist([row()], schema=impression_schema(SCHEMA)).drop_columns([column.name])
    pq.write_table(table, tmp_path / "log.parquet")
    without = {name: value for name, value in row().items() if name != column.name}
    if column.required:
        with pytest.raises(DataError, match="required column is missing") as caught:
            check_log(tmp_path / "log.parquet", SCHEMA, now_us=NOW_US)
        assert caught.value.column == column.name
        assert caught.value.file == str(tmp_path / "log.parquet")
        with pytest.raises(ValidationError):
            impression_model(SCHEMA)(**without)
    else:
        assert check_log(tmp_path / "log.parquet", SCHEMA, now_us=NOW_US).report.accepted == 1
        impression_model(SCHEMA)(**without)


def test_undeclared_struct_columns_are_not_in_the_contract():
    bare = SCHEMA.model_copy(update={"context": (), "scores": (), "candidate_features": (), "recent_event_types": ()})
    names = set(impression_schema(bare).names)
    assert names.isdisjoint({"context", "upstream_scores", "candidate_features", "recent_events"})


@pytest.mark.parametrize(
    "wrong", [{"user_id": "seven"}, {"shown_ids": None}, {"unknown": 1}, {"list_propensity": np.nan}]
)
def test_the_model_refuses(wrong):
    with pytest.raises(ValidationError):
        impression_model(SCHEMA)(**{**row(), **wrong})


AT = row(1)["event_timestamp"]
UNKNOWN = {"item_id": 1, "type": "buy", "timestamp": AT - timedelta(1)}
SAME_TIME = {"item_id": 1, "type": "click", "timestamp": AT}
BROKEN = [
    ("null_id", "request_id", change("request_id", None)),
    ("null_id", "user_id", change("user_id", None)),
    ("null_id", "candidate_ids", change("candidate_ids", [10, None, 12, 13])),
    ("null_id", "shown_ids", change("shown_ids", [12, None, 13])),
    ("null_id", "recent_events.item_id", change("recent_events", [{"type": "click", "timestamp": AT - timedelta(1)}])),
    ("null_value", "event_timestamp", change("event_timestamp", None)),
    ("null_value", "context", change("context", None)),
    ("null_value", "seen", change("seen", [True, None, False])),
    ("empty_candidates", "candidate_ids", change("candidate_ids", [])),
    ("empty_candidates", "candidate_ids", change("candidate_ids", None)),
    ("empty_shown", "shown_ids", change("shown_ids", [])),
    ("too_many_candidates", "candidate_ids", change("candidate_ids", [10, 11, 12, 13, 14, 15])),
    ("shown_too_long", "shown_ids", change("shown_ids", [12, 10, 13, 11])),
    ("duplicate_request", "request_id", change("request_id", "r0")),
    ("duplicate_candidate", "candidate_ids", change("candidate_ids", [10, 12, 12, 13])),
    ("shown_twice", "shown_ids", change("shown_ids", [12, 12, 13])),
    ("shown_not_candidate", "shown_ids", change("shown_ids", [12, 99, 13])),
    ("unequal_lengths", "upstream_scores.upstream", change("upstream_scores.upstream", [0.5])),
    ("unequal_lengths", "upstream_scores.upstream", change("upstream_scores.upstream", None)),
    ("unequal_lengths", "candidate_features.badge", change("candidate_features.badge", ["new"] * 5)),
    ("unequal_lengths", "feedback.like", change("feedback.like", [1.0])),
    ("unequal_lengths", "seen", change("seen", [])),
    ("unequal_lengths", "propensity", change("propensity", [0.5])),
    ("not_finite", "upstream_scores.upstream", change("upstream_scores.upstream", [np.nan, 1.0, 1.0, 1.0])),
    ("not_finite", "candidate_features.offer", change("candidate_features.offer", [1.0, np.inf, 1.0, 1.0])),
    ("not_finite", "feedback.click", change("feedback.click", [np.nan, 0.0, 0.0])),
    ("not_finite", "context.temperature", change("context.temperature", np.nan)),
    ("not_finite", "list_propensity", change("list_propensity", np.nan)),
    ("feedback_not_binary", "feedback.like", change("feedback.like", [2.0, 0.0, 0.0])),
    ("feedback_not_binary", "feedback.like", change("feedback.like", [None, 0.0, 0.0])),
    ("feedback_twice", "feedback.click", change("feedback.click", [1.0, 1.0, 0.0])),
    ("propensity_range", "propensity", change("propensity", [0.0, 0.5, 0.5])),
    ("propensity_range", "list_propensity", change("list_propensity", 1.5)),
    ("future_timestamp", "event_timestamp", change("event_timestamp", NOW + timedelta(microseconds=1))),
    ("future_timestamp", "created_timestamp", change("created_timestamp", NOW + timedelta(1))),
    ("recent_not_before", "recent_events.timestamp", change("recent_events", [SAME_TIME])),
    ("unknown_event_type", "recent_events.type", change("recent_events", [UNKNOWN])),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "column", "broken"), BROKEN, ids=lambda v: v if isinstance(v, str) else "")
def test_a_broken_row_is_rejected_by_its_rule_and_written_aside(rule, column, broken, tmp_path):
    path = write(tmp_path / "log.parquet", [row(0), broken, row(2)])
    report = validate_log(path, SCHEMA, now_us=NOW_US, max_rejected_share=0.5)
    assert report.rejected_by_rule == {rule: 1}
    assert (report.requests, report.accepted, report.rejected) == (3, 2, 1)
    (aside,) = pq.read_table(tmp_path / "rejected.parquet").to_pylist()
    assert (aside["rule"], aside["column"], aside["row"], aside["file"]) == (rule, column, 1, str(path))
    assert RULES[rule] in aside["reason"]
    assert json.loads(aside["original"])["request_id"] == broken["request_id"]
    kept = accepted_log(path, SCHEMA, now_us=NOW_US, max_rejected_share=0.5)
    assert kept["request_id"].to_pylist() == ["r0", "r2"]


def test_every_rule_has_a_broken_row():
    assert {rule for rule, _, _ in BROKEN} == set(RULES)


def test_too_many_rejections_name_the_most_frequent_rule_and_keep_the_rows(tmp_path):
    rows = [row(0), {**row(1), "shown_ids": []}, {**row(2), "shown_ids": []}, {**row(3), "candidate_ids": []}]
    with pytest.raises(DataError, match=r"3 of 4 .*75\.0%.*nothing was shown") as caught:
        validate_log(write(tmp_path / "log.parquet", rows), SCHEMA, now_us=NOW_US, max_rejected_share=0.5)
    assert (caught.value.rule, caught.value.row, caught.value.column) == ("empty_shown", 1, "shown_ids")
    assert pq.read_table(tmp_path / "rejected.parquet").num_rows == 3


def test_a_clean_log_removes_an_older_list_of_rejections(tmp_path):
    path = write(tmp_path / "log.parquet", [row(0), {**row(1), "shown_ids": []}])
    validate_log(path, SCHEMA, now_us=NOW_US, max_rejected_share=1)
    assert (tmp_path / "rejected.parquet").exists()
    validate_log(write(path, [row(0)]), SCHEMA, now_us=NOW_US, max_rejected_share=0)
    assert not (tmp_path / "rejected.parquet").exists()


def test_a_folder_of_files_counts_rows_within_each_file(tmp_path):
    folder = tmp_path / "log"
    folder.mkdir()
    write(folder / "a.parquet", [row(0), row(1)])
    write(folder / "b.parquet", [row(2), row(0)])
    checked = check_log(folder, SCHEMA, now_us=NOW_US)
    (aside,) = checked.rejected.to_pylist()
    assert (aside["rule"], aside["row"], aside["file"]) == ("duplicate_request", 1, str(folder / "b.parquet"))
    assert checked.accepted["request_id"].to_pylist() == ["r0", "r1", "r2"]


def test_neighbouring_types_are_cast_and_extra_columns_named(tmp_path):
    table = pa.Table.from_pylist([row()], schema=impression_schema(SCHEMA)).append_column("mood", pa.array(["fine"]))
    table = table.set_column(2, "user_id", table["user_id"].cast(pa.int32()))
    table = table.set_column(1, "event_timestamp", table["event_timestamp"].cast(pa.timestamp("ns", "Europe/Berlin")))
    table = table.set_column(4, "candidate_ids", table["candidate_ids"].cast(pa.large_list(pa.int32())))
    pq.write_table(table, tmp_path / "log.parquet")
    checked = check_log(tmp_path / "log.parquet", SCHEMA, now_us=NOW_US)
    assert checked.report.ignored_columns == ("mood",)
    assert checked.accepted.to_pylist() == [row()]


@pytest.mark.parametrize(
    ("column", "kind", "says"),
    [
        ("user_id", pa.string(), "is string, but int64 is needed"),
        ("event_timestamp", pa.timestamp("us"), "without a zone"),
        ("event_timestamp", pa.int64(), "is int64, but timestamp"),
        ("shown_ids", pa.int64(), "is int64, but list"),
    ],
)
def test_a_wrong_type_is_an_error_of_the_file(column, kind, says, tmp_path):
    table = pa.Table.from_pylist([row()], schema=impression_schema(SCHEMA))
    table = table.set_column(table.schema.get_field_index(column), column, pa.nulls(1, kind))
    pq.write_table(table, tmp_path / "log.parquet")
    with pytest.raises(DataError, match=says) as caught:
        check_log(tmp_path / "log.parquet", SCHEMA, now_us=NOW_US)
    assert (caught.value.rule, caught.value.column) == ("wrong_type", column)


def test_a_missing_field_of_a_struct_is_named(tmp_path):
    broken = {**row(), "context": {"device": "phone"}}
    pq.write_table(pa.Table.from_pylist([broken]), tmp_path / "log.parquet")
    with pytest.raises(DataError) as caught:
        check_log(tmp_path / "log.parquet", SCHEMA, now_us=NOW_US)
    assert (caught.value.rule, caught.value.column) == ("missing_column", "context.temperature")


@pytest.mark.parametrize("content", [None, b"not parquet"])
def test_an_absent_or_unreadable_file_is_named(content, tmp_path):
    path = tmp_path / "log.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"log\.parquet"):
        check_log(path, SCHEMA, now_us=NOW_US)


def test_an_empty_log_has_no_rejected_share(tmp_path):
    report = validate_log(write(tmp_path / "log.parquet", []), SCHEMA, now_us=NOW_US, max_rejected_share=0)
    assert (report.requests, report.rejected_share, report.first_request) == (0, 0.0, None)


def test_a_large_log_is_checked_in_seconds(tmp_path):
    requests, candidates = 33_000, 50
    schema = SCHEMA.model_copy(
        update={"context": (), "candidate_features": (), "recent_event_types": (), "max_candidates": candidates}
    )
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 400, (requests, 1)) * candidates + np.arange(candidates)

    def lists(values: np.ndarray) -> pa.Array:
        offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.ravel()))

    zeros = lists(np.zeros((requests, 3), np.float32))
    table = pa.table(
        {
            "request_id": pa.array([str(i) for i in range(requests)]),
            "event_timestamp": pa.array(np.full(requests, NOW_US), pa.timestamp("us", tz="UTC")),
            "user_id": pa.array(rng.integers(0, 9000, requests)),
            "candidate_ids": lists(ids),
            "upstream_scores": pa.StructArray.from_arrays([lists(rng.random(ids.shape, np.float32))], ["upstream"]),
            "shown_ids": lists(np.ascontiguousarray(ids[:, 40:43])),
            "feedback": pa.StructArray.from_arrays([zeros, zeros], ["click", "like"]),
        }
    )
    pq.write_table(table, tmp_path / "log.parquet")
    started = time.perf_counter()
    report = check_log(tmp_path / "log.parquet", schema, now_us=NOW_US).report
    assert report.accepted == requests
    assert time.perf_counter() - started < 10  # measured: about 1 s


def item_row(**changes: object) -> dict:
    at = NOW - timedelta(days=1)
    good = {"item_id": 10, "event_timestamp": at, "created_timestamp": at, "price": 1.5, "colour": "red"}
    return {**good, "style": [0.5, 1.0], "similar": [11, 12], **changes}


def write_items(folder: Path, rows: list[dict]) -> None:
    pq.write_table(pa.Table.from_pylist(rows, feature_table_schema(SCHEMA, "item")), folder / "item_features.parquet")


def test_a_right_feature_table_is_reported(tmp_path):
    nulls = item_row(item_id=11, price=None, colour=None, style=None, similar=None)
    write_items(tmp_path, [item_row(), nulls, item_row(event_timestamp=NOW)])
    report = validate_features(tmp_path, SCHEMA, "item", now_us=NOW_US)
    assert (report.rows, report.entities, report.last) == (3, 2, NOW.isoformat())


@pytest.mark.parametrize(
    ("rule", "column", "changes"),
    [
        ("null_id", "item_id", {"item_id": None}),
        ("null_value", "event_timestamp", {"event_timestamp": None}),
        ("null_value", "created_timestamp", {"created_timestamp": None}),
        ("future_timestamp", "event_timestamp", {"event_timestamp": NOW + timedelta(microseconds=1)}),
        ("duplicate_row", "item_id", {"item_id": 10}),
        ("not_finite", "price", {"price": np.nan}),
        ("not_finite", "style", {"style": [0.5, np.inf]}),
        ("vector_size", "style", {"style": [0.5]}),
        ("sequence_too_long", "similar", {"similar": [1, 2, 3]}),
    ],
)
def test_a_wrong_feature_row_is_an_error_with_its_place(rule, column, changes, tmp_path):
    write_items(tmp_path, [item_row(), item_row(**{"item_id": 11, **changes}), item_row(item_id=12)])
    with pytest.raises(DataError) as caught:
        validate_features(tmp_path, SCHEMA, "item", now_us=NOW_US)
    assert (caught.value.rule, caught.value.column, caught.value.row) == (rule, column, 1)
    assert caught.value.file == str(tmp_path / "item_features.parquet")


@pytest.mark.parametrize(
    ("column", "kind", "rule"),
    [
        ("price", pa.float64(), "wrong_type"),
        ("similar", pa.list_(pa.string()), "wrong_type"),
        ("event_timestamp", pa.timestamp("ns", "UTC"), "wrong_type"),
        ("colour", None, "missing_column"),
    ],
)
def test_feature_columns_need_their_exact_type(column, kind, rule, tmp_path):
    wanted = feature_table_schema(SCHEMA, "item")
    fields = [f if f.name != column else f.with_type(kind or f.type) for f in wanted]
    table = pa.schema(fields).empty_table()
    pq.write_table(table if kind else table.drop_columns([column]), tmp_path / "item_features.parquet")
    with pytest.raises(DataError) as caught:
        validate_features(tmp_path, SCHEMA, "item", now_us=NOW_US)
    assert (caught.value.rule, caught.value.column) == (rule, column)


def test_a_whole_data_set(tmp_path):
    (tmp_path / "schema.yaml").write_text(SCHEMA.to_yaml())
    write(tmp_path / "impressions.parquet", [row()])
    write_items(tmp_path, [item_row()])
    users = [{"user_id": 7, "event_timestamp": NOW, "created_timestamp": NOW, "age": 30.0}]
    pq.write_table(
        pa.Table.from_pylist(users, feature_table_schema(SCHEMA, "user")), tmp_path / "user_features.parquet"
    )
    report = validate_dataset(tmp_path, now_us=NOW_US, max_rejected_share=0)
    assert (report.dataset, report.log.accepted, report.user_features.rows, report.item_features.rows) == (
        "tiny",
        1,
        1,
        1,
    )
