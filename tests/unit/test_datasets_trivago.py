"""trivago's converter against a brute-force reading of the events: nothing at or after a request reaches it."""

from __future__ import annotations

import csv
import json
import random
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from degre_prod.datasets.trivago import convert
from degre_prod.datasets.trivago_features import PRIOR_CTR, PRIOR_WEIGHT
from degre_prod.datasets.trivago_source import COLUMNS, EVENT_TYPES, RULES
from degre_prod.errors import DataError
from degre_prod.schema import load_schema
from degre_prod.validation import validate_dataset

REAL = Path(__file__).parents[2].parent / "shared" / "data" / "trivago" / "events.parquet"
DAY_1 = 1_541_548_800  # 2018-11-07T00:00:00Z
HOUR, DAY = 3600, 86_400
FILTERS = (None, "Sort by Price", "4 Star|Focus on Distance", "5 Star")


def synthetic_events(seed: int = 0) -> list[dict]:
    """Few users and seconds, so that events of one second, of several sessions and of one hour's end meet."""
    rng = random.Random(seed)
    rows = []
    for user in range(8):
        for session in range(5):
            now = DAY_1 + HOUR * rng.randrange(48) + rng.choice((0, 1, HOUR - 3))
            for step in range(1, rng.randrange(6, 25)):
                now = min(now + rng.choice((0, 0, 1, 1, 7, 900)), DAY_1 + 2 * DAY - 1)
                action = rng.choice((*EVENT_TYPES, *["clickout item"] * 2, "filter selection", "search for poi"))
                rows.append(_event(rng, f"u{user}", f"s{user}.{session}", now, step, action))
    rng.shuffle(rows)
    return rows


def _event(rng: random.Random, user: str, session: str, now: int, step: int, action: str) -> dict:
    row = dict.fromkeys(name for name, _, _ in COLUMNS)
    row |= {"user_id": user, "session_id": session, "timestamp": now, "step": step, "action_type": action}
    row |= {"platform": "DE", "city": "Ulm", "device": "mobile", "current_filters": rng.choice(FILTERS)}
    shown = [str(item) for item in rng.sample(range(40), rng.randrange(1, 12))]
    row["reference"] = rng.choice(shown) if action in EVENT_TYPES else "Stonehenge"
    if action == "clickout item":
        row["impressions"] = "|".join(shown)
        row["prices"] = "|".join(str(rng.randrange(20, 300)) for _ in shown)
    return row


def write_source(path: Path, rows: list[dict]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([(n, t) for n, t, _ in COLUMNS])), path)
    return path


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
    source = REAL if request.param == "real" else write_source(folder / "events.parquet", synthetic_events())
    return Case(source, folder / "out", convert(source, folder / "out"))


@lru_cache(maxsize=2)
def events_by_user(source: Path) -> dict[str, list[dict]]:
    """Plain rows in order of (timestamp, step), without click-outs that the converter must refuse."""
    out = defaultdict(list)
    for row in pq.read_table(source).to_pylist():
        if row["impressions"] and row["reference"] not in row["impressions"].split("|"):
            continue
        out[row["user_id"]].append(row)
    return {user: sorted(rows, key=lambda r: (r["timestamp"], r["step"])) for user, rows in out.items()}


def earlier(case: Case, request: dict) -> list[dict]:
    """The user's events strictly before a request, by the source's own clock."""
    *_, timestamp, step = request["request_id"].split("-")
    moment = (int(timestamp), int(step))
    rows = events_by_user(case.source)[request["user_id"]]
    return [row for row in rows if (row["timestamp"], row["step"]) < moment]


def some_requests(case: Case, count: int = 150) -> list[dict]:
    table = case.table("impressions.parquet")
    chosen = random.Random(1).sample(range(table.num_rows), min(count, table.num_rows))
    return table.take(chosen).to_pylist()


def as_of(table: pa.Table, key: str) -> dict:
    """id → its rows in order of time, for `latest`."""
    out = defaultdict(list)
    for row in table.to_pylist():
        out[row[key]].append(row)
    return {ident: sorted(rows, key=lambda r: r["event_timestamp"]) for ident, rows in out.items()}


def latest(rows: list[dict], moment: object) -> dict | None:
    """What a point-in-time join gives: the newest row not later than the request."""
    place = bisect_right([row["event_timestamp"] for row in rows], moment)
    return rows[place - 1] if place else None


def is_item_event(row: dict) -> bool:
    return row["action_type"] in EVENT_TYPES and row["reference"].isdigit()


def test_recent_events_are_the_users_earlier_item_interactions(case):
    for request in some_requests(case):
        expected = [
            (row["reference"], EVENT_TYPES[row["action_type"]]) for row in earlier(case, request) if is_item_event(row)
        ]
        assert [(e["item_id"], e["type"]) for e in request["recent_events"]] == expected[-50:]
        assert all(e["timestamp"] < request["event_timestamp"] for e in request["recent_events"])


def test_user_features_hold_strictly_earlier_events_only(case):
    rows_of = as_of(case.table("user_features.parquet"), "user_id")
    for request in some_requests(case):
        row = latest(rows_of[request["user_id"]], request["event_timestamp"])
        history = earlier(case, request)
        if not history:
            assert row is None
            continue
        clicks = [e for e in history if e["action_type"] == "clickout item"]
        ranks = [e["impressions"].split("|").index(e["reference"]) for e in clicks]
        prices = [float(e["prices"].split("|")[rank]) for e, rank in zip(clicks, ranks, strict=True)]
        items = dict.fromkeys(e["reference"] for e in reversed(history) if is_item_event(e))
        assert (row["event_count"], row["clickout_count"]) == (len(history), len(clicks))
        assert row["mean_clicked_rank"] == (pytest.approx(np.mean(ranks) + 1) if clicks else None)
        assert row["mean_clicked_price"] == (pytest.approx(np.mean(prices)) if clicks else None)
        assert row["last_items"] == list(items)[:10]
        assert row["created_timestamp"] == row["event_timestamp"]


def test_item_features_hold_hours_that_ended_before_the_request(case):
    rows_of = as_of(case.table("item_features.parquet"), "item_id")
    every = [row for rows in events_by_user(case.source).values() for row in rows]
    by_item = defaultdict(list)
    for row in every:
        if row["impressions"]:
            for rank, item in enumerate(row["impressions"].split("|")):
                by_item[item].append((row["timestamp"], "shown", rank + 1, float(row["prices"].split("|")[rank])))
        if is_item_event(row):
            by_item[row["reference"]].append((row["timestamp"], row["action_type"], 0, 0.0))
    checked = 0
    for request in some_requests(case, 60):
        hour = int(request["event_timestamp"].timestamp()) // HOUR * HOUR
        for item in request["candidate_ids"]:
            known = [e for e in by_item[item] if e[0] < hour]
            row = latest(rows_of[item], request["event_timestamp"])
            if not known:
                assert row is None
                continue
            shown = [e for e in known if e[1] == "shown"]
            clicks = sum(e[1] == "clickout item" for e in known)
            checked += 1
            assert (row["impression_count"], row["clickout_count"]) == (len(shown), clicks)
            assert row["interaction_count"] == len(known) - len(shown) - clicks
            assert row["ctr"] == pytest.approx((clicks + PRIOR_CTR * PRIOR_WEIGHT) / (len(shown) + PRIOR_WEIGHT))
            assert row["mean_shown_rank"] == (pytest.approx(np.mean([e[2] for e in shown])) if shown else None)
            assert row["mean_price"] == (pytest.approx(np.mean([e[3] for e in shown])) if shown else None)
    assert checked > 50


def test_the_past_does_not_change_when_the_future_is_cut_off(case, tmp_path):
    cut = DAY_1 + DAY + 12 * HOUR
    source = pq.read_table(case.source)
    pq.write_table(source.filter(pc.less(source["timestamp"], cut)), tmp_path / "events.parquet")
    convert(tmp_path / "events.parquet", tmp_path / "out")
    limit = pa.scalar(cut * 1_000_000, pa.timestamp("us", tz="UTC"))
    for name, keys in (
        ("impressions.parquet", ["request_id"]),
        ("user_features.parquet", ["user_id", "event_timestamp"]),
        ("item_features.parquet", ["item_id", "event_timestamp"]),
    ):
        whole = case.table(name)
        before = whole.filter(pc.less_equal(whole["event_timestamp"], limit))
        alone = pq.read_table(tmp_path / "out" / name)
        assert alone.num_rows == before.num_rows > 0
        order = [(key, "ascending") for key in keys]
        assert alone.sort_by(order).equals(before.sort_by(order))


def test_the_data_set_is_valid_and_splits_by_day(case):
    report = validate_dataset(case.folder, now_us=(DAY_1 + 3 * DAY) * 1_000_000, max_rejected_share=0)
    schema = load_schema(case.folder)
    assert report.log.accepted == case.document["requests"]
    times = case.table("impressions.parquet")["event_timestamp"].to_pylist()
    assert times == sorted(times)
    assert schema.test_start.timestamp() == DAY_1 + DAY
    day_1 = [t for t in times if t < schema.test_start]
    validation = [t for t in day_1 if t >= schema.validation_start]
    assert len(validation) / len(day_1) == pytest.approx(0.15, abs=0.02)
    assert schema.objectives[0].slot_weights[:2] == (1.0, 0.5)


def test_one_request_a_clickout_with_its_list_as_shown(case):
    rows = {
        f"{r['session_id']}-{r['timestamp']}-{r['step']}": r
        for rows in events_by_user(case.source).values()
        for r in rows
        if r["action_type"] == "clickout item"
    }
    assert case.document["requests"] == len(rows)
    for request in some_requests(case):
        row = rows[request["request_id"]]
        shown = row["impressions"].split("|")
        assert request["candidate_ids"] == request["shown_ids"] == shown
        assert request["candidate_features"]["price"] == [float(price) for price in row["prices"].split("|")]
        assert request["feedback"]["clickout"] == [float(item == row["reference"]) for item in shown]
        assert request["context"]["hour"] == f"{row['timestamp'] // HOUR % 24:02d}"


if REAL.exists():

    def test_known_reference_points_of_the_real_log(tmp_path):
        """Mean reciprocal rank on day 2: as shown .451, last-interacted-first .600."""
        document = convert(REAL, tmp_path / "out")
        assert document["rejected_by_rule"] == {"reference_not_shown": 1}
        log = pq.read_table(tmp_path / "out" / "impressions.parquet")
        test_start = pa.scalar(load_schema(tmp_path / "out").test_start)
        day_2 = log.filter(pc.greater_equal(log["event_timestamp"], test_start))
        shown, last_first = [], []
        for request in day_2.select(["candidate_ids", "recent_events", "feedback"]).to_pylist():
            clicked = request["feedback"]["clickout"].index(1.0)
            newest = {e["item_id"]: n for n, e in enumerate(request["recent_events"])}
            ranks = [-newest.get(item, -1) for item in request["candidate_ids"]]
            shown.append(1 / (clicked + 1))
            last_first.append(1 / (1 + sorted(range(len(ranks)), key=lambda c: ranks[c]).index(clicked)))
        assert np.mean(shown) == pytest.approx(0.451, abs=0.002)
        assert np.mean(last_first) == pytest.approx(0.600, abs=0.01)


def good_clickout(**changes: object) -> dict:
    row = {"user_id": "u", "session_id": "s", "timestamp": DAY_1, "step": 1, "action_type": "clickout item"}
    row |= {"reference": "2", "platform": "DE", "city": "Ulm", "device": "mobile", "current_filters": None}
    return {**row, "impressions": "1|2|3", "prices": "10|20|30", **changes}


BAD = [
    ("null_key", {"user_id": None}),
    ("null_key", {"timestamp": None}),
    ("duplicate_event", {"step": 1, "timestamp": DAY_1 + DAY}),
    ("no_impressions", {"impressions": None}),
    ("no_impressions", {"impressions": "", "prices": ""}),
    ("prices_length", {"prices": "10|20"}),
    ("bad_price", {"prices": "10|free|30"}),
    ("bad_price", {"prices": "10|0|30"}),
    ("duplicate_candidate", {"impressions": "1|2|2"}),
    ("reference_not_shown", {"reference": "9"}),
    ("reference_not_shown", {"reference": None}),
]


@pytest.mark.parametrize(("rule", "changes"), BAD)
def test_an_unusable_row_is_counted_and_written_aside(rule, changes, tmp_path):
    rows = [good_clickout(), good_clickout(timestamp=DAY_1 + DAY), good_clickout(**{"step": 9, **changes})]
    document = convert(write_source(tmp_path / "events.parquet", rows), tmp_path / "out")
    assert (document["requests"], document["rejected_by_rule"]) == (2, {rule: 1})
    (aside,) = pq.read_table(tmp_path / "out" / "conversion_rejected.parquet").to_pylist()
    assert (aside["rule"], aside["row"], aside["reason"]) == (rule, 2, RULES[rule])
    assert json.loads(aside["original"]) == rows[2]


def test_the_owners_csv_gives_the_same_data_set(tmp_path):
    rows = synthetic_events()
    convert(write_source(tmp_path / "events.parquet", rows), tmp_path / "a")
    with (tmp_path / "train.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    convert(tmp_path / "train.csv", tmp_path / "b")
    for name in ("impressions.parquet", "user_features.parquet", "item_features.parquet"):
        assert pq.read_table(tmp_path / "a" / name).equals(pq.read_table(tmp_path / "b" / name))


def test_longer_lists_widen_the_schema(tmp_path):
    shown = [str(i) for i in range(30)]
    long = good_clickout(impressions="|".join(shown), prices="|".join(["5"] * 30), timestamp=DAY_1 + DAY)
    convert(write_source(tmp_path / "events.parquet", [good_clickout(), long]), tmp_path / "out")
    assert load_schema(tmp_path / "out").max_candidates == 50


@pytest.mark.parametrize(
    ("rows", "says"),
    [([good_clickout()], "one UTC day"), ([good_clickout(action_type="search for poi")], "no usable `clickout item`")],
)
def test_a_source_without_a_test_day_or_clicks_is_refused(rows, says, tmp_path):
    with pytest.raises(DataError, match=says):
        convert(write_source(tmp_path / "events.parquet", rows), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_column_is_named(tmp_path):
    pq.write_table(pa.table({"user_id": ["u"]}), tmp_path / "events.parquet")
    with pytest.raises(DataError, match="session_id"):
        convert(tmp_path / "events.parquet", tmp_path / "out")


def test_a_folder_with_other_content_is_left_alone(tmp_path):
    source = write_source(tmp_path / "events.parquet", synthetic_events())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(DataError, match="choose another folder"):
        convert(source, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_an_unchanged_source_is_not_converted_again(tmp_path):
    source = write_source(tmp_path / "events.parquet", synthetic_events())
    steps: list[str] = []
    first = convert(source, tmp_path / "out", say=steps.append)
    assert steps
    steps.clear()
    assert convert(source, tmp_path / "out", say=steps.append) == first
    assert steps == []
    write_source(source, synthetic_events(seed=1))
    assert convert(source, tmp_path / "out", say=steps.append) != first
    assert steps
