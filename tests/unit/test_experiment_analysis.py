"""One look at an experiment: verdicts, guardrails, what is said too early; error rates by simulation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from degre_prod.errors import ConfigurationError, DataError
from degre_prod.experiments.analysis import analyse
from degre_prod.experiments.guardrails import breach_p_value, harm_of, ok_p_value
from degre_prod.experiments.moments import Moments, moments_of, no_moments
from degre_prod.experiments.plan import AnalysisPlan, Guardrail, Primary
from degre_prod.experiments.srm import Phase
from orchestration.bench.rollout_plot import draw_decisions
from orchestration.bench.rollout_stats import WAYS, Setting, bench_rollout_stats, table
from orchestration.bench.rollout_users import draw_sessions, moments_by_look
from orchestration.report.experiment_plot import effect_over_time

ERRORS = Guardrail("errors", 0.005, "absolute")
PLAN = AnalysisPlan("champion", Primary("ctr", 0.05), (ERRORS,), min_users=500)
Arm = dict[str, Moments]


def arm(users: int, lift: float = 1.0, error: float = 0.01, seed: int = 0) -> Arm:
    rng = np.random.default_rng((seed, users, round(lift * 1000), round(error * 1e6)))
    requests = 1 + rng.poisson(5, size=users)
    taste = rng.gamma(9, 0.1, size=users)
    clicks, errors = rng.poisson(requests * taste * lift), rng.binomial(requests, error)
    before = rng.poisson(10, size=users)
    covariates = np.stack([rng.poisson(before * taste), before], axis=1)
    return {"ctr": moments_of(clicks, requests, covariates), "errors": moments_of(errors, requests)}


def look(challenger: Arm, plan: AnalysisPlan = PLAN, champion: Arm | None = None, phases: tuple[Phase, ...] = ()):  # type: ignore[no-untyped-def]
    return analyse({"champion": champion or arm(20_000, seed=1), "challenger": challenger}, plan, phases)


@pytest.mark.parametrize(
    ("challenger", "verdict", "reason"),
    [
        (arm(20_000, 1.05), "ship", "ctr is better"),
        (arm(20_000), "no_harm", "ctr is undecided"),
        (arm(20_000, 0.95), "harm", "ctr is worse"),
        (arm(20_000, 1.05, 0.03), "harm", "errors is beyond its bound 0.005"),
        (arm(700), "undecided", "not ruled out for errors"),
        (arm(300, 1.05), "too_early", "too few users for ctr"),
        (arm(60), "too_early", "too few users for ctr, errors"),
        (arm(120, 1.0, 0.5), "harm", "errors is beyond"),  # guardrails speak before the primary metric may
        ({}, "too_early", "too few users"),
    ],
)
def test_verdicts(challenger: Arm, verdict: str, reason: str) -> None:
    result = look(challenger).arms[0]
    assert (result.verdict, reason in result.reason) == (verdict, True), result


def test_an_effect_downwards_may_be_the_better_one() -> None:
    plan = replace(PLAN, primary=Primary("ctr", 0.05, better="down"))
    assert look(arm(20_000, 0.95), plan).arms[0].verdict == "ship"
    assert look(arm(20_000, 1.05), plan).arms[0].verdict == "harm"


def test_a_mismatch_goes_before_everything() -> None:
    phase = Phase({"champion": 0.5, "challenger": 0.5}, {"champion": 20_000, "challenger": 19_000})
    result = look(arm(20_000, 1.05), phases=(phase,))
    assert result.srm.mismatch
    assert result.arms[0].verdict == "mismatch"
    fine = Phase({"champion": 0.5, "challenger": 0.5}, {"champion": 20_000, "challenger": 19_900})
    assert look(arm(20_000, 1.05), phases=(fine,)).arms[0].verdict == "ship"


def test_covariates_narrow_the_interval() -> None:
    primary = look(arm(20_000, 1.05)).arms[0].primary
    assert primary.variance_reduction > 0.1
    assert primary.high - primary.low < primary.plain_high - primary.plain_low
    assert primary.low < 0.05 < primary.high


def test_before_enough_users_nothing_is_said() -> None:
    below, above = (look(arm(n, 1.5)).arms[0].primary for n in (499, 500))
    assert (below.low, below.high, below.p_value, below.status) == (-np.inf, np.inf, 1.0, "too_early")
    assert above.status == "better"


def test_harm_is_corrected_over_guardrails_arms_and_stages() -> None:
    worse = arm(20_000, 1.0, 0.0178)
    alone = look(worse).arms[0].guardrails[0]
    assert alone.status == "breach"
    crowd = tuple(Guardrail("errors", 0.5 + k / 100, "ceiling") for k in range(30))
    crowded = look(worse, replace(PLAN, guardrails=(ERRORS, *crowd))).arms[0].guardrails[0]
    assert crowded.p_breach == pytest.approx(16 * alone.p_breach, rel=0.1)  # 32 harms instead of 2
    staged = look(worse, replace(PLAN, stages=1_000_000)).arms[0].guardrails[0]
    assert staged.status != "breach"
    assert staged.lower < alone.lower
    both = analyse({"champion": arm(20_000, seed=1), "challenger": worse, "other": arm(20_000, seed=2)}, PLAN)
    assert both.arms[0].guardrails[0].lower < alone.lower
    assert both.arms[0].guardrails[0].upper > alone.upper


def test_guardrails_of_every_kind() -> None:
    def status(guardrail: Guardrail, challenger: Arm) -> str:
        return str(look(challenger, replace(PLAN, guardrails=(guardrail,))).arms[0].guardrails[0].status)

    same, fewer = arm(20_000), arm(20_000, 0.8)
    assert status(Guardrail("ctr", 0.1, "relative", "down"), same) == "ok"
    assert status(Guardrail("ctr", 0.1, "relative", "down"), fewer) == "breach"
    assert status(Guardrail("ctr", 0.1, "relative", "up"), fewer) == "ok"
    assert status(Guardrail("errors", 0.02, "ceiling"), same) == "ok"
    assert status(Guardrail("errors", 0.005, "ceiling"), same) == "breach"
    assert status(Guardrail("errors", 0.0101, "ceiling"), same) == "undecided"
    fall = look(fewer, replace(PLAN, guardrails=(Guardrail("ctr", 0.1, "relative", "down"),))).arms[0].guardrails[0]
    assert fall.harm == pytest.approx(0.2, abs=0.03)  # a fall by 20 %
    assert fall.lower < fall.harm < fall.upper


def test_a_clean_share_is_ok_only_after_enough_requests() -> None:
    clean = {"errors": moments_of(np.zeros(100), np.full(100, 5.0))}
    more = {"errors": moments_of(np.zeros(20_000), np.full(20_000, 5.0))}
    assert look({**arm(200), **clean}, champion={**arm(200), **clean}).arms[0].guardrails[0].status == "undecided"
    assert look({**arm(200), **more}, champion={**arm(200), **more}).arms[0].guardrails[0].status == "ok"


def test_at_the_bound_guardrails_err_within_alpha_at_all_looks() -> None:
    """Rare events in bursts, a small treatment arm, harm exactly at the bound: neither answer more often than alpha."""
    rng = np.random.default_rng(11)
    looks, breaches, oks = np.arange(100, 4001, 50), [], []
    for _ in range(250):
        arms = []
        for users, share in ((4000, 0.015), (20_000, 0.01)):
            requests = 1 + rng.poisson(3 * np.exp(rng.normal(size=users)))
            events = rng.binomial(requests, np.minimum(share * rng.gamma(0.5, 2, size=users), 1))
            rows = np.stack([events, requests]).astype(float)[:, : users // len(looks) * len(looks)]
            ends = (looks * users // 4000) - 1
            products = np.stack([[np.cumsum(a * b)[ends.clip(max=rows.shape[1] - 1)] for b in rows] for a in rows])
            arms.append(
                Moments((ends + 1).astype(float), rows.cumsum(1)[:, ends.clip(max=rows.shape[1] - 1)], products)
            )
        harm = harm_of(ERRORS, *arms, alpha=0.05, power=0.8)
        breaches.append((breach_p_value(harm) < 0.05).any())
        oks.append((ok_p_value(harm) < 0.05).any())
    limit = 0.05 + 3 * (0.05 * 0.95 / 250) ** 0.5
    assert np.mean(breaches) < limit
    assert np.mean(oks) < limit


def test_results_are_json_and_text() -> None:
    for challenger in (arm(20_000, 1.05), {}):
        results = look(challenger)
        document = json.loads(json.dumps(results.as_dict(), allow_nan=False))
        assert document["arms"][0]["verdict"] == results.arms[0].verdict
        text = results.table()
        assert "challenger" in text
        assert "errors (harm)" in text
        assert ("not yet" in text) == (challenger == {})


def test_what_is_wrong_is_named() -> None:
    with pytest.raises(DataError, match="need the control champion"):
        analyse({"challenger": {}}, PLAN)
    with pytest.raises(DataError, match="and a treatment"):
        analyse({"champion": {"ctr": no_moments()}}, PLAN)
    for broken in ({"alpha": 0.0}, {"min_users": 1}, {"stages": 0}):
        with pytest.raises(ConfigurationError, match=next(iter(broken))):
            replace(PLAN, **broken)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="smallest effect"):
        Primary("ctr", 2)
    with pytest.raises(ConfigurationError, match="bound of errors"):
        Guardrail("errors", 0)
    with pytest.raises(ConfigurationError, match="ceiling is broken upwards"):
        Guardrail("errors", 0.1, "ceiling", "down")


# The simulation


def test_simulated_moments_are_those_of_the_rows_so_far() -> None:
    sessions = draw_sessions(np.random.default_rng(0), 300, 20, 0.1)
    at = 11
    for arm_index, kept in enumerate(moments_by_look(sessions, 20)):
        seen = np.flatnonzero((sessions.look_E <= at) & (sessions.arm_U[sessions.user_E] == arm_index))
        last = {int(sessions.user_E[e]): e for e in seen}  # sessions of a user are in order of time
        rows = sessions.rows_EK[list(last.values())]
        whole = moments_of(rows[:, 0], rows[:, 1], rows[:, 2:])
        assert kept.count[at] == whole.count
        np.testing.assert_allclose(kept.sums_K[:, at], whole.sums_K)
        np.testing.assert_allclose(kept.products_KK[:, :, at], whole.products_KK)


def test_bench_tells_honest_ways_from_peeking(tmp_path: Path) -> None:
    setting = Setting(150, 30, users=6000, looks=100, effect=0.1, min_users=100)
    document, curves = bench_rollout_stats(setting)
    few = Setting(3, 2, users=1000, looks=10, effect=0.1, min_users=10)
    assert bench_rollout_stats(few) == bench_rollout_stats(few)
    limit = 0.05 + 3 * (0.05 * 0.95 / 150) ** 0.5
    for way in ("sequential", "sequential_cuped", "fixed_horizon"):
        assert document[way]["aa_false_alarm_rate"] < limit
        assert document[way]["power"] > 0.8
    assert document["naive_peeking"]["aa_false_alarm_rate"] > 0.2
    assert document["sequential_cuped"]["mean_samples"] < document["sequential"]["mean_samples"]
    assert document["aa_false_alarm_rate"] == document["sequential"]["aa_false_alarm_rate"]
    json.dumps([document, curves], allow_nan=False)
    assert all(way in table(document) for way in WAYS)
    draw_decisions(document, curves, tmp_path / "plot")
    assert {p.name for p in tmp_path.iterdir()} == {"plot.svg", "plot.png"}
    with pytest.raises(ConfigurationError, match="at least 1, 1, 2 and 4000"):
        Setting(users=3999)


def test_plot_over_time() -> None:
    def span(users: int) -> tuple[float, float, float, float]:
        primary = look(arm(users, 1.05)).arms[0].primary
        return users / 1000, primary.effect, primary.low, primary.high

    unknown = (0.0, float("nan"), -float("inf"), float("inf"))
    drawn = effect_over_time({"5%": [unknown, span(1000), span(5000)], "25%": [span(20000)], "50%": []}, "clicks", 0.05)
    empty = effect_over_time({"5%": [unknown]}, "clicks", 0.05)
    assert drawn.count('id="FillBetween') == 2  # one for each stage that knows something
    assert "too few users yet" not in drawn
    assert "FillBetween" not in empty
    assert "too few users yet" in empty
