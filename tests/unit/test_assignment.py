"""Assignment: shares, independence and exact monotone growth over many ids; overrides, scope, holdout."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from degre_prod.errors import ConfigurationError
from degre_prod.experiments.assignment import (
    Allocation,
    Assignment,
    Holdout,
    assign,
    spans,
    unit_interval,
    unit_intervals,
)

IDS = 1_000_000
THREE = {"champion": 0.5, "a": 0.3, "b": 0.2}
PINNED = (0.9019379817054034, 0.2171661682186512)
Intervals = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def u() -> Intervals:
    """u of a million users under two salts, and under one salt in another experiment."""
    named = {"one": ("trial", "one"), "two": ("trial", "two"), "other": ("retrial", "one")}
    return {name: np.array(unit_intervals(range(IDS), *key)) for name, key in named.items()}


def arms_of(u_U: np.ndarray, arms: dict[str, float]) -> np.ndarray:
    """Index of each user's arm, by the spans themselves."""
    names = list(arms)
    arm_U = np.zeros(len(u_U), dtype=int)
    for span in spans(arms)[:-1]:
        arm_U[(span.low <= u_U) & (u_U < span.high)] = names.index(span.arm)
    return arm_U


@pytest.mark.parametrize("arms", [{"champion": 0.99, "a": 0.01}, {"champion": 0.5, "a": 0.5}, THREE])
def test_each_arm_has_its_weight(u: Intervals, arms: dict[str, float]) -> None:
    for u_U in u.values():
        count_A = np.bincount(arms_of(u_U, arms), minlength=len(arms))
        weight_A = np.array(list(arms.values()))
        assert np.abs(count_A / IDS - weight_A).max() < 0.002
        assert chisquare(count_A, weight_A * IDS).pvalue > 0.001


def test_salts_and_experiments_are_independent(u: Intervals) -> None:
    one = arms_of(u["one"], THREE)
    for name in ("two", "other"):
        table = np.bincount(one * 3 + arms_of(u[name], THREE), minlength=9).reshape(3, 3)
        assert chi2_contingency(table).pvalue > 0.001
        assert abs(np.corrcoef(u["one"], u[name])[0, 1]) < 0.005


def test_nobody_leaves_an_arm_that_grows(u: Intervals) -> None:
    before = np.zeros(IDS, dtype=bool)
    for weight in (0.0, 0.01, 0.05, 0.25, 0.5, 1.0):
        inside = arms_of(u["one"], {"champion": 1 - weight, "a": weight}) == 1
        assert not (before & ~inside).any()
        before = inside
    assert before.all()


shares = st.lists(st.floats(0, 1), min_size=2, max_size=5)


@given(shares, shares, st.integers(1, 5))
def test_growth_is_monotone_whatever_the_other_arms_do(
    first: list[float], second: list[float], treatments: int
) -> None:
    limit = 1 / ((treatments + 1) // 2) / 2  # half a region: any two arms of a pair fit

    def arms(weights: list[float]) -> dict[str, float]:
        named = {f"t{k}": limit * weights[k % len(weights)] for k in range(treatments)}
        return {"champion": max(1 - sum(named.values()), 0.0), **named}

    small, large = arms(first), arms(second)
    u_U = np.linspace(0, 1, 2001)[:-1]
    was, now = arms_of(u_U, small), arms_of(u_U, large)
    for k in range(1, treatments + 1):
        if large[f"t{k - 1}"] >= small[f"t{k - 1}"]:
            assert (now[was == k] == k).all()


def test_two_treatments_may_take_everything() -> None:
    parts = spans({"champion": 0.0, "a": 0.7, "b": 0.3})
    assert parts[0].high == pytest.approx(parts[1].low)
    assert parts[1].high == 1.0


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ({}, "without arms"),
        ({"champion": 1.2, "a": -0.2}, "within 0 … 1"),
        ({"champion": 0.5, "a": 0.4}, "sum to 0.9"),
        ({"champion": 0.3, "a": 0.6, "b": 0.05, "c": 0.05}, "a and b have weight 0.65"),
    ],
)
def test_weights_that_are_no_shares(arms: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        spans(arms)


def test_ids_are_the_same_user_as_integer_and_as_string() -> None:
    assert (
        unit_interval(42, "trial", "s")
        == unit_interval("42", "trial", "s")
        == unit_interval(np.int64(42), "trial", "s")
    )
    assert unit_interval("Ω-7", "trial", "s") != unit_interval("Ω-8", "trial", "s")


def test_the_hash_never_changes() -> None:
    """Replicas of two versions must agree: these figures were computed once and are part of the contract."""
    assert unit_interval(1, "trial", "salt") == PINNED[0]
    assert unit_interval("user-1", "trial", "salt") == PINNED[1]
    assert unit_interval("bc", "a", "") != unit_interval("c", "a", "b") != unit_interval("bc", "", "a")


def test_allocation_says_why() -> None:
    allocation = Allocation(
        "trial",
        "salt",
        {"champion": 0.5, "challenger": 0.5},
        overrides={7: "challenger", "qa": "champion"},
        scope={"country": ("DE", "AT"), "scene": ("home",)},
        holdout=Holdout(0.1),
    )
    home = {"country": "AT", "scene": "home"}
    assert allocation.control == "champion"
    assert allocation.assign("7") == Assignment("challenger", "override")
    assert not allocation.assign(7, home).counted
    assert allocation.assign(1, {**home, "country": "FR"}) == Assignment("champion", "out_of_scope")
    assert allocation.assign(1, {"country": "AT"}).reason == "out_of_scope"
    seen = [allocation.assign(k, home) for k in range(20_000)]
    held = [k for k, a in enumerate(seen) if a.reason == "holdout"]
    assert len(held) / 20_000 == pytest.approx(0.1, abs=0.01)
    assert all(seen[k].arm == "champion" for k in held)
    assert all(a.arm == assign(k, "trial", "salt", allocation.arms) for k, a in enumerate(seen) if a.counted)
    # Whom one experiment holds out, every other one with the same holdout does too.
    later = Allocation("later", "pepper", allocation.arms, holdout=Holdout(0.1))
    assert held == [k for k in range(20_000) if later.assign(k).reason == "holdout" and k != 7]
    treated = [a.arm == "challenger" for a in seen if a.counted]
    assert np.mean(treated) == pytest.approx(0.5, abs=0.015)


def test_allocation_names_what_is_wrong() -> None:
    with pytest.raises(ConfigurationError, match="overrides to challengr"):
        Allocation("trial", "s", {"champion": 0.5, "challenger": 0.5}, overrides={1: "challengr"})
    with pytest.raises(ConfigurationError, match="holdout share 1"):
        Allocation("trial", "s", {"champion": 1.0}, holdout=Holdout(1.0))
