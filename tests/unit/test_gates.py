"""Every gate passes what it should and names the figure that breaks its bound."""

from __future__ import annotations

import pytest

from degre_prod.config import GatesConfig
from degre_prod.evaluation.drift import Drift
from degre_prod.evaluation.off_policy import Estimate
from orchestration.retrain.gates import (
    FeedbackRate,
    Gate,
    ListFigures,
    bundle_gate,
    data_gate,
    drift_gate,
    evaluator_gate,
    feedback_gate,
    value_gate,
)

LIMITS = GatesConfig()
SURE, UNSURE = 1000.0, 20.0


def difference(value: float, samples: float = SURE) -> Estimate:
    return Estimate(value, value - 0.01, value + 0.01, samples)


def rate(mean: float, lists: int = 1000) -> dict[str, FeedbackRate]:
    return {"click": FeedbackRate(mean, mean, lists)}


def lists(latency_ms: float = 1.0, coverage: float = 0.5, diversity: float = 1.0) -> ListFigures:
    return ListFigures(latency_ms, coverage, diversity)


@pytest.mark.parametrize(
    ("gate", "passed", "says"),
    [
        (data_gate(5000, {"shown_twice": 10}, LIMITS, 0.05), True, "hold"),
        (data_gate(500, {}, LIMITS, 0.05), False, "500 usable requests, at least 1,000"),
        (data_gate(5000, {"shown_twice": 4990, "null_id": 10}, LIMITS, 0.05), False, "mostly shown_twice"),
        (drift_gate([Drift("user.age", 0.2, 0.1, 0.0, 0.05)], LIMITS), True, "hold"),
        (drift_gate([Drift("user.age", 0.9, 0.4, 0.0, 0.0)], LIMITS), False, r"user.age has PSI 0.90, KS 0.40"),
        (drift_gate([Drift("item.kind", 9.0, None, 0.0, 1.0)], LIMITS), False, "item.kind is missing in 100.0%"),
        (
            drift_gate([Drift("user.age", 0.9, 0.4, 0.0, 0.0, psi_by_chance=1.0, ks_by_chance=0.5)], LIMITS),
            True,
            "hold",
        ),
        (drift_gate([Drift("user.age", 0.4, 0.35, 0.0, 0.0)], LIMITS), False, "user.age has KS 0.35"),
        (drift_gate([Drift("item.hook", 0.1, 0.1, 0.0, 0.0, constant=True)], LIMITS), False, "one value in all"),
        (data_gate(500, {}, LIMITS, 0.05, earlier=600), True, "hold"),
        (feedback_gate(rate(0.6), rate(0.9), LIMITS), True, "hold"),
        (feedback_gate(rate(0.6), rate(3.4), LIMITS), False, "click: 3.400 a list"),
        (feedback_gate(rate(0.6), rate(0.1), LIMITS), False, "click: 0.100 a list"),
        (feedback_gate(rate(0.0), rate(0.0), LIMITS), True, "hold"),
        (feedback_gate(rate(0.0), rate(0.5), LIMITS), False, "click: 0.500 a list"),
        (feedback_gate(rate(0.01, 5000), rate(0.0, 300), LIMITS), True, "hold"),  # three expected, chance
        (feedback_gate(rate(0.01, 5000), rate(0.0, 50_000), LIMITS), False, "click: 0.000 a list"),
        (evaluator_gate(0.01, 0.7, 0.65, LIMITS), True, "hold"),
        (evaluator_gate(0.01, 0.7, None, LIMITS), True, "hold"),
        (evaluator_gate(0.01, None, None, LIMITS), False, "too little held-out feedback"),
        (evaluator_gate(0.2, 0.7, 0.65, LIMITS), False, "calibration error 0.200"),
        (evaluator_gate(0.01, 0.5, 0.65, LIMITS), False, "AUC 0.500 on held-out"),
        (evaluator_gate(0.01, 0.7, 0.3, LIMITS), False, "are its labels right"),
        (value_gate(difference(0.02), 1.0, {"snips": difference(0.01)}, LIMITS), True, "hold"),
        (value_gate(difference(-0.005), 1.0, {}, LIMITS), True, "hold"),
        (value_gate(difference(-0.05), 1.0, {}, LIMITS), False, "the judge puts"),
        (value_gate(difference(0.02), 1.0, {"snips": difference(-0.3)}, LIMITS), False, "snips puts"),
        (value_gate(difference(0.02), 1.0, {"ips": difference(-0.3, UNSURE)}, LIMITS), True, "ips not estimable (20"),
        (value_gate(difference(0.02), 1.0, {}, LIMITS), True, "nothing logged with propensities"),
        (value_gate(Estimate(-0.02, -0.05, 0.01, 300), 1.0, {}, LIMITS), True, "hold"),  # more than allowed, by chance
        (value_gate(difference(-0.05), 1.0, {}, LIMITS, champion="the upstream order"), False, "the upstream order's"),
        (bundle_gate(0, lists(), None, LIMITS), True, "hold"),
        (bundle_gate(0, lists(1.2, 0.5), lists(1.0, 0.6), LIMITS), True, "hold"),
        (bundle_gate(1, lists(), lists(), LIMITS), False, "1 lists break"),
        (bundle_gate(0, lists(latency_ms=2.0), lists(), LIMITS), False, "2.00 ms a list"),
        (bundle_gate(0, lists(coverage=0.1), lists(), LIMITS), False, "lists show 10.0%"),
        (bundle_gate(0, lists(diversity=0.3), lists(), LIMITS), False, "differ by 0.30"),
    ],
)
def test_gates(gate: Gate, passed: bool, says: str) -> None:
    assert gate.passed is passed
    assert says in gate.reason
    assert gate.figures
