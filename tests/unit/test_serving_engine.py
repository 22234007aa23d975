"""The engine: every fallback reason, every flag, always a valid list."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_fakes import FakeBundle, FakeFeatures, fake_engine

from degre_prod.errors import ConstraintError
from serving.deadline import Deadline
from serving.engine import Engine
from serving.fallback import fallback_order
from serving.protocol import RerankRequest, RerankResponse
from serving.validation import validate


def ask(engine: Engine, **fields: Any) -> RerankResponse:
    document = {"user_id": 1, "candidates": [{"id": i} for i in (5, 9, 3, 4)]} | fields
    return engine.answer(engine.prepare(RerankRequest.model_validate(document))).response


def scored(*scores: float | None) -> list[dict[str, Any]]:
    return [{"id": i, "scores": {} if s is None else {"upstream": s}} for i, s in enumerate(scores)]


def test_the_generator_answers() -> None:
    answer = ask(fake_engine(), request_id="r")
    assert (answer.request_id, answer.ids(), answer.source) == ("r", [9, 5, 4], "generator")
    assert [item.position for item in answer.items] == [0, 1, 2]
    assert (answer.bundle, answer.arm, answer.degraded) == ("a" * 64, "champion", [])
    assert set(answer.timings_ms) == {"features", "encode", "decode", "total"}


def test_margins_only_when_explained() -> None:
    assert [i.margin for i in ask(fake_engine()).items] == [None, None, None]
    assert [i.margin for i in ask(fake_engine(), explain=True).items] == [3.0, 2.0, 1.0]


def test_a_slot_without_rival_has_no_margin() -> None:
    answer = ask(fake_engine(), explain=True, candidates=[{"id": 3}])
    assert [i.margin for i in answer.items] == [None]


def test_one_candidate_works() -> None:
    assert ask(fake_engine(), candidates=[{"id": 7}]).ids() == [7]


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"user_id": 404}, "unknown_user"),
        ({"user_id": 410}, "stale_user"),
        ({"candidates": [{"id": 500}, {"id": 501}, {"id": 1}]}, "unknown_items:2"),
        ({"candidates": [{"id": 77}, {"id": 1}]}, "stale_items:1"),
        ({"candidates": [{"id": 1}, {"id": 1}]}, "duplicate_candidates"),
        ({"length": 4}, "length_cut"),
    ],
)
def test_what_is_missing_is_answered_and_flagged(fields: dict[str, Any], flag: str) -> None:
    answer = ask(fake_engine(), **fields)
    assert (answer.source, answer.degraded) == ("generator", [flag])


@pytest.mark.parametrize(
    ("features", "bundle", "reason"),
    [
        (FakeFeatures(fails=True), FakeBundle(), "features_unavailable"),
        (FakeFeatures(), FakeBundle(broken="raises"), "model_error"),
        (FakeFeatures(), FakeBundle(broken="twice"), "model_error"),
    ],
)
def test_a_broken_part_gives_the_fallback_and_says_so(features: FakeFeatures, bundle: FakeBundle, reason: str) -> None:
    engine = fake_engine(features, bundle)
    by_score = ask(engine, candidates=scored(0.1, 0.9, None, 0.5))
    assert (by_score.ids(), by_score.source, by_score.degraded) == ([1, 3, 0], "fallback_score", [reason])
    by_order = ask(engine, user_id=404)
    assert (by_order.ids(), by_order.source, by_order.degraded) == ([5, 9, 3], "fallback_order", [reason])


def test_a_passed_deadline_starts_no_stage() -> None:
    features = FakeFeatures()
    engine = fake_engine(features)
    prepared = engine.prepare(RerankRequest.model_validate({"user_id": 1, "candidates": scored(0.1, 0.2)}))
    answer = engine.answer(prepared, Deadline(10, time.perf_counter() - 1)).response
    assert (answer.source, answer.degraded, features.reads) == ("fallback_score", ["deadline"], 0)


def test_the_encoder_sees_distinct_candidates_in_upstream_order() -> None:
    bundle = FakeBundle()
    ask(fake_engine(bundle=bundle), candidates=[{"id": 5}, {"id": 9}, {"id": 5}])
    assert list(bundle.encoder.seen[0].candidate_ids) == [5, 9]


def test_fallback_ties_go_by_upstream_rank_and_missing_scores_last() -> None:
    order, source = fallback_order(5, 5, {"upstream": [None, 1.0, float("nan"), 1.0, 2.0]}, ["upstream"])
    assert (order, source) == ([4, 1, 3, 0, 2], "fallback_score")
    assert fallback_order(2, 2, {"second": [1.0, 2.0]}, ["upstream", "second"]) == ([1, 0], "fallback_score")
    assert fallback_order(3, 2, {"upstream": [None, None, None]}, ["upstream"]) == ([0, 1], "fallback_order")


@pytest.mark.parametrize("chosen", [[1, 1], [1], [1, 2, 3], [1, 9]])
def test_validate_refuses(chosen: list[int]) -> None:
    with pytest.raises(ConstraintError):
        validate(chosen, [1, 2, 3], 2)


@given(
    ids=st.lists(st.integers(0, 120), min_size=1, max_size=6),
    scores=st.lists(st.none() | st.floats(-1e6, 1e6), min_size=6, max_size=6),
    length=st.none() | st.integers(1, 9),
    fails=st.booleans(),
    broken=st.sampled_from(["", "raises", "twice"]),
)
def test_every_answer_is_a_valid_list(
    ids: list[int], scores: list[float | None], length: int | None, fails: bool, broken: str
) -> None:
    engine = fake_engine(FakeFeatures(fails=fails), FakeBundle(broken=broken))
    candidates = [{"id": i, "scores": {} if s is None else {"upstream": s}} for i, s in zip(ids, scores, strict=False)]
    answer = ask(engine, candidates=candidates, length=length)
    validate(answer.ids(), set(ids), min(length or 3, 3, len(set(ids))))
    assert (answer.source == "generator") == (
        not fails and (not broken or (broken == "twice" and len(answer.items) == 1))
    )
