"""Off-policy intervals hold the truth of a small world about as often as they say, and where they don't they are called not
estimable: `degre bench off-policy`, smaller."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestration.bench.off_policy import ESTIMATORS, bench_off_policy


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    out = tmp_path_factory.mktemp("off_policy")
    found = bench_off_policy(60, 400, out, min_effective=40.0)
    assert json.loads((out / "off_policy.json").read_text()) == found
    assert (out / "off_policy.png").stat().st_size > 10_000
    assert "<svg" in Path(out / "off_policy.svg").read_text()[:1000]
    return found


@pytest.mark.parametrize("study", ["softer", "one_swap"])
def test_intervals_hold_the_truth_where_it_is_estimable(document: dict, study: str) -> None:
    rows = document["studies"][study]["estimators"]
    assert set(rows) == set(ESTIMATORS)
    for name, row in rows.items():
        assert row["estimable"], name
        assert 0.85 <= row["coverage"] <= 1.0, name  # 60 repetitions: two standard errors are 6 %
        assert abs(row["bias"]) < 3 * row["standard_deviation"] / 60**0.5 + 0.01, name


def test_what_exploration_hardly_ever_shows_is_not_estimable(document: dict) -> None:
    rows = document["studies"]["far"]["estimators"]
    assert not any(row["estimable"] for row in rows.values())
    assert min(row["coverage"] for row in rows.values()) < 0.85  # and rightly so
