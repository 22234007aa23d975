"""Constraints of requests and standing ones: whoever makes the list, it obeys them, and what was given up is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_fakes import BRANDS, FakeBundle, FakeFeatures, fake_engine, fake_schema

from degre_prod.constraints.rules import compile_rules
from degre_prod.constraints.settle import UNCHECKED, YIELDED
from degre_prod.constraints.spec import Constraints
from degre_prod.errors import ConstraintError
from serving.client import client_fallback
from serving.engine import Engine
from serving.fallback import fallback_order
from serving.limits import limits_of
from serving.problems import Problem
from serving.protocol import ConstraintsIn, RerankRequest, RerankResponse
from serving.validation import validate

IDS = (5, 9, 3, 4, 6, 0)  # brands: None acme acme bolt acme acme
GAP = {"by": "brand", "slots": 2}


def request(constraints: dict[str, Any] | None = None, **fields: Any) -> RerankRequest:
    candidates = [
        {"id": i, "scores": {"upstream": -n / 10}, "features": {"badge": "new" if i % 2 else "old"}}
        for n, i in enumerate(IDS)
    ]
    document = {"user_id": 1, "candidates": candidates, "constraints": constraints} | fields
    return RerankRequest.model_validate(document)


def ask(engine: Engine, constraints: dict[str, Any] | None = None, **fields: Any) -> RerankResponse:
    return engine.answer(engine.prepare(request(constraints, **fields))).response


def refused(constraints: dict[str, Any], **fields: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        ask(fake_engine(), constraints, **fields)
    assert caught.value.status == 422
    return caught.value


@pytest.mark.parametrize(
    ("constraints", "ids"),
    [
        ({}, [9, 6, 5]),
        ({"exclude": [9, 77]}, [6, 5, 4]),
        ({"must_include": [0]}, [9, 6, 0]),
        ({"pinned": {"0": 3, "2": 9}}, [3, 6, 9]),
        ({"gap": GAP}, [9, 5, 6]),  # 5 and every third item have no brand and stand anywhere
        ({"quotas": [{"by": "brand", "value": "bolt", "min": 1}]}, [9, 6, 4]),
        ({"quotas": [{"by": "brand", "value": "acme", "max": 1}]}, [9, 5, 4]),
        ({"quotas": [{"by": "badge", "value": "old", "min": 2}]}, [9, 6, 4]),
        ({"exclude": [9], "pinned": {"1": 4}, "gap": GAP, "must_include": [5]}, [6, 4, 5]),
    ],
)
def test_the_generator_obeys(constraints: dict[str, Any], ids: list[int]) -> None:
    answer = ask(fake_engine(), constraints)
    assert (answer.ids(), answer.source, answer.degraded) == (ids, "generator", [])
    assert ("constraints" in answer.timings_ms) == bool(constraints)


@pytest.mark.parametrize(
    ("constraints", "field", "said"),
    [
        ({"pinned": {"0": 77}}, "constraints.pinned.0", "not among the candidates"),
        ({"must_include": [77]}, "constraints.must_include[0]", "not among the candidates"),
        ({"pinned": {"0": "a"}}, "constraints.pinned.0", "integers, not str"),
        ({"exclude": ["a"]}, "constraints.exclude[0]", "integers, not str"),
        ({"exclude": [9], "must_include": [9]}, "constraints.must_include[0]", "excluded, too"),
        ({"exclude": [9], "pinned": {"1": 9}}, "constraints.pinned.1", "excluded, too"),
        ({"pinned": {"1": 9, "2": 9}}, "constraints.pinned.2", "given twice"),
        ({"must_include": [9, 9]}, "constraints.must_include[1]", "given twice"),
        ({"pinned": {"3": 9}}, "constraints.pinned.3", "the list has 3 slots"),
        ({"exclude": list(IDS)}, "constraints.exclude", "every candidate is excluded"),
        ({"gap": {"by": "price", "slots": 2}}, "constraints.gap.by", "it has brand, badge"),
        ({"quotas": [{"by": "age", "value": "x", "max": 1}]}, "constraints.quotas[0].by", "it has brand, badge"),
        ({"quotas": [{"by": "brand", "value": "x"}]}, "constraints.quotas[0]", "give `min`, `max` or both"),
        ({"quotas": [{"by": "brand", "value": "x", "min": 2, "max": 1}]}, "constraints.quotas[0]", "more than max"),
        ({"quotas": [{"by": "brand", "value": "x", "max": 1}] * 2}, "constraints", "more than one quota"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_named(constraints: dict[str, Any], field: str, said: str) -> None:
    problem = refused(constraints)
    assert [(e.field, said in e.message) for e in problem.errors] == [(field, True)]


@pytest.mark.parametrize(
    ("constraints", "said"),
    [
        ({"quotas": [{"by": "brand", "value": "bolt", "min": 2}]}, "quota brand=bolt (min 2)"),
        ({"must_include": [9, 3], "gap": {"by": "brand", "slots": 3}}, "gap by brand (3 slots)"),
        ({"must_include": [9, 3, 4, 6]}, "must_include: 4 items for 3 slots"),
    ],
)
def test_what_no_list_can_obey_is_refused_and_the_rule_named(constraints: dict[str, Any], said: str) -> None:
    assert said in refused(constraints).detail


def test_many_quotas_and_many_candidates_do_not_go_together() -> None:
    asked = ConstraintsIn.model_validate({"quotas": [{"by": "brand", "value": f"b{i}", "max": 1} for i in range(64)]})
    assert len(limits_of(asked, fake_schema(), range(62)).quotas) == 64
    with pytest.raises(Problem, match="quotas: at most 63 with 63 candidates"):
        limits_of(asked, fake_schema(), range(63))


def test_exclusions_shorten_the_list() -> None:
    """As fewer candidates would: told only where the request named a length."""
    few = {"exclude": [9, 3, 4, 6]}
    assert (ask(fake_engine(), few).ids(), ask(fake_engine(), few).degraded) == ([5, 0], [])
    assert ask(fake_engine(), few, length=3).degraded == ["length_cut"]


def test_duplicates_and_constraints_go_together() -> None:
    twice = [{"id": i} for i in (5, 9, 5, 3)]
    answer = ask(fake_engine(), {"pinned": {"0": 5}}, candidates=twice)
    assert (answer.ids(), answer.degraded) == ([5, 9, 3], ["duplicate_candidates"])


@pytest.mark.parametrize(
    ("features", "bundle", "reason"),
    [
        (FakeFeatures(), FakeBundle(broken="raises"), "model_error"),
        (FakeFeatures(), FakeBundle(broken="disobeys"), "model_error"),
        (FakeFeatures(), FakeBundle(follows_rules=False), "constraints_by_fallback"),
    ],
)
def test_the_fallback_obeys_by_score(features: FakeFeatures, bundle: FakeBundle, reason: str) -> None:
    constraints = {"gap": GAP, "pinned": {"2": 9}}
    answer = ask(fake_engine(features, bundle), constraints)
    assert (answer.ids(), answer.source, answer.degraded) == ([5, 4, 9], "fallback_score", [reason])


def test_a_bundle_that_follows_no_rules_answers_other_requests_itself() -> None:
    assert ask(fake_engine(bundle=FakeBundle(follows_rules=False))).source == "generator"


def test_the_fallback_obeys_what_it_can_check() -> None:
    """Without the feature store a brand is not known; a badge came with the request."""
    engine = fake_engine(FakeFeatures(fails=True))
    badge = {"quotas": [{"by": "badge", "value": "old", "min": 2}], "exclude": [5]}
    assert ask(engine, badge).degraded == ["features_unavailable"]
    assert ask(engine, badge).ids() == [9, 4, 6]
    answer = ask(engine, badge | {"gap": GAP, "pinned": {"0": 0}})
    assert (answer.ids(), answer.degraded) == ([0, 9, 4], ["features_unavailable", UNCHECKED])
    plain = [{"id": i} for i in IDS]
    answer = ask(engine, {"exclude": [9], "pinned": {"0": 3}}, candidates=plain)
    assert (answer.ids(), answer.source) == ([3, 5, 4], "fallback_order")


def test_the_fallback_too_refuses_what_cannot_hold() -> None:
    engine = fake_engine(FakeFeatures(fails=True))
    with pytest.raises(Problem, match="badge=odd"):
        ask(engine, {"quotas": [{"by": "badge", "value": "odd", "min": 1}]})


STANDING = "constraints: {gap: {by: brand, slots: 2}, quotas: [{by: brand, value: acme, max: 1}]}"


def standing_engine(features: FakeFeatures | None = None, **bundle: Any) -> Engine:
    return fake_engine(features, FakeBundle(schema=fake_schema(STANDING), **bundle))


def test_standing_constraints_hold_for_every_request() -> None:
    assert ask(standing_engine()).ids() == [9, 5, 4]
    assert ask(standing_engine(), {"pinned": {"0": 4}}).ids() == [4, 9, 5]
    assert ask(standing_engine(broken="raises")).ids() == [5, 9, 4]
    answer = ask(standing_engine(FakeFeatures(fails=True)))
    assert (answer.ids(), answer.degraded) == ([5, 9, 3], ["features_unavailable", UNCHECKED])


def test_standing_constraints_yield_and_never_refuse() -> None:
    """First the gap; the last quota goes last."""
    acme = [{"id": i} for i in (9, 3)]
    answer = ask(standing_engine(), candidates=acme)
    assert (answer.ids(), answer.degraded) == ([9, 3], [YIELDED])
    gap_goes = "constraints: {gap: {by: brand, slots: 3}, quotas: [{by: brand, value: acme, max: 2}]}"
    engine = fake_engine(bundle=FakeBundle(schema=fake_schema(gap_goes)))
    answer = ask(engine, candidates=[{"id": i} for i in (9, 3, 6, 4)])
    assert answer.degraded == [YIELDED]
    assert sum(BRANDS[i % 3] == "acme" for i in answer.ids()) == 2
    pins = ask(standing_engine(), {"pinned": {"0": 9, "1": 3}})
    assert (pins.ids()[:2], pins.degraded) == ([9, 3], [YIELDED])


def test_a_request_cannot_contradict_standing_constraints() -> None:
    engine = standing_engine()
    with pytest.raises(Problem, match="contradict each other"):
        ask(engine, {"quotas": [{"by": "brand", "value": "acme", "min": 2}]})
    with pytest.raises(Problem, match="can only widen"):
        ask(engine, {"gap": {"by": "badge", "slots": 2}})


def test_the_trust_region_is_left_only_where_it_must_be() -> None:
    engine = fake_engine(bundle=FakeBundle(trust_region=4))
    assert (ask(engine).ids(), ask(engine).degraded) == ([9, 5, 4], [])  # 6 comes fifth
    pinned = ask(engine, {"pinned": {"0": 6}})
    assert (pinned.ids(), pinned.degraded) == ([6, 9, 5], [])
    answer = ask(engine, {"exclude": [5, 9]})
    assert (answer.ids(), answer.degraded) == ([6, 4, 3], [YIELDED])


def test_explanations_name_the_best_of_what_the_rules_left() -> None:
    """The fake explains nothing of its own; tests/method/test_step_graph.py has the graph's."""
    answer = ask(fake_engine(), {"exclude": [6]}, explain=True)
    assert [item.features and item.features["brand"] for item in answer.items] == ["acme", None, "bolt"]


def test_fallback_order_takes_the_first_that_may_stand() -> None:
    rules = compile_rules(Constraints(pinned={1: 0}, exclude=(2,)), range(4), {}, 3)
    assert fallback_order(4, 3, {"s": [1.0, 2.0, 9.0, 3.0]}, ["s"], rules) == ([3, 0, 1], "fallback_score")
    assert fallback_order(4, 3, {}, ["s"], rules) == ([1, 0, 3], "fallback_order")
    impossible = compile_rules(Constraints(exclude=(0, 1)), range(3), {}, 2)
    with pytest.raises(ConstraintError, match="slot 0"):
        fallback_order(3, 2, {}, [], impossible)


@pytest.mark.parametrize("chosen", [[1, 2], [3, 2], [3, 3], [3], [3, 9]])
def test_validate_checks_the_rules(chosen: list[int]) -> None:
    rules = compile_rules(Constraints(pinned={0: 3}, exclude=(2,)), [1, 2, 3], {}, 2)
    validate([3, 1], [1, 2, 3], 2, rules)
    with pytest.raises(ConstraintError):
        validate(chosen, [1, 2, 3], 2, rules)


def test_the_client_keeps_what_it_can_check() -> None:
    asked = request({"exclude": [9], "pinned": {0: 4}, "quotas": [{"by": "badge", "value": "old", "max": 1}]}, length=3)
    answer = client_fallback(asked, "client_timeout")
    assert (answer.ids(), answer.degraded) == ([4, 5, 3], ["client_timeout"])
    unread = client_fallback(request({"gap": GAP, "must_include": [0]}, length=2), "client_timeout")
    assert (unread.ids(), unread.degraded) == ([5, 0], ["client_timeout", UNCHECKED])
    contradiction = request({"exclude": [5], "pinned": {0: 77}}, length=2)
    answer = client_fallback(contradiction, "client_timeout")
    assert (answer.ids(), answer.degraded) == ([9, 3], ["client_timeout", "constraints_infeasible"])


@given(
    ids=st.lists(st.integers(0, 60), min_size=1, max_size=6, unique=True),
    length=st.none() | st.integers(1, 5),
    exclude=st.lists(st.integers(0, 60), max_size=4),
    pins=st.dictionaries(st.integers(0, 2), st.integers(0, 5), max_size=2),
    gap=st.none() | st.integers(2, 3),
    quotas=st.dictionaries(
        st.sampled_from(["acme", "bolt"]), st.tuples(st.integers(0, 2), st.integers(1, 3)), max_size=2
    ),
    fails=st.booleans(),
    broken=st.sampled_from(["", "raises", "disobeys"]),
    standing=st.booleans(),
)
def test_every_answer_obeys_what_is_known(
    ids: list[int],
    length: int | None,
    exclude: list[int],
    pins: dict[int, int],
    gap: int | None,
    quotas: dict[str, tuple[int, int]],
    fails: bool,
    broken: str,
    standing: bool,
) -> None:
    constraints: dict[str, Any] = {
        "exclude": exclude,
        "pinned": {slot: ids[n % len(ids)] for slot, n in pins.items()},
        "gap": gap and {"by": "brand", "slots": gap},
        "quotas": [{"by": "brand", "value": v, "min": a, "max": b} for v, (a, b) in quotas.items()],
    }
    engine = (standing_engine if standing else lambda f, broken: fake_engine(f, FakeBundle(broken=broken)))(
        FakeFeatures(fails=fails), broken=broken
    )
    try:
        answer = ask(engine, constraints, candidates=[{"id": i} for i in ids], length=length)
    except Problem:  # whether rightly so is tested above, and in tests/method/test_constraints_mask.py
        return
    due = min(length or 3, 3, len(set(ids) - set(exclude)))
    if fails:
        constraints |= {"gap": None, "quotas": []}
    own = Constraints.model_validate(constraints)
    rules = compile_rules(own, ids, {"brand": [BRANDS[i % 3] for i in ids]}, due)
    validate(answer.ids(), ids, due, rules)
    assert np.isin(answer.ids(), exclude).sum() == 0
