"""Every gate passes what it should and names the figure that breaks its bound."""

from __future__ import annotations

import pytest

from degre_prod.config import GatesConfig
from degre_prod.evaluation.drift import Drift
from degre_prod.evaluation.off_policy import Estimate
from orchestration.retrain.gates import (
    Gate,
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


@pytest.mark.parametrize(
    ("gate", "passed", "says"),
    [
        (data_gate(5000, {"shown_twice": 10}, LIMITS, 0.05), True, "hold"),
        (data_gate(500, {}, LIMITS, 0.05), False, "500 usable requests, at least 1,000"),
        (data_gate(5000, {"shown_twice": 4990, "null_id": 10}, LIMITS, 0.05), False, "mostly shown_twice"),
        (drift_gate([Drift("user.age", 0.2, 0.1, 0.0, 0.05)], LIMITS), True, "hold"),
        (drift_gate([Drift("user.age", 0.9, 0.4, 0.0, 0.0)], LIMITS), False, r"user.age has PSI 0.90, KS 0.40"),
        (drift_gate([Drift("item.kind", 9.0, None, 0.0, 1.0)], LIMITS), False, "item.kind is missing in 100.0%"),
        (feedback_gate({"click": 0.6}, {"click": 0.9}, LIMITS), True, "hold"),
        (feedback_gate({"click": 0.6}, {"click": 3.4}, LIMITS), False, "click: 3.400 a list"),
        (feedback_gate({"click": 0.6}, {"click": 0.1}, LIMITS), False, "click: 0.100 a list"),
        (feedback_gate({"order": 0.0}, {"order": 0.0}, LIMITS), True, "hold"),
        (evaluator_gate(0.01, 0.7, 0.65, LIMITS), True, "hold"),
        (evaluator_gate(0.01, 0.7, None, LIMITS), True, "hold"),
        (evaluator_gate(0.2, 0.7, 0.65, LIMITS), False, "calibration error 0.200"),
        (evaluator_gate(0.01, 0.5, 0.65, LIMITS), False, "AUC 0.500 on held-out"),
        (evaluator_gate(0.01, 0.7, 0.3, LIMITS), False, "are its labels right"),
        (value_gate(difference(0.02), 1.0, {"snips": difference(0.01)}, LIMITS), True, "hold"),
        (value_gate(difference(-0.005), 1.0, {}, LIMITS), True, "hold"),
        (value_gate(difference(-0.05), 1.0, {}, LIMITS), False, "the judge values"),
        (value_gate(difference(0.02), 1.0, {"snips": difference(-0.3)}, LIMITS), False, "snips puts"),
        (value_gate(difference(0.02), 1.0, {"ips": difference(-0.3, UNSURE)}, LIMITS), True, "not estimable"),
        (bundle_gate(0, 1.0, None, 0.5, None, LIMITS), True, "hold"),
        (bundle_gate(0, 1.2, 1.0, 0.5, 0.6, LIMITS), True, "hold"),
        (bundle_gate(1, 1.0, 1.0, 0.5, 0.5, LIMITS), False, "1 lists break"),
        (bundle_gate(0, 2.0, 1.0, 0.5, 0.5, LIMITS), False, "2.00 ms a list"),
        (bundle_gate(0, 1.0, 1.0, 0.1, 0.5, LIMITS), False, "lists show 10.0%"),
    ],
)
def test_gates(gate: Gate, passed: bool, says: str) -> None:
    assert gate.passed is passed
    assert says in gate.reason
    assert gate.figures or gate.name == "drift"
