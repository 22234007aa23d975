"""Dense targets against METHOD §4 written out slowly."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from degre_prod.config import GeneratorConfig
from degre_prod.distill.dataset import dense_targets, load_targets
from degre_prod.distill.targets import MARGIN, list_weights, soft_labels, step_values
from degre_prod.errors import TrainingError
from degre_prod.models.generator import NEVER
from degre_prod.training.generator import step_loss

NAN = float("nan")
values = st.floats(-3, 3, width=32)


def slow_values(D: list[float], Q: list[float], last: bool) -> list[float]:
    """METHOD §4 for one prefix: D and Q with NaN for infeasible and for not backed up."""
    free = [v for v in range(len(D)) if not math.isnan(D[v])]
    known = [v for v in free if not math.isnan(Q[v])]
    out = [NAN] * len(D)
    for v in free:
        if last:
            out[v] = D[v]
        elif v in known:
            out[v] = Q[v]
        elif known:
            delta = min(Q[w] - D[w] for w in known)
            lo = min(Q[w] for w in known)
            out[v] = min(D[v] + delta, lo - 0.02)
        else:
            out[v] = D[v]
    return out


def slow_softmax(Q: list[float], tau: float) -> list[float]:
    free = [v for v in range(len(Q)) if not math.isnan(Q[v])]
    if len(free) < 2:
        return [0.0] * len(Q)
    mean = sum(Q[v] for v in free) / len(free)
    sd = math.sqrt(sum((Q[v] - mean) ** 2 for v in free) / len(free))
    e = {v: math.exp((Q[v] - mean) / max(sd, 1e-4) / tau) for v in free}
    return [e[v] / sum(e.values()) if v in e else 0.0 for v in range(len(Q))]


@st.composite
def prefixes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """one_step and backed_up of (2 lists, 3 slots, 5 candidates) with holes; nothing backed up where infeasible."""
    shape = (2, 3, 5)
    D = draw(arrays(np.float32, shape, elements=values))
    Q = draw(arrays(np.float32, shape, elements=values))
    D[draw(arrays(bool, shape))] = NAN
    Q[np.isnan(D) | draw(arrays(bool, shape))] = NAN
    return D, Q


@given(prefixes(), st.floats(0.05, 2))
def test_backed_up_targets_follow_the_method(prefix: tuple[np.ndarray, np.ndarray], tau: float) -> None:
    D, Q = prefix
    got = step_values(D, Q, form="backed_up")
    q, choice = soft_labels(got, tau)
    for x in range(2):
        for t in range(3):
            slow = slow_values(D[x, t].tolist(), Q[x, t].tolist(), last=t == 2)
            np.testing.assert_allclose(got[x, t], slow, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(q[x, t], slow_softmax(got[x, t].tolist(), tau), rtol=1e-6, atol=1e-9)
            assert choice[x, t] == ((~np.isnan(D[x, t])).sum() >= 2)


@given(prefixes())
def test_soft_labels_sum_to_one_over_feasible_items(prefix: tuple[np.ndarray, np.ndarray]) -> None:
    D, Q = prefix
    q, choice = soft_labels(step_values(D, Q, form="backed_up"), 0.3)
    np.testing.assert_allclose(q.sum(-1), np.where(choice, 1.0, 0.0), atol=1e-9)
    assert (q[np.isnan(D)] == 0).all()
    assert np.isfinite(q).all()


@given(prefixes())
def test_one_step_targets_are_the_one_step_values(prefix: tuple[np.ndarray, np.ndarray]) -> None:
    D, Q = prefix
    np.testing.assert_array_equal(step_values(D, Q, form="one_step"), D.astype(np.float64))


def test_an_item_without_a_leaf_stays_below_every_item_that_has_one() -> None:
    D = np.array([[[0.9, 0.5, 0.1, NAN]], [[0.9, 0.5, 0.1, NAN]]])[:, [0, 0]]
    Q = np.array([[[NAN, 1.0, 2.0, NAN]], [[NAN, 1.0, 2.0, NAN]]])[:, [0, 0]]
    got = step_values(D, Q, form="backed_up")
    assert got[0, 0].tolist()[:3] == [pytest.approx(1.0 - MARGIN), 1.0, 2.0]  # 0.9 + 0.5 would beat the leaf of 1.0
    np.testing.assert_array_equal(got[:, 1], D[:, 1])  # at the last slot Q = U


def test_nearly_equal_values_do_not_become_certain() -> None:
    q, _ = soft_labels(np.array([[1.0, 1.0 + 1e-9, NAN]]), 0.3)
    np.testing.assert_allclose(q, [[0.5, 0.5, 0.0]], atol=1e-4)


def test_list_weights_are_a_softmax_and_a_missing_list_weighs_nothing() -> None:
    w = list_weights(np.array([[1.0, 0.9, -np.inf], [2.0, -np.inf, -np.inf]]), 0.1)
    e = math.exp(-1)
    np.testing.assert_allclose(w, [[1 / (1 + e), e / (1 + e), 0], [1, 0, 0]])


def test_the_loss_of_a_step_is_cross_entropy_and_kl() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0, NEVER]] * 4)
    p = torch.softmax(logits[0, :3], 0).tolist()
    q = torch.tensor([[0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0] * 4, [0.5, 0.5, 0.0, 0.0]])
    labels = torch.tensor([0, 2, 1, -1])
    got = step_loss(logits, labels, q, 0.7).tolist()
    kl = sum(x * math.log(x / y) for x, y in zip((0.5, 0.25, 0.25), p, strict=True))
    assert got == [
        pytest.approx(-math.log(p[0]) + 0.7 * kl, rel=1e-5),
        pytest.approx(-math.log(p[2]) + 0.7 * -math.log(p[0]), rel=1e-5),
        pytest.approx(-math.log(p[1]), rel=1e-5),  # no KL
        0.0,  # no label, no loss at all
    ]


def shard() -> dict[str, np.ndarray]:
    """One request, two kept lists of two slots out of three candidates."""
    one_step = np.array([[[[1.0, 0.5, 0.2], [NAN, 1.2, 1.1]], [[1.0, 0.5, 0.2], [1.3, NAN, 0.7]]]])
    backed_up = np.where(np.isnan(one_step), NAN, one_step + 0.2)
    return {
        "request": np.array([7]),
        "lists": np.array([[[0, 1], [1, 0]]], np.int32),
        "utility": np.array([[1.3, 1.2]], np.float32),
        "one_step": one_step.astype(np.float32),
        "backed_up": backed_up.astype(np.float32),
    }


def test_a_shard_becomes_teacher_forced_samples() -> None:
    got = dense_targets(shard(), GeneratorConfig(tau_w=0.1))
    assert got.request.tolist() == [7]
    assert got.inputs.tolist() == got.labels.tolist() == [[[0, 1], [1, 0]]]
    e = math.exp(-1)
    np.testing.assert_allclose(got.weight, [[1 / (1 + e), e / (1 + e)]], rtol=1e-5)
    np.testing.assert_allclose(got.soft.sum(-1), [[[1, 1], [1, 1]]], rtol=1e-6)
    assert got.soft.dtype == got.weight.dtype == np.float32


def test_mined_shards_are_read_in_order_and_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="no mined shard"):
        load_targets(tmp_path, GeneratorConfig())
    for i in (1, 0):
        np.savez(tmp_path / f"shard-{i:05d}.npz", **(shard() | {"request": np.array([i])}))
    assert load_targets(tmp_path, GeneratorConfig()).request.tolist() == [0, 1]
