"""Ratio metrics, CUPED, always-valid intervals, sample ratio: against scipy, savvi, integrals and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from savvi.linear_regression import LinearRegression
from savvi.multinomial import Multinomial
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import chisquare, norm, ttest_ind

from degre_prod.errors import ConfigurationError, DataError
from degre_prod.experiments.corrections import holm
from degre_prod.experiments.cuped import adjusted_difference, difference
from degre_prod.experiments.moments import Moments, change, from_flat, moments_of, no_moments
from degre_prod.experiments.ratio import delta_variance, ratio, value_and_gradient, with_one_bad_event
from degre_prod.experiments.sequential import (
    fixed_p_value,
    half_width,
    mixture_scale,
    one_sided_p_value,
    one_sided_width,
    p_value,
)
from degre_prod.experiments.srm import Phase, chi_square_p_value, log_evidence, sequential_p_value


def users(rng: np.random.Generator, count: int, lift: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clicks, requests and two covariates of users who differ in activity and taste."""
    activity = np.exp(rng.normal(size=count))
    taste = rng.gamma(4, 0.1, size=count)
    before = rng.poisson(5 * activity)
    requests = 1 + rng.poisson(3 * activity)
    covariates = np.stack([rng.poisson(before * taste), before], axis=1)
    return rng.poisson(requests * taste * lift), requests, covariates


# Moments


rows = st.lists(st.tuples(*[st.integers(0, 50)] * 3), min_size=1, max_size=20)


@given(rows, rows)
def test_moments_kept_by_changes_are_those_of_the_last_rows(first: list, second: list) -> None:
    flat: dict[str, float] = {}
    for row in first:
        for name, amount in change(None, row).items():
            flat[name] = flat.get(name, 0.0) + amount
    for user, row in enumerate(second[: len(first)]):
        for name, amount in change(first[user], row).items():
            flat[name] += amount
    last = np.array([*second[: len(first)], *first[len(second) :]], dtype=float)
    kept, whole = from_flat({k: str(v) for k, v in flat.items()}), moments_of(last[:, 0], last[:, 1], last[:, 2:])
    assert kept.count == len(first)
    np.testing.assert_allclose(kept.sums_K, whole.sums_K)
    np.testing.assert_allclose(kept.products_KK, whole.products_KK)
    assert whole.flat() == from_flat(whole.flat()).flat()


def test_moments_add_up() -> None:
    rng = np.random.default_rng(0)
    clicks, requests, _ = users(rng, 100)
    halves = moments_of(clicks[:40], requests[:40]) + moments_of(clicks[40:], requests[40:]) + no_moments()
    whole = moments_of(clicks, requests)
    np.testing.assert_allclose(halves.products_KK, whole.products_KK)
    np.testing.assert_allclose(whole.covariance, np.cov(clicks, requests))


def test_moments_name_what_is_wrong() -> None:
    with pytest.raises(DataError, match=r"not finite .*row 1"):
        moments_of(np.array([1.0, np.nan]))
    with pytest.raises(DataError, match="one value a user"):
        moments_of(np.ones(3), np.ones(2))
    with pytest.raises(DataError, match="2 and of 3 columns"):
        no_moments(2) + no_moments(3)
    with pytest.raises(DataError, match="had 2 columns and now has 3"):
        change((1, 2), (1, 2, 3))
    with pytest.raises(DataError, match="q0"):
        from_flat({"n": 1, "q0": 2})
    two = Moments(np.ones(2), np.ones((2, 2)), np.ones((2, 2, 2)))
    with pytest.raises(DataError, match="one look"):
        two.flat()


# Ratios


def test_of_a_mean_the_variance_is_welchs() -> None:
    rng = np.random.default_rng(1)
    treatment, control = rng.normal(1, 2, 70), rng.normal(0.5, 1, 50)
    effect, variance = difference(moments_of(treatment), moments_of(control), "absolute")
    assert effect / variance**0.5 == pytest.approx(ttest_ind(treatment, control, equal_var=False).statistic)


@pytest.mark.parametrize("scale", ["relative", "absolute"])
def test_of_a_ratio_the_variance_is_the_bootstraps(scale: str) -> None:
    rng = np.random.default_rng(2)
    clicks, requests, _ = users(rng, 3000)
    moments = moments_of(clicks, requests)
    value, gradient = value_and_gradient(moments, scale)  # type: ignore[arg-type]
    chosen = rng.integers(0, 3000, (2000, 3000))
    ratios = clicks[chosen].sum(1) / requests[chosen].sum(1)
    drawn = np.log(ratios) if scale == "relative" else ratios
    assert delta_variance(moments, gradient) ** 0.5 == pytest.approx(drawn.std(), rel=0.06)
    assert value == pytest.approx(np.log(ratio(moments)) if scale == "relative" else ratio(moments))
    # Requests as units would claim much more certainty than there is.
    by_request = ratio(moments) / requests.sum()
    assert drawn.var() > 2 * (by_request if scale == "absolute" else by_request / ratio(moments) ** 2)


def test_a_share_of_nothing_seen_is_not_certain() -> None:
    moments = moments_of(np.zeros(100), np.full(100, 5.0))
    padded = with_one_bad_event(moments)
    assert delta_variance(moments, value_and_gradient(moments, "absolute")[1]) == 0
    error = delta_variance(padded, value_and_gradient(padded, "absolute")[1]) ** 0.5
    assert error == pytest.approx(1 / 500, rel=0.05)
    assert np.isnan(value_and_gradient(moments, "relative")[0])  # relative to nothing


# CUPED


def test_cuped_is_unbiased_and_saves_what_it_says() -> None:
    rng = np.random.default_rng(3)
    plain, adjusted, said = [], [], []
    for _ in range(300):
        t, c = moments_of(*users(rng, 1500, 1.05)), moments_of(*users(rng, 4000))
        plain.append(difference(t, c, "relative")[0])
        effect, variance = adjusted_difference(t, c, "relative")
        adjusted.append(effect)
        said.append(variance)
    assert np.mean(adjusted) == pytest.approx(np.log(1.05), abs=4 * np.std(adjusted) / 300**0.5)
    assert np.var(adjusted) < 0.85 * np.var(plain)
    assert np.mean(said) == pytest.approx(np.var(adjusted), rel=0.25)


def test_cuped_of_a_mean_with_one_covariate_is_the_textbooks() -> None:
    rng = np.random.default_rng(4)
    covariate = rng.normal(size=(2, 400))
    outcome = 0.8 * covariate + rng.normal(size=(2, 400))
    t, c = (moments_of(outcome[a], None, covariate[a][:, None]) for a in (0, 1))
    cov = sum(np.cov(covariate[a], outcome[a]) for a in (0, 1))
    theta = cov[0, 1] / cov[0, 0]
    rest = outcome - theta * covariate
    effect, variance = adjusted_difference(t, c, "absolute")
    assert effect == pytest.approx(rest[0].mean() - rest[1].mean())
    assert variance == pytest.approx(rest[0].var(ddof=1) / 400 + rest[1].var(ddof=1) / 400)


def test_useless_covariates_do_no_harm() -> None:
    rng = np.random.default_rng(5)
    clicks, requests, covariates = users(rng, 2000)
    doubled = np.concatenate([covariates, covariates[:, :1] * 3, np.ones((2000, 1))], axis=1)
    half = slice(0, 1000), slice(1000, 2000)
    few, many = (
        adjusted_difference(*(moments_of(clicks[h], requests[h], c[h]) for h in half), "relative")
        for c in (covariates, doubled)
    )
    np.testing.assert_allclose(many, few, rtol=1e-6)
    constant = adjusted_difference(*(moments_of(clicks[h], requests[h], np.zeros((1000, 1))) for h in half), "relative")
    np.testing.assert_allclose(constant, difference(*(moments_of(clicks[h], requests[h]) for h in half), "relative"))


def test_many_looks_in_one_call_are_the_looks_one_by_one() -> None:
    rng = np.random.default_rng(6)
    pairs = [tuple(moments_of(*users(rng, 200 + 50 * k)) for _ in range(2)) for k in range(3)]

    def stacked(arm: int) -> Moments:
        parts = [pair[arm] for pair in pairs]
        return Moments(
            np.stack([m.count for m in parts]),
            np.stack([m.sums_K for m in parts], axis=-1),
            np.stack([m.products_KK for m in parts], axis=-1),
        )

    together = adjusted_difference(stacked(0), stacked(1), "relative")
    apart = [adjusted_difference(*pair, "relative") for pair in pairs]
    np.testing.assert_allclose(together, np.array(apart).T)


# Always-valid intervals


def test_interval_is_the_published_one() -> None:
    """Waudby-Smith et al. 2021: mean ± σ √(2 (nρ² + 1) / (n²ρ²) · ln(√(nρ² + 1) / α))."""
    n, sigma, rho, alpha = 5000, 3.0, 0.02, 0.05
    published = sigma * np.sqrt(2 * (n * rho**2 + 1) / (n**2 * rho**2) * np.log(np.sqrt(n * rho**2 + 1) / alpha))
    assert half_width(np.float64(sigma**2 / n), rho * sigma, alpha) == pytest.approx(published)


def test_p_value_is_savvis_for_many_users() -> None:
    """savvi's t-test of a regression coefficient with prior precision φ: the same mixture with σ estimated."""
    rng = np.random.default_rng(7)
    n, phi = 4000, 50.0
    treated = np.arange(n) % 2
    outcome = 1 + 0.15 * treated + rng.normal(size=n)
    theirs = LinearRegression(0.05, 2, phi=phi)
    for y, x in zip(outcome, treated, strict=True):
        theirs.update(np.array([y, 1.0, x]))
    t, c = moments_of(outcome[treated == 1]), moments_of(outcome[treated == 0])
    effect, variance = difference(t, c, "absolute")
    tau = theirs.sigma() / phi**0.5
    assert p_value(effect, variance, tau) == pytest.approx(theirs.calculate_p_value()[1], rel=0.02)
    low, high = theirs.calculate_conf_int()[1]
    assert half_width(variance, tau, 0.05) == pytest.approx((high - low) / 2, rel=0.005)


@given(st.floats(0.01, 10), st.floats(0.01, 10), st.floats(0.001, 0.2))
def test_intervals_exclude_nothing_exactly_where_p_says_so(error: float, tau: float, alpha: float) -> None:
    variance = np.float64(error**2)
    width, one = half_width(variance, tau, alpha), one_sided_width(variance, tau, alpha)
    assert p_value(width, variance, tau) == pytest.approx(alpha)
    assert p_value(-width, variance, tau) == pytest.approx(alpha)
    assert one_sided_p_value(one, variance, tau) == pytest.approx(alpha)
    assert one_sided_p_value(-one, variance, tau) == 1
    assert one < width * 1.02
    assert width > norm.ppf(1 - alpha / 2) * error  # what being always valid costs


def test_one_sided_bound_is_close_above_the_exact_mixture() -> None:
    """The half-normal mixture of likelihood ratios, integrated."""
    for information in (0.1, 1.0, 10.0, 100.0):
        bound = float(one_sided_width(np.float64(1 / information), 1.0, 0.05))

        def mixed(theta: float, i: float = information, estimate: float = bound) -> float:
            return float(2 * norm.pdf(theta) * np.exp(theta * estimate * i - theta**2 * i / 2))

        assert 1 / 0.05 <= quad(mixed, 0, np.inf)[0] < 1.4 / 0.05


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_tau_is_the_best_one_where_a_fixed_test_would_look(alpha: float) -> None:
    variance = np.float64((0.02 / (norm.ppf(1 - alpha / 2) + norm.ppf(0.8))) ** 2)
    best = minimize_scalar(lambda t: half_width(variance, np.exp(t), alpha), bounds=(-8, 0), method="bounded")
    assert half_width(variance, mixture_scale(0.02, alpha), alpha) == pytest.approx(best.fun, rel=1e-6)
    assert mixture_scale(0.04, alpha) == pytest.approx(2 * mixture_scale(0.02, alpha))


def test_peeking_at_every_step_stays_within_alpha() -> None:
    rng = np.random.default_rng(8)
    walk = rng.normal(size=(2000, 2000)).cumsum(1)
    steps = np.arange(1, 2001)
    estimate, variance = walk / steps, 1 / steps
    two = (p_value(estimate, variance, 0.1) < 0.05).any(1).mean()
    one = (one_sided_p_value(estimate, variance, 0.1) < 0.05).any(1).mean()
    naive = (fixed_p_value(estimate[:, 30:], variance[30:]) < 0.05).any(1).mean()
    limit = 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5
    assert 0.01 < two < limit
    assert 0.01 < one < limit
    assert naive > 0.3


def test_nothing_known_says_nothing() -> None:
    for variance in (np.float64(0), np.float64(np.nan)):
        assert half_width(variance, 0.02, 0.05) == np.inf
        assert p_value(np.float64(1), variance, 0.02) == 1
        assert one_sided_p_value(np.float64(1), variance, 0.02) == 1
        assert fixed_p_value(np.float64(1), variance) == 1
    with pytest.raises(ConfigurationError, match="effect 0"):
        mixture_scale(0.0)


# Sample ratio, corrections


def test_sample_ratio_is_savvis() -> None:
    weights = np.array([0.75, 0.2, 0.05])
    theirs = Multinomial(0.05, weights, k=100)
    for users_A in ([400, 90, 30], [380, 120, 33], [70, 30, 6]):
        theirs.update(np.array(users_A))
        evidence = log_evidence(theirs.counts, weights)
        assert evidence == pytest.approx(float(np.log(theirs.odds)))
    names = ("champion", "a", "b")
    phase = Phase(dict(zip(names, weights, strict=True)), dict(zip(names, map(int, theirs.counts), strict=True)))
    assert sequential_p_value([phase]) == pytest.approx(min(float(theirs.calculate_p_value()), 1.0))
    counted = chisquare(theirs.counts, weights * theirs.counts.sum()).pvalue
    assert chi_square_p_value([phase]) == pytest.approx(counted)


def test_sample_ratio_over_phases() -> None:
    fine = Phase({"champion": 0.95, "a": 0.05}, {"champion": 9480, "a": 520})
    broken = Phase({"champion": 0.5, "a": 0.5}, {"champion": 51_000, "a": 49_000})
    assert sequential_p_value([]) == chi_square_p_value([]) == 1
    assert sequential_p_value([fine]) == 1
    assert sequential_p_value([fine, broken]) < 1e-3
    assert chi_square_p_value([fine, broken]) < 1e-6
    stray = Phase({"champion": 1.0, "a": 0.0}, {"champion": 10, "a": 1})
    assert sequential_p_value([stray]) == chi_square_p_value([stray]) == 0
    empty = Phase({"champion": 1.0, "a": 0.0}, {"champion": 10})
    assert sequential_p_value([empty]) == chi_square_p_value([empty]) == 1


def test_watching_the_sample_ratio_stays_within_alpha() -> None:
    rng = np.random.default_rng(9)
    for weight in (0.5, 0.05):
        treated = (rng.random((500, 2000)) < weight).cumsum(1)
        weights = np.array([1 - weight, weight])
        alarms = sum(
            any(log_evidence(np.array([n - k, k]), weights) > np.log(20) for n, k in zip(at, row[at - 1], strict=True))
            for row in treated
            for at in [np.arange(20, 2001, 20)]
        )
        assert alarms / 500 < 0.05 + 3 * (0.05 * 0.95 / 500) ** 0.5


def test_holm() -> None:
    assert holm([]) == []
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.01]) == pytest.approx([0.5, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
