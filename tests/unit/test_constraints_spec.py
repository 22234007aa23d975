"""Constraints as users give them: what is accepted, how they merge, compile, and what is said when they cannot hold."""

from __future__ import annotations

from typing import Any

import crafted
import numpy as np
import pytest
from pydantic import ValidationError

from degre_prod.constraints.check import check_list, compile_feasible, explain_infeasible
from degre_prod.constraints.rules import compile_rules, encoded_rules
from degre_prod.constraints.spec import Constraints, GapRule, QuotaRule, StandingConstraints, merge
from degre_prod.errors import ConstraintError, SchemaError
from degre_prod.schema import Feature, parse_schema

GAP = GapRule(by="group", slots=2)
IDS = [10, 11, 12, 13, 14, 15]
COLUMNS = {"group": ["a", "a", "b", "b", "c", None], "brand": ["p", None, "p", "q", "q", "q"]}


def quota(value: str, by: str = "group", **bounds: int) -> QuotaRule:
    return QuotaRule(by=by, value=value, **bounds)


# -- as given ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gap": {"by": "group", "slots": 1}}, "greater than or equal to 2"),
        ({"gap": {"by": "group", "slots": 2, "every": 3}}, "gap.every"),
        ({"quotas": [{"by": "group", "value": "a"}]}, "give `min`, `max` or both"),
        ({"quotas": [{"by": "group", "value": "a", "min": 2, "max": 1}]}, "min 2 is more than max 1"),
        ({"quotas": [{"by": "group", "value": "a", "min": 1}] * 2}, "more than one quota for group=a"),
        ({"pinned": {"-1": 10}}, "counted from 0"),
        ({"pinned": {"0": 10, "1": 10}}, "one slot only"),
        ({"pin": {}}, "pin"),
    ],
)
def test_contradictory_constraints_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Constraints.model_validate(given)


def test_constraints_read_json_and_are_true_when_they_ask_for_something() -> None:
    text = '{"gap": {"by": "group", "slots": 3}, "pinned": {"0": "x"}, "exclude": ["y"], "must_include": [7]}'
    read = Constraints.model_validate_json(text)
    assert read.pinned == {0: "x"}
    assert (read.exclude, read.must_include) == (("y",), (7,))
    assert Constraints.model_validate_json(read.model_dump_json()) == read
    assert not Constraints()
    assert not StandingConstraints()
    assert all(
        (read, Constraints(exclude=(1,)), StandingConstraints(gap=GAP), Constraints(quotas=(quota("a", max=1),)))
    )
    assert Constraints(gap=GAP, quotas=(quota("a", max=1), quota("p", "brand", min=1))).columns == ("group", "brand")


def test_a_request_tightens_standing_constraints_and_never_loosens_them() -> None:
    standing = StandingConstraints(
        gap=GapRule(by="group", slots=3), quotas=(quota("a", min=1, max=3), quota("b", max=2))
    )
    request = Constraints(gap=GAP, quotas=(quota("a", min=2, max=5), quota("c", min=1)), exclude=(10,))
    both = merge(standing, request)
    assert both.gap == standing.gap  # 3 slots are stricter than 2
    assert both.quotas == (quota("a", min=2, max=3), quota("b", max=2), quota("c", min=1))
    assert both.exclude == (10,)
    assert merge(standing, Constraints(gap=GapRule(by="group", slots=4))).gap == GapRule(by="group", slots=4)
    assert merge(StandingConstraints(), request) == request
    assert merge(standing, None) == Constraints(gap=standing.gap, quotas=standing.quotas)


def test_a_request_that_contradicts_the_standing_constraints_is_told_so() -> None:
    with pytest.raises(ConstraintError, match="gap by brand: the data set has a gap by group"):
        merge(StandingConstraints(gap=GAP), Constraints(gap=GapRule(by="brand", slots=2)))
    with pytest.raises(ConstraintError, match="quota group=a: at least 3 and at most 1"):
        merge(StandingConstraints(quotas=(quota("a", max=1),)), Constraints(quotas=(quota("a", min=3),)))


# -- in schema.yaml ------------------------------------------------------------------------------------------------------


def test_a_schema_carries_standing_constraints() -> None:
    standing = StandingConstraints(gap=GAP, quotas=(quota("a", min=1, max=2),))
    schema = crafted.schema(constraints=standing)
    assert parse_schema(schema.to_yaml()) == schema
    assert schema.digest() != crafted.schema().digest()
    assert schema.digest() != crafted.schema(constraints=StandingConstraints(gap=GAP)).digest()


def test_a_schema_without_constraints_reads_and_writes_as_before_there_were_any() -> None:
    schema = crafted.schema()
    assert "constraints" not in schema.to_yaml()
    assert "constraints" not in schema.model_dump_json()
    assert parse_schema(schema.to_yaml() + "constraints: {}\n") == schema
    assert parse_schema(schema.to_yaml() + "constraints: {}\n").digest() == schema.digest()


@pytest.mark.parametrize(
    ("constraints", "said"),
    [
        ("gap: {by: quality, slots: 2}", "quality is no categorical feature of items or candidates"),
        ("gap: {by: taste, slots: 2}", r"taste is no categorical feature .*\(badge, group\)"),
        ("quotas: [{by: colour, value: red, min: 1}]", "colour is no categorical"),
        ("quotas: [{by: group, value: a, min: 2}, {by: group, value: b, min: 2}]", r"more items than .* group \(4\)"),
        ("exclude: [1]", "constraints.exclude"),
    ],
)
def test_a_schema_names_what_is_wrong_with_its_constraints(constraints: str, said: str) -> None:
    text = crafted.schema(candidate_features=(Feature(name="badge", kind="categorical"),)).to_yaml()
    with pytest.raises(SchemaError, match=said):
        parse_schema(f"{text}constraints: {{{constraints}}}\n")


def test_a_column_that_items_and_candidates_both_have_is_ambiguous() -> None:
    with pytest.raises(ValidationError, match="an item feature and a candidate feature"):
        crafted.schema(
            candidate_features=(Feature(name="group", kind="categorical"),), constraints=StandingConstraints(gap=GAP)
        )


# -- compiled ------------------------------------------------------------------------------------------------------------


def test_a_request_is_compiled_to_numbers() -> None:
    constraints = Constraints(
        gap=GAP,
        quotas=(quota("q", "brand", min=1), quota("a", max=2), quota("p", "brand", max=3)),
        exclude=(15, 99),
        must_include=(12, 10),
        pinned={2: 10},
    )
    rules = compile_rules(constraints, IDS, COLUMNS, 4)
    assert rules.allowed_BC[0].tolist() == [True] * 5 + [False]
    assert rules.pinned_BL[0].tolist() == [-1, -1, 0, -1]
    assert np.flatnonzero(rules.must_BC[0]).tolist() == [2]  # 10 is pinned already
    assert rules.gap_slots == 2
    assert rules.gap_group_BC[0].tolist() == [0, 0, 1, 1, 2, -1]
    assert rules.membership_BQC[0].astype(int).tolist() == [[0, 0, 0, 1, 1, 1], [1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0]]
    assert (rules.min_BQ[0].tolist(), rules.max_BQ[0, 1:].tolist()) == ([1, 0, 0], [2, 3])
    assert rules.quota_column_Q == (0, 1, 0)


def test_a_trust_region_leaves_the_first_candidates_and_what_the_request_demands() -> None:
    constraints = Constraints(must_include=(14,), pinned={0: 15})
    assert compile_rules(constraints, IDS, {}, 3, trust_region=2).allowed_BC[0].tolist() == [1, 1, 0, 0, 1, 1]
    assert compile_rules(constraints, IDS, {}, 3).allowed_BC.all()
    excluded = Constraints(exclude=(10,))
    assert compile_rules(excluded, IDS, {}, 1, trust_region=2).allowed_BC[0].tolist() == [0, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("constraints", "said"),
    [
        (Constraints(gap=GapRule(by="colour", slots=2)), "colour is no categorical column .*: group, brand"),
        (Constraints(pinned={0: 99}), "pinned: 99 is not among the candidates"),
        (Constraints(pinned={3: 10}), "slot 3 is beyond the list, whose slots are 0 to 2"),
        (Constraints(must_include=(99,)), "must_include: 99 is not among the candidates"),
    ],
)
def test_what_cannot_be_compiled_is_named(constraints: Constraints, said: str) -> None:
    with pytest.raises(ConstraintError, match=said):
        compile_rules(constraints, IDS, COLUMNS, 3)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> crafted.Crafted:
    features = {"candidate_features": (Feature(name="badge", kind="categorical"),)}
    return crafted.crafted(tmp_path_factory.mktemp("world"), counts=(6, 4, 6, 5, 6, 6, 3, 6), **features)


def test_encoded_requests_compile_to_what_their_raw_values_compile_to(world: crafted.Crafted) -> None:
    constraints = StandingConstraints(
        gap=GAP, quotas=(quota("a", min=1), quota("never", max=0), quota("new", "badge", max=2))
    )
    requests = np.array([1, 4, 6])
    together = encoded_rules(constraints, world.encoder.spec, world.encoded, requests, trust_region=5)
    assert together.length == 3
    for b, r in enumerate(requests):
        request, _, items = world.rows[r]
        columns = {"group": items.values["group"], "badge": request.candidate_features["badge"]}
        alone = compile_rules(constraints, request.candidate_ids, columns, 3, trust_region=5)
        n = len(request.candidate_ids)
        np.testing.assert_array_equal(together.allowed_BC[b], np.pad(alone.allowed_BC[0], (0, 6 - n)))
        np.testing.assert_array_equal(together.membership_BQC[b, :, :n], alone.membership_BQC[0])
        one, two = together.gap_group_BC[b, :n], alone.gap_group_BC[0]
        np.testing.assert_array_equal(one[:, None] == one, two[:, None] == two)  # the same groups, other numbers
        assert (together.min_BQ[b] == alone.min_BQ[0]).all()
        assert (together.max_BQ[b] == alone.max_BQ[0]).all()


def test_a_missing_value_is_in_no_group_of_encoded_requests(world: crafted.Crafted) -> None:
    constraints = StandingConstraints(gap=GapRule(by="badge", slots=2))
    rules = encoded_rules(constraints, world.encoder.spec, world.encoded, np.array([0]))
    badges = world.rows[0][0].candidate_features["badge"]
    assert [code >= 0 for code in rules.gap_group_BC[0]] == [badge is not None for badge in badges]


def test_demanding_a_value_the_encoder_does_not_know_is_an_error(world: crafted.Crafted) -> None:
    with pytest.raises(ConstraintError, match="group=never: the encoder does not know this value"):
        encoded_rules(
            StandingConstraints(quotas=(quota("never", min=1),)), world.encoder.spec, world.encoded, np.array([0])
        )


# -- checked and explained -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ([2, 4, 5], None),
        ([2, 4], "2 items, 3 were due"),
        ([2, 4, 4], "twice"),
        ([2, 4, 6], "not candidates"),
        ([2, 0, 5], "slot 1 holds a candidate that is excluded"),
        ([4, 2, 5], "pinned: slot 0"),
        ([2, 5, 1], "must_include: 1 items"),
        ([2, 3, 4], "gap: slots 0 and 1"),
        ([2, 1, 4], "quota 0: the list holds 1 of its items, at least 2"),
        ([2, 4, 1], None),
    ],
)
def test_a_list_is_checked_against_every_rule(order: list[int], said: str | None) -> None:
    least = 2 if said and said.startswith("quota") else 0
    constraints = Constraints(
        gap=GAP,
        quotas=(quota("q", "brand", min=least, max=2),),
        exclude=(10,),
        pinned={0: 12},
        must_include=(14,),
    )
    rules = compile_rules(constraints, IDS, COLUMNS, 3)
    if said is None:
        check_list(rules, order)
        return
    with pytest.raises(ConstraintError, match=said):
        check_list(rules, order)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"exclude": (10,), "pinned": {0: 10}}, "10 excluded, and pinned or in must_include"),
        ({"must_include": (10, 12, 14), "pinned": {0: 15}}, "3 items for 2 slots"),
        ({"exclude": (10, 11, 12, 13)}, "2 of 6 candidates may be placed, 3 slots"),
        ({"quotas": (quota("c", min=2),)}, r"group=c \(min 2\): at least 2 are due, 1 candidates"),
        ({"quotas": (quota("q", "brand", max=0),), "pinned": {0: 13}}, "at most 0, but 1 are pinned"),
        ({"quotas": (quota("a", min=2), quota("b", min=2))}, "quotas by group: 4 items are due in 3 slots"),
        (
            {"gap": GapRule(by="group", slots=3), "must_include": (10, 11)},
            "obeys gap by group .3 slots. or must_include",
        ),
        (
            {"gap": GAP, "pinned": {0: 10, 1: 11}},
            "gap by group .2 slots. or pinned 10 at slot 0 or pinned 11 at slot 1",
        ),
    ],
)
def test_infeasible_constraints_are_explained(given: dict[str, Any], said: str) -> None:
    constraints = Constraints(**given)
    with pytest.raises(ConstraintError, match=said):
        compile_feasible(constraints, IDS, COLUMNS, 3)


def test_when_no_single_rule_is_to_blame_all_are_named() -> None:
    twice = Constraints(gap=GapRule(by="group", slots=3), must_include=(10, 11, 12, 13))
    text = explain_infeasible(twice, IDS, COLUMNS, 4)
    assert "obeys gap by group" in text
    assert "these constraints together" not in text  # without the gap there is a list
    columns = {"group": [*"aaabbb"], "brand": [*"pppppp"]}
    hopeless = Constraints(
        quotas=(quota("a", max=1), quota("b", max=1), quota("p", "brand", max=2)), gap=GapRule(by="brand", slots=2)
    )
    text = explain_infeasible(hopeless, IDS, columns, 4)
    assert "obeys these constraints together: gap by brand" in text
    assert all(f"group={v} (max 1)" in text for v in "ab")


def test_a_trust_region_can_be_what_no_list_survives() -> None:
    constraints = Constraints(quotas=(quota("a", max=1),), gap=GapRule(by="group", slots=3))
    assert compile_feasible(constraints, IDS, COLUMNS, 3).length == 3
    with pytest.raises(ConstraintError, match="trust region of 3"):
        compile_feasible(constraints, IDS, COLUMNS, 3, trust_region=3)
