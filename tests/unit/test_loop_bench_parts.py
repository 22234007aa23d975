"""The parts of the loop benchmark that need no service: deliveries and their fates, accounts that notice loss, gains."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from degre_prod.config import Settings
from degre_prod.errors import ConfigurationError, TrainingError
from orchestration.bench import loop_night
from orchestration.bench.loop import bench_loop, loop_settings
from orchestration.bench.loop_accounts import Sent, accounts
from orchestration.bench.loop_deliveries import DISORDER, FATES, Delivery, Shown, posts
from orchestration.bench.loop_market import LOGGED, SERVED, indices, market, write_day_log
from orchestration.bench.loop_summary import gain, gain_interval
from orchestration.collect.join import join, without_list
from orchestration.collect.streams import Entry

WINDOW = timedelta(minutes=30)
MOMENT = datetime(2026, 1, 2, tzinfo=UTC)
LISTS = [Shown(f"r{i}", MOMENT, [1, 2, 3, 4, 5], [1, 2, 3], [False, i % 2 == 0, i % 4 == 0]) for i in range(2000)]


def entry(number: int, delivery: Delivery) -> Entry:
    return Entry((1000, number), delivery.body.model_dump(mode="json"))


def test_every_delivery_meets_the_fate_that_was_meant() -> None:
    """By the collector's own rules, its lists being on disk when the next day's deliveries come."""
    made = posts(LISTS, WINDOW, np.random.default_rng(0))
    meant, found = Counter[str](), Counter[str]()
    for delivery in [*made.today, *made.tomorrow]:
        assert sum(delivery.fates.values()) == (len(delivery.body.events) or 1)
        meant.update(delivery.fates)
    today = [entry(n, d) for n, d in enumerate(made.today)]
    counts, confirmed, known = [], set(), {}
    for of in LISTS:
        record = {"request_id": of.request_id, "event_timestamp": of.moment.isoformat(), "shown_ids": of.shown_ids}
        own = [e for e in today if e.record["request_id"] == of.request_id]
        joined = join(Entry((999, 0), record), own, ["click"], WINDOW.total_seconds())
        known[of.request_id] = frozenset(joined.event_ids)
        counts.append(joined.counts)
        if joined.row["confirmed"]:
            confirmed.add(of.request_id)
    counts += [without_list(e.record, None) for e in today if e.record["request_id"] not in known]
    counts += [without_list(d.body.model_dump(mode="json"), known[d.body.request_id]) for d in made.tomorrow]
    for fate in FATES:
        found[fate] = sum(getattr(c, fate) for c in counts)
    assert found == meant
    assert confirmed == made.kept


def test_every_disorder_happens_about_as_often_as_it_should() -> None:
    made = posts(LISTS, WINDOW, np.random.default_rng(1))
    expected = len(LISTS) * (DISORDER["next_day"] + DISORDER["again"])
    assert 0.5 * expected < len(made.tomorrow) < 2 * expected
    strangers = sum(d.body.request_id.startswith("stranger") for d in made.today)
    assert 0.3 < strangers / (len(LISTS) * DISORDER["stranger"]) < 3
    names = [d.body.request_id for d in made.today]
    assert names != sorted(names, key=lambda name: int(name.rpartition("r")[2]))
    again = made.tomorrow[0]
    assert Delivery.from_json(json.loads(json.dumps(again.to_json()))) == again


def write_collected(folder: Path, rows: Sequence[tuple[str, list[int], list[float]]]) -> Path:
    place = folder / "day=2026-01-02"
    place.mkdir(parents=True)
    columns = {
        "request_id": [r[0] for r in rows],
        "shown_ids": [r[1] for r in rows],
        "feedback": [{"click": r[2]} for r in rows],
        "confirmed": [True] * len(rows),
    }
    pq.write_table(pa.table(columns), place / "shard-0-00000001.parquet")
    return folder


SENT = Sent(
    {"a": ([1, 2], [2]), "b": ([3, 4], []), "c": ([5, 6], [])},
    frozenset("ab"),
    {"joined": 2, "late": 1},
    1,
    {"generator": 3},
)
ROWS = [("a", [1, 2], [0.0, 1.0]), ("b", [3, 4], [0.0, 0.0])]
FOUND = {"joined": 2, "late": 1, "orphaned": 0, "duplicated": 0}


def test_accounts_that_hold(tmp_path: Path) -> None:
    found = accounts(SENT, write_collected(tmp_path, ROWS), FOUND, 0)
    assert found["events"] == {"served": 3, "logged": 2, "dropped": 1, "feedback": 3, **FOUND, "lost": 0}
    assert (found["twice"], found["misjudged"], found["differing"]) == (0, {}, 0)


@pytest.mark.parametrize(
    ("rows", "found", "cut", "lost", "twice", "differing"),
    [
        (ROWS[:1], FOUND, 0, 1, 0, 0),  # a list that is nowhere
        (ROWS, {**FOUND, "late": 0}, 0, 1, 0, 0),  # a unit that is nowhere
        (ROWS, FOUND, 2, 2, 0, 0),  # Redis says it cut entries
        ([*ROWS, ROWS[0]], FOUND, 0, 0, 1, 0),
        ([*ROWS, ("z", [1, 2], [0.0, 0.0])], FOUND, 0, 0, 1, 0),  # nobody was sent this one
        (ROWS, {**FOUND, "duplicated": 1}, 0, 0, 1, 0),
        ([ROWS[0], ("b", [3, 4], [1.0, 0.0])], FOUND, 0, 0, 0, 1),  # a click nobody made
        ([("a", [2, 1], [1.0, 0.0]), ROWS[1]], FOUND, 0, 0, 0, 1),  # another order than shown
    ],
)
def test_accounts_that_do_not(
    tmp_path: Path,
    rows: list[tuple[str, list[int], list[float]]],
    found: dict[str, int],
    cut: int,
    lost: int,
    twice: int,
    differing: int,
) -> None:
    told = accounts(SENT, write_collected(tmp_path, rows), found, cut)
    assert (told["events"]["lost"], told["twice"], told["differing"]) == (lost, twice, differing)


def test_gain_is_of_the_last_three_days_with_a_paired_interval() -> None:
    random = np.random.default_rng(0)
    frozen = [random.random(400) + 1 for _ in range(5)]
    days = [{"loop": f * (1.1 if d >= 2 else 9.0), "frozen": f} for d, f in enumerate(frozen)]
    assert gain(days) == pytest.approx(0.1)
    low, high = gain_interval(days)
    assert low == pytest.approx(0.1) == high  # the noise of requests is common to both
    noisy = [{"loop": d["loop"] + random.normal(size=400), "frozen": d["frozen"]} for d in days]
    low, high = gain_interval(noisy)
    assert low < gain(noisy) < high
    assert high - low > 0.02
    assert gain_interval(noisy, less=noisy) == (0.0, 0.0)


def test_the_market_turns_and_tells_nobody(tmp_path: Path) -> None:
    drifting, still = market(100, 10.0), market(100, 0.0)
    asked, same = drifting.asked(3, SERVED, 200), still.asked(3, SERVED, 200)
    assert np.array_equal(asked.candidate_ids_BC, same.candidate_ids_BC)
    assert np.array_equal(asked.upstream_BC, same.upstream_BC)  # the upstream score keeps the taste of day 0
    lists = np.tile(np.arange(4), (200, 1))
    assert not np.allclose(drifting.values(3, asked, lists), still.values(3, same, lists))
    assert np.allclose(drifting.values(0, asked, lists), still.values(0, same, lists))
    assert np.array_equal(
        indices(asked, asked.candidate_ids_BC[:, [2, 0, 1, 3]].tolist()), np.tile([2, 0, 1, 3], (200, 1))
    )
    folder = write_day_log(drifting, 3, 50, tmp_path / "log")
    there = {f.name for f in folder.rglob("*")}
    assert there == {
        "schema.yaml",
        "impressions.parquet",
        "user_features.parquet",
        "item_features.parquet",
        "made_from.json",
    }
    assert "mixed" not in (folder / "schema.yaml").read_text()
    log = pq.read_table(folder / "impressions.parquet")
    assert log["candidate_ids"].to_pylist() == drifting.asked(3, LOGGED, 50).candidate_ids_BC.tolist()


def test_nights_learn_from_little_history_unless_told_otherwise() -> None:
    first, nightly = loop_settings(Settings(), 0.05)
    assert first.retrain == Settings().retrain
    assert nightly.retrain.max_requests < first.retrain.max_requests
    assert (nightly.serving.clock, nightly.serving.exploration_share) == ("request", 0.05)
    told = Settings.model_validate({"retrain": {"max_requests": 777}, "evaluator": {"epochs": 2}})
    first, nightly = loop_settings(told, 0.0)
    assert (first.retrain.max_requests, nightly.retrain.max_requests) == (777, 777)
    assert (nightly.evaluator.epochs, nightly.serving.exploration_share) == (2, 0.0)


def test_a_folder_holds_one_plan(tmp_path: Path) -> None:
    (tmp_path / "plan.txt").write_text("another")
    with pytest.raises(ConfigurationError, match="another folder"):
        bench_loop(Settings(), seed=0, out=tmp_path)
    with pytest.raises(ConfigurationError, match="50 requests"):
        bench_loop(Settings(), seed=0, out=tmp_path, requests=3)


def test_a_night_without_an_outcome_is_an_error_that_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys, os; print('no room', file=sys.stderr); print(os.environ['DEGRE_REDIS__URL']); sys.exit(1)"
    monkeypatch.setattr(loop_night, "_PROGRAM", program)
    with pytest.raises(TrainingError, match="no room"):
        loop_night.retrain(tmp_path, "redis://here", tmp_path / "degre.yaml", tmp_path / "said.log")
    stopped = {"status": "stopped", "reason": "gate drift"}
    monkeypatch.setattr(loop_night, "_PROGRAM", f"import sys; print('{json.dumps(stopped)}'); sys.exit(3)")
    assert loop_night.retrain(tmp_path, "redis://here", tmp_path / "c", tmp_path / "said.log") == stopped
