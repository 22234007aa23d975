"""The two small graphs: with no rule the list of the one-call graph, with rules that of PyTorch under the same mask."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_greedy_graph import CATEGORIES, NUMBERS, L, encoded, model

from degre_prod.bundle.decoder import Decoded, Reasons, _by_steps
from degre_prod.constraints.check import check_list
from degre_prod.constraints.mask import feasible_next, feasible_requests
from degre_prod.constraints.rules import Rules, compile_rules, unconstrained
from degre_prod.constraints.spec import Constraints, GapRule, QuotaRule
from degre_prod.encoding.encoder import Encoded, Layout
from degre_prod.errors import BundleError, ConstraintError
from degre_prod.models.decoders import DecoderForm
from degre_prod.models.generator import Generator

LAYOUTS = pytest.mark.parametrize("layout", [NUMBERS, CATEGORIES], ids=["numbers", "categories"])
DECODERS = pytest.mark.parametrize("form", ["gru", "attention"])
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


def random_rules(C: int, rng: np.random.Generator, **fixed: Any) -> Rules:
    """Some that a list can obey, of every sort."""
    while True:
        colours, brands = rng.choice(["red", "blue", "green"], C).tolist(), rng.choice(["x", "y", None], C).tolist()
        ids = rng.permutation(C).tolist()
        length = min(L, C)
        constraints = Constraints(
            exclude=tuple(ids[: rng.integers(0, 1 + C // 4)]),
            must_include=tuple(ids[-1 : -1 - rng.integers(0, 2) : -1]),
            pinned={int(rng.integers(length)): ids[-2]} if rng.random() < 0.5 and C > 2 else {},
            gap=GapRule(by="colour", slots=2) if rng.random() < 0.5 else None,
            quotas=(QuotaRule(by="brand", value="x", min=1, max=2),) if rng.random() < 0.5 else (),
            **fixed,
        )
        allowed = C - len(constraints.exclude)
        rules = compile_rules(constraints, range(C), {"colour": colours, "brand": brands}, min(length, allowed))
        if feasible_requests(rules)[0]:
            return rules


def eager(generator: Generator, arrays: Encoded, rules: Rules) -> Decoded:
    """The generator slot by slot in PyTorch, asking the same mask; ties by prior rank."""
    C = len(arrays["prior_rank_C"])
    batch = {name.rsplit("_", 1)[0]: torch.from_numpy(a)[None] for name, a in arrays.items()}
    rank = arrays["prior_rank_C"]
    order: list[int] = []
    logits, margins, runner_up = [], [], []
    with torch.inference_mode():
        z, x, state = generator.encode(batch | {"mask": torch.ones(1, C, dtype=torch.bool)})
        keys = generator.key(z)[0]
        for _ in range(rules.length):
            h, state = generator.decoder.step(x, state)
            scores = (keys @ generator.query(h)[0] / generator.spec.width**0.5).numpy()
            feasible = np.flatnonzero(feasible_next(rules, np.array(order, np.int64).reshape(1, 1, -1))[0, 0])
            best, *others = sorted(feasible.tolist(), key=lambda c: (-scores[c], rank[c]))
            order.append(best)
            logits.append(scores[best])
            margins.append(scores[best] - scores[others[0]] if others else np.inf)
            runner_up.append(others[0] if others else -1)
            x = z[:, best]
    reasons = Reasons(np.array(margins), np.array(logits), np.array(runner_up))
    return Decoded(np.array(order), lambda: reasons)


def assert_same(one: Decoded, other: Decoded) -> None:
    assert one.order.tolist() == other.order.tolist()
    np.testing.assert_allclose(one.margins, other.margins, **TOLERANCE)
    assert one.logits is not None
    assert other.logits is not None
    np.testing.assert_allclose(one.logits, other.logits, **TOLERANCE)
    assert one.runner_up is not None
    assert other.runner_up is not None
    assert one.runner_up.tolist() == other.runner_up.tolist()


@LAYOUTS
@DECODERS
def test_without_rules_both_ways_give_the_same(layout: Layout, form: DecoderForm, tmp_path: Path) -> None:
    _, decoder = model(layout, tmp_path, decoder=form)
    assert decoder.encode is not None
    assert decoder.step is not None
    rng = np.random.default_rng(1)
    for C in (1, 2, 3, 4, 5, 30, 100) * 4:
        arrays = encoded(layout, C, rng)
        free = unconstrained(np.ones((1, C), bool), min(L, C))
        assert_same(_by_steps(decoder.encode, decoder.step, arrays, free), decoder.decode(arrays, L))


@LAYOUTS
@DECODERS
def test_under_rules_the_lists_are_those_of_pytorch(layout: Layout, form: DecoderForm, tmp_path: Path) -> None:
    generator, decoder = model(layout, tmp_path, decoder=form)
    rng = np.random.default_rng(2)
    changed = 0
    for _ in range(100):
        C = int(rng.integers(6, 40))
        arrays, rules = encoded(layout, C, rng), random_rules(C, rng)
        decoded = decoder.decode(arrays, L, rules)
        check_list(rules, decoded.order)
        assert_same(decoded, eager(generator, arrays, rules))
        changed += decoded.order.tolist() != decoder.decode(arrays, rules.length).order.tolist()
    assert changed > 30  # or the rules bound nothing


@DECODERS
def test_exclusions_take_one_call_and_change_nothing_else(form: DecoderForm, tmp_path: Path) -> None:
    """What is excluded is seen by the model all the same, as by the mask of training, and never the runner-up."""
    generator, decoder = model(NUMBERS, tmp_path, decoder=form)
    old = replace(decoder, encode=None, step=None)
    rng = np.random.default_rng(3)
    for C in (2, 5, 30):
        arrays = encoded(NUMBERS, C, rng)
        excluded = tuple(rng.permutation(C)[: C // 2].tolist())
        rules = compile_rules(Constraints(exclude=excluded), range(C), {}, min(L, C - len(excluded)))
        decoded = decoder.decode(arrays, L, rules)
        assert_same(decoded, eager(generator, arrays, rules))
        assert not set(decoded.order) & set(excluded)
    with pytest.raises(BundleError, match="follows no rules"):
        old.decode(arrays, L, rules)


@LAYOUTS
@DECODERS
def test_logits_margins_and_runners_up_are_those_of_teacher_forcing(
    layout: Layout, form: DecoderForm, tmp_path: Path
) -> None:
    """What `explain` tells, with and without rules: the answered list fed to the trained model as training feeds it."""
    generator, decoder = model(layout, tmp_path, decoder=form)
    rng = np.random.default_rng(4)
    for n in range(60):
        C = int(rng.integers(6, 40))
        arrays = encoded(layout, C, rng)
        rules = random_rules(C, rng) if n % 2 else None
        decoded = decoder.decode(arrays, L, rules)
        batch = {name.rsplit("_", 1)[0]: torch.from_numpy(a)[None] for name, a in arrays.items()}
        batch["mask"] = torch.ones(1, C, dtype=torch.bool)
        feasible = None
        if rules is not None:
            slots = [feasible_next(rules, decoded.order[None, None, :t])[0, 0] for t in range(rules.length)]
            feasible = torch.from_numpy(np.stack(slots))[None, None]
        lists = torch.from_numpy(decoded.order)[None, None]
        with torch.inference_mode():
            logits_TC = generator.teacher_forced(batch, lists, feasible)[0, 0].numpy()
        assert decoded.logits is not None
        assert decoded.runner_up is not None
        for t, chosen in enumerate(decoded.order):
            best, second = np.argsort(-logits_TC[t], kind="stable")[:2]
            assert chosen == best
            np.testing.assert_allclose(decoded.logits[t], logits_TC[t, best], **TOLERANCE)
            if logits_TC[t, second] < -1e8:
                assert (decoded.runner_up[t], decoded.margins[t]) == (-1, np.inf)
            else:
                assert decoded.runner_up[t] == second
                margin = logits_TC[t, best] - logits_TC[t, second]
                np.testing.assert_allclose(decoded.margins[t], margin, **TOLERANCE)


def test_equal_candidates_come_in_the_order_of_their_prior_rank(tmp_path: Path) -> None:
    _, decoder = model(NUMBERS, tmp_path)
    arrays = encoded(NUMBERS, 6, np.random.default_rng(2))
    for name in ("item_num_CF", "prior_num_CF"):
        arrays[name][:] = arrays[name][0]
    by_rank = np.argsort(arrays["prior_rank_C"]).tolist()
    pinned = compile_rules(Constraints(pinned={1: by_rank[0]}), range(6), {}, L)
    decoded = decoder.decode(arrays, L, pinned)
    assert decoded.order.tolist() == [by_rank[1], by_rank[0], *by_rank[2:L]]
    assert np.isinf(decoded.margins[1])  # a pinned item has no rival


def test_rules_that_no_list_obeys_are_refused(tmp_path: Path) -> None:
    _, decoder = model(NUMBERS, tmp_path)
    rules = compile_rules(Constraints(gap=GapRule(by="colour", slots=2)), range(3), {"colour": ["red"] * 3}, 3)
    with pytest.raises(ConstraintError, match="no candidate may stand in slot 0"):
        decoder.decode(encoded(NUMBERS, 3, np.random.default_rng(0)), 3, rules)
