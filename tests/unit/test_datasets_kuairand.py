"""KuaiRand's converter against a brute-force reading of the exposures."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from degre_prod.datasets.kuairand import GAP_MS, LIST_LENGTH, convert
from degre_prod.datasets.kuairand_features import FEEDBACK, ITEM_STATIC, USER_STATIC
from degre_prod.errors import DataError
from degre_prod.schema import load_schema
from degre_prod.validation import validate_dataset

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "kuairand_pure"
START_MS = 1_650_816_000_000  # 2022-04-25 00:00 in UTC+8
DAY_MS = 86_400_000
LOG_COLUMNS = ("user_id", "video_id", "time_ms", "tab", "play_time_ms", *FEEDBACK.values())


def write_synthetic(folder: Path) -> Path:
    """Six users with bursts of exposures: some at the same ms, some repeated, some rows twice."""
    rng = random.Random(0)
    rows = []
    for user in range(6):
        now = START_MS + rng.randrange(DAY_MS)
        for _ in range(90):
            now += rng.choice((0, 500, 20_000, 20_000, 60_000, GAP_MS, GAP_MS + 1, 9 * GAP_MS))
            row = {"user_id": user, "video_id": rng.randrange(25), "time_ms": now, "tab": rng.choice((1, 1, 1, 2))}
            row |= {"play_time_ms": rng.choice((0, 500, 19_000, 600_000)), "is_click": rng.randrange(2)}
            row |= {"long_view": rng.randrange(2), "is_like": int(rng.random() < 0.1)}
            rows += [row] * rng.choice((1, 1, 1, 1, 1, 1, 1, 1, 1, 2))
    rows.sort(key=lambda r: r["time_ms"])
    middle = START_MS + 6 * DAY_MS
    schema = pa.schema([(name, pa.int64()) for name in LOG_COLUMNS])
    for name, part in (
        ("val.parquet", [r for r in rows if r["time_ms"] < middle]),
        ("test.parquet", [r for r in rows if r["time_ms"] >= middle]),
    ):
        pq.write_table(pa.Table.from_pylist(part, schema), folder / name)
    profiles = [{"user_id": u, **dict.fromkeys(USER_STATIC, f"p{u}"), "onehot_feat4": float(u)} for u in range(5)]
    pq.write_table(pa.Table.from_pylist(profiles), folder / "user_features.parquet")
    videos = [
        {"video_id": v, "upload_dt": "2022-04-10", "video_duration": 1000.0 * v if v else None, "show_cnt": 5.0}
        | dict.fromkeys(ITEM_STATIC, "x")
        | {"author_id": v, "music_type": 4.0 if v else None}
        for v in range(25)
    ]
    pq.write_table(pa.Table.from_pylist(videos), folder / "item_features.parquet")
    return folder


@dataclass(frozen=True)
class Case:
    source: Path
    folder: Path
    document: dict

    def table(self, name: str) -> pa.Table:
        return pq.read_table(self.folder / name)


@pytest.fixture(scope="module", params=["synthetic", *(["real"] if REAL.exists() else [])])
def case(request, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    source = REAL if request.param == "real" else write_synthetic(folder)
    return Case(source, folder / "out", convert(source, folder / "out"))


@lru_cache(maxsize=2)
def exposures(source: Path) -> dict[int, list[dict]]:
    """user → its distinct exposures in order of time."""
    out: dict[int, dict] = defaultdict(dict)
    for name in ("val.parquet", "test.parquet"):
        for row in pq.read_table(source / name, columns=list(LOG_COLUMNS)).to_pylist():
            out[row["user_id"]].setdefault((row["video_id"], row["time_ms"]), row)
    return {user: sorted(rows.values(), key=lambda r: r["time_ms"]) for user, rows in out.items()}


def some_requests(case: Case, count: int = 300) -> list[dict]:
    table = case.table("impressions.parquet")
    return table.take(random.Random(1).sample(range(table.num_rows), min(count, table.num_rows))).to_pylist()


def microseconds(moment: datetime) -> int:
    return int(moment.timestamp()) * 1_000_000 + moment.microsecond


def test_lists_are_runs_of_one_users_exposures_on_one_tab(case):
    used = defaultdict(set)
    for request in some_requests(case):
        time_us = microseconds(request["event_timestamp"])
        rows = [r for r in exposures(case.source)[request["user_id"]] if r["time_ms"] * 1000 >= time_us]
        by_video = defaultdict(list)
        for r in rows:
            by_video[r["video_id"]].append(r)
        members = [by_video[video][0] for video in request["candidate_ids"]]
        assert 2 <= len(members) <= LIST_LENGTH
        assert members[0]["time_ms"] * 1000 == time_us
        assert request["shown_ids"] == request["candidate_ids"]
        assert request["source"] == "pseudo_list"
        assert {str(r["tab"]) for r in members} == {request["context"]["tab"]}
        gaps = [b["time_ms"] - a["time_ms"] for a, b in pairwise(members)]
        assert all(0 <= gap <= GAP_MS for gap in gaps)
        for name, column in FEEDBACK.items():
            assert request["feedback"][name] == [float(r[column]) for r in members]
        for r in members:
            key = (r["video_id"], r["time_ms"])
            assert key not in used[request["user_id"]]
            used[request["user_id"]].add(key)


def test_recent_events_ended_strictly_before_the_request(case):
    for request in some_requests(case):
        time_us = microseconds(request["event_timestamp"])
        expected = []
        for row in exposures(case.source)[request["user_id"]]:
            known = (row["time_ms"] + row["play_time_ms"]) * 1000
            if known < time_us:
                expected += [(known, row["video_id"], name) for name, column in FEEDBACK.items() if row[column]]
        got = [(microseconds(e["timestamp"]), e["item_id"], e["type"]) for e in request["recent_events"]]
        assert len(got) == min(len(expected), 50)
        assert set(got) <= set(expected)
        assert [g[0] for g in got] == sorted(e[0] for e in expected)[-50:]


def test_user_features_hold_ended_exposures_only(case):
    rows_of = defaultdict(list)
    for row in case.table("user_features.parquet").to_pylist():
        rows_of[row["user_id"]].append(row)
    for request in some_requests(case):
        time_us = microseconds(request["event_timestamp"])
        ended = [
            r for r in exposures(case.source)[request["user_id"]] if (r["time_ms"] + r["play_time_ms"]) * 1000 < time_us
        ]
        rows = sorted(rows_of[request["user_id"]], key=lambda r: r["event_timestamp"])
        place = bisect_right([r["event_timestamp"] for r in rows], request["event_timestamp"])
        if place == 0:  # a user without a profile, before the first exposure ended
            assert not ended
            continue
        row = rows[place - 1]
        assert row["exposure_count"] == len(ended)
        for name, column in FEEDBACK.items():
            assert row[f"{name}_rate"] == (
                pytest.approx(sum(r[column] for r in ended) / len(ended), abs=1e-6) if ended else None
            )
        assert set(row["last_items"]) <= {r["video_id"] for r in ended if r["is_click"]}


def test_item_features_are_attributes_and_no_counters(case):
    table = case.table("item_features.parquet")
    assert set(table.column_names) == {"item_id", "event_timestamp", "created_timestamp", "duration_s", *ITEM_STATIC}
    assert pc.max(table["event_timestamp"]).as_py().timestamp() * 1000 < START_MS
    source = {r["video_id"]: r for r in pq.read_table(case.source / "item_features.parquet").to_pylist()}
    for row in table.slice(0, 50).to_pylist():
        video = source[row["item_id"]]
        duration = video["video_duration"]
        assert row["duration_s"] == (None if duration is None else pytest.approx(duration / 1000))
        assert row["author_id"] == str(video["author_id"])
        assert row["music_type"] == (None if video["music_type"] is None else str(int(video["music_type"])))


def test_duplicates_are_counted_and_written_aside(case):
    read = sum(
        pq.read_table(case.source / name, columns=["user_id"]).num_rows for name in ("val.parquet", "test.parquet")
    )
    distinct = sum(len(rows) for rows in exposures(case.source).values())
    assert case.document["rejected_by_rule"] == {"duplicate_exposure": read - distinct}
    assert case.table("conversion_rejected.parquet").num_rows == read - distinct > 0
    listed = sum(len(ids) for ids in case.table("impressions.parquet")["candidate_ids"].to_pylist())
    assert case.document["exposures_in_no_list"] + listed == distinct
    assert case.document["events"] == read
    if case.source == REAL:
        assert read - distinct == 5885


def test_the_data_set_is_valid_and_splits_by_time(case):
    report = validate_dataset(case.folder, now_us=(START_MS + 60 * DAY_MS) * 1000, max_rejected_share=0)
    schema = load_schema(case.folder)
    assert report.dataset == schema.name == "kuairand-pseudo-lists"
    assert report.log.accepted == case.document["requests"] > 30
    assert schema.test_start == datetime.fromisoformat("2022-05-01T00:00:00+08:00")
    assert schema.validation_start == datetime.fromisoformat("2022-04-30T00:00:00+08:00")


@pytest.mark.parametrize("name", ["val.parquet", "item_features.parquet"])
def test_a_missing_file_is_named(name, tmp_path):
    write_synthetic(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=name):
        convert(tmp_path, tmp_path / "out")


def test_feedback_beyond_zero_and_one_is_rejected(tmp_path):
    write_synthetic(tmp_path)
    table = pq.read_table(tmp_path / "val.parquet")
    clicks = [7, *table["is_click"].to_pylist()[1:]]
    table = table.set_column(table.schema.get_field_index("is_click"), "is_click", pa.array(clicks))
    pq.write_table(table, tmp_path / "val.parquet")
    assert convert(tmp_path, tmp_path / "out")["rejected_by_rule"]["bad_feedback"] == 1
