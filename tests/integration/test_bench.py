"""The measurements themselves: what they time is equal, what they report adds up. No figure is judged here."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_fakes import FakeFeatures, fake_engine
from serving_server import served
from typer.testing import CliRunner

from orchestration.bench import aged, decode, features
from orchestration.bench.loadgen import Load, measure
from orchestration.bench.timing import interleaved_ms
from orchestration.cli import app
from serving.features import FeatureReader
from serving.protocol import RerankRequest

# A deadline that a pause of the test process, which serves as well, does not reach.
BODY = json.dumps({"user_id": 1, "candidates": [{"id": i} for i in (5, 9, 3)], "deadline_ms": 5000})


@pytest.fixture
def rerank_url(clean_redis: str) -> Iterator[str]:
    with served(fake_engine(FakeFeatures()), clean_redis) as url:
        yield f"{url}/v1/rerank"


def test_closed_loop_counts_answers_and_their_sources(rerank_url: str) -> None:
    measured = measure(Load(rerank_url, (BODY,), connections=2, seconds=0.5))
    count = len(measured.latencies_ms)
    assert count > 5
    assert (measured.statuses, measured.sources) == ({"200": count}, {"generator": count})
    assert measured.throughput == pytest.approx(count / measured.seconds)
    refused = measure(Load(rerank_url, ("{}",), connections=1, seconds=0.2))
    assert set(refused.statuses) == {"422"}


class SlowFeatures(FakeFeatures):
    """Takes 50 ms a request."""

    def read(self, user_id: object, item_ids: object, now_us: int):
        time.sleep(0.05)
        return super().read(user_id, item_ids, now_us)


def test_open_loop_counts_from_the_moment_a_request_was_due(clean_redis: str) -> None:
    """One connection gets 20 answers a second at most; with 40 due, the last ones wait most of a second."""
    with served(fake_engine(SlowFeatures()), clean_redis, deadline_ms=5000.0) as url:
        measured = measure(Load(f"{url}/v1/rerank", (BODY,), connections=1, seconds=1.0, rate=40.0))
    assert len(measured.latencies_ms) == sum(measured.statuses.values()) > 20
    assert measured.quantile_ms(1.0) > 300
    assert measured.quantile_ms(0.0) < measured.quantile_ms(1.0) / 2


def test_alternatives_are_timed_in_turn_on_the_same_indices() -> None:
    calls: list[tuple[str, int]] = []
    times = interleaved_ms(
        {"a": lambda i: calls.append(("a", i)), "b": lambda i: calls.append(("b", i))}, repeats=2, calls=2, warmup=1
    )
    assert calls == [(name, i) for first in (0, 3) for name in "ab" for i in range(first, first + 3)]
    assert {name: len(values) for name, values in times.items()} == {"a": 2, "b": 2}


def test_decode_and_features_compare_equal_things(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, changes in (
        (decode, {"REQUESTS": 10, "REPEATS": 1, "CALLS": 5}),
        (features, {"ITEMS": 300, "USERS": 20, "WARM_REQUESTS": 10, "REQUESTS": 20, "REPEATS": 1, "CALLS": 3}),
    ):
        for name, value in changes.items():
            monkeypatch.setattr(module, name, value)
    said = CliRunner().invoke(app, ["bench", "decode", "--candidates", "12", "--length", "3", "--json"])
    document = json.loads(said.stdout.splitlines()[-1])
    assert (document["lists_equal"], document["lists_compared"]) == (10, 10)
    assert 0 < document["graph_multiply_adds"] < document["model_multiply_adds"]
    said = CliRunner().invoke(app, ["bench", "features", "--candidates", "15", "--json"])
    assert json.loads(said.stdout.splitlines()[-1])["equal"] is True


def test_features_that_differ_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ITEMS": 60, "USERS": 5, "WARM_REQUESTS": 2, "REQUESTS": 5, "REPEATS": 1, "CALLS": 1}.items():
        monkeypatch.setattr(features, name, value)
    read = FeatureReader.read
    monkeypatch.setattr(FeatureReader, "read", lambda self, user, items, now: read(self, user, items[::-1], now))
    assert features.bench_features(5)["equal"] is False


def test_the_common_way_lies_beside_the_package() -> None:
    assert (Path(__file__).parents[2] / "bench" / "naive_serving.py").is_file()


def test_an_aged_service_takes_turns_with_a_fresh_one_and_is_compared_pair_by_pair(
    rerank_url: str, clean_redis: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aged, "BLOCK", 10)
    monkeypatch.setattr(aged, "LEAD", 2)
    aged_url = rerank_url.removesuffix("/v1/rerank")
    requests = [RerankRequest.model_validate_json(BODY)]
    with served(fake_engine(FakeFeatures()), clean_redis) as fresh_url:
        old, new = aged.alternate(aged_url, fresh_url, requests, rate=100.0, warm_s=0.1)
    assert len(old) == len(new) == aged.PAIRS
    assert min(old + new) > 0
    assert aged.ratio([6.0, 5.0, 9.0], [4.0, 5.0, 6.0]) == pytest.approx(1.5)
