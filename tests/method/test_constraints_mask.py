"""The mask against brute force: sound, never empty midway, complete on small cases (degre_prod.constraints)."""

from __future__ import annotations

from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import pytest

from degre_prod.constraints import completion
from degre_prod.constraints.check import check_list
from degre_prod.constraints.mask import feasible_along, feasible_next, feasible_requests, first_lists, obeyed
from degre_prod.constraints.rules import Rules, compile_rules, unconstrained
from degre_prod.constraints.spec import Constraints, GapRule, QuotaRule
from degre_prod.errors import ConstraintError

KINDS = ("gap", "quota", "other_quota", "pinned", "must", "exclude")


class Case(NamedTuple):
    """One request, with ids 10, 11, … so that no id is an index."""

    constraints: Constraints
    ids: list[int]
    columns: dict[str, list[Any]]
    length: int

    @property
    def rules(self) -> Rules:
        return compile_rules(self.constraints, self.ids, self.columns, self.length)


def draw(rng: np.random.Generator, kinds: tuple[str, ...]) -> Case:
    """Two to six candidates, lists of one to four."""
    n = int(rng.integers(2, 7))
    length = int(rng.integers(1, min(n, 4) + 1))
    ids = [10 + i for i in range(n)]
    many = rng.integers(1, 4)
    columns = {
        "group": [str(rng.choice([*"xyz"][:many])) if rng.random() < 0.85 else None for _ in range(n)],
        "brand": [[None, "p", "q"][rng.integers(3)] for _ in range(n)],
    }
    quotas = [
        QuotaRule(by=by, value=value, min=least, max=[None, least, least + 1][rng.integers(least == 0, 3)])
        for kind, by, values in (("quota", "group", "xyz"), ("other_quota", "brand", "pq"))
        for value in values
        if kind in kinds and rng.random() < 0.5
        for least in [int(rng.integers(0, 3))]
    ]
    pool = [int(i) for i in rng.permutation(ids)]
    pinned, must, exclude = {}, [], []
    if "pinned" in kinds:
        slots = rng.permutation(length)[: rng.integers(1, min(length, 2) + 1)]
        pinned = {int(slot): pool.pop() for slot in slots}
    if "must" in kinds:
        must = [pool.pop() for _ in range(min(len(pool), rng.integers(1, 3)))]
    if "exclude" in kinds:
        exclude = [int(i) for i in rng.permutation(ids)[: rng.integers(1, 3)]]
    gap = GapRule(by="group", slots=int(rng.integers(2, 5))) if "gap" in kinds else None
    return Case(
        Constraints(gap=gap, quotas=tuple(quotas), pinned=pinned, must_include=must, exclude=exclude),
        ids,
        columns,
        length,
    )


def obeys(case: Case, order: tuple[int, ...]) -> bool:
    """Every rule, spelt out."""
    c, items = case.constraints, [case.ids[i] for i in order]
    values = {name: [column[i] for i in order] for name, column in case.columns.items()}
    if any(i in c.exclude for i in items) or any(i not in items for i in c.must_include):
        return False
    if any(items[slot] != item for slot, item in c.pinned.items()):
        return False
    if c.gap:
        groups = values[c.gap.by]
        for a, b in permutations(range(case.length), 2):
            if a < b < a + c.gap.slots and groups[a] is not None and groups[a] == groups[b]:
                return False
    return all(q.min <= values[q.by].count(q.value) <= (99 if q.max is None else q.max) for q in c.quotas)


def explore(case: Case) -> tuple[int, int]:
    """Walk every list the mask lets through; how many feasible children there are, and how many of them it refused."""
    rules, n = case.rules, len(case.ids)
    good = {order for order in permutations(range(n), case.length) if obeys(case, order)}
    starts = {order[:t] for order in good for t in range(case.length + 1)}
    level: list[tuple[int, ...]] = [()]
    feasible = refused = 0
    for t in range(case.length):
        mask = feasible_next(rules, np.array(level, np.int64).reshape(1, len(level), t))[0]
        if t:
            assert mask.any(1).all(), f"empty midway: {case}"
        children = [(s, (*s, v), bool(mask[k, v])) for k, s in enumerate(level) for v in range(n)]
        feasible += sum(child in starts for _, child, _ in children)
        refused += sum(child in starts and not let for _, child, let in children)
        level = [child for _, child, let in children if let]
        assert all(child in starts for child in level), f"no list starts so: {case}"
        if not level:
            return feasible, refused
    assert all(child in good for child in level)
    for order in level[:20]:
        check_list(rules, order)
    return feasible, refused


@pytest.mark.parametrize(
    "kinds", [*((kind,) for kind in KINDS), ("gap", "quota"), ("gap", "pinned"), ("gap", "must"), ("quota", "must")]
)
def test_lists_through_the_mask_are_exactly_those_that_obey(kinds: tuple[str, ...]) -> None:
    rng = np.random.default_rng(sum(map(ord, "".join(kinds))))
    counts = np.sum([explore(draw(rng, kinds)) for _ in range(150)], axis=0)
    assert counts[0] > 300
    assert counts[1] == 0


def test_of_mixed_rules_hardly_a_feasible_item_is_refused() -> None:
    rng = np.random.default_rng(7)
    cases = (draw(rng, tuple(k for k in KINDS if rng.random() < 0.6)) for _ in range(400))
    feasible, refused = np.sum([explore(case) for case in cases], axis=0)
    print(f"refused {refused} of {feasible} feasible items")
    assert feasible > 1000
    assert refused < 0.01 * feasible


def large(rng: np.random.Generator) -> Case:
    """Lists of ten out of forty candidates, every kind of rule."""
    ids = list(range(100, 140))
    columns = {"group": [f"g{rng.integers(6)}" for _ in ids], "brand": [[None, "p", "q"][rng.integers(3)] for _ in ids]}
    pool = [int(i) for i in rng.permutation(ids)]
    return Case(
        Constraints(
            gap=GapRule(by="group", slots=int(rng.integers(2, 5))),
            quotas=(
                QuotaRule(by="group", value="g0", min=1, max=2),
                QuotaRule(by="brand", value="p", min=int(rng.integers(0, 4)), max=4),
            ),
            pinned={int(rng.integers(10)): pool.pop()},
            must_include=(pool.pop(), pool.pop()),
            exclude=(pool.pop(),),
        ),
        ids,
        columns,
        10,
    )


def test_random_walks_through_large_requests_never_get_stuck_and_obey() -> None:
    rng = np.random.default_rng(3)
    reached = 0
    for _ in range(12):
        case = large(rng)
        rules = case.rules
        prefixes = np.zeros((1, 8, 0), np.int64)
        for t in range(case.length):
            mask = feasible_next(rules, prefixes)
            if t == 0 and not mask.any():
                break
            assert mask.any(2).all()
            choice = (mask * rng.random(mask.shape)).argmax(2)
            prefixes = np.concatenate([prefixes, choice[:, :, None]], axis=2)
        else:
            reached += 1
            assert all(obeys(case, tuple(order)) for order in prefixes[0].tolist())
    assert reached >= 8


def test_where_the_greedy_choice_errs_the_wider_try_finds_a_way(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"group": [*"ccbbbcbccbaaab"], "brand": [*"pqqqrqrprrppqq"]}
    constraints = Constraints(
        gap=GapRule(by="group", slots=3),
        quotas=(QuotaRule(by="group", value="a", min=1, max=3), QuotaRule(by="brand", value="r", min=1)),
        must_include=(11, 13),
    )
    case = Case(constraints, [10 + i for i in range(14)], columns, 6)
    empty = np.zeros((1, 1, 0), np.int64)
    wide = feasible_next(case.rules, empty)
    monkeypatch.setattr(completion, "WIDTH", 1)
    greedy = feasible_next(case.rules, empty)
    assert not (greedy & ~wide).any()
    missed = np.flatnonzero((wide & ~greedy)[0, 0])
    assert len(missed)
    assert all(any(obeys(case, (v, *rest)) for rest in permutations(set(range(14)) - {v}, 5)) for v in missed[:1])


def test_a_batch_gets_what_each_of_its_requests_gets_alone() -> None:
    rng = np.random.default_rng(5)
    cases = [case for case in (large(rng) for _ in range(8)) if feasible_requests(case.rules)[0]][:4]
    ranks = rng.permutation(40)[:3]
    alone = [feasible_next(case.rules, np.tile(ranks[:t], (1, 2, 1))) for case in cases for t in (0, 1, 3)]
    for gap in {case.constraints.gap.slots for case in cases if case.constraints.gap}:
        same = [i for i, case in enumerate(cases) if case.rules.gap_slots == gap]
        together = joined([cases[i].rules for i in same])
        for j, t in enumerate((0, 1, 3)):
            found = feasible_next(together, np.tile(ranks[:t], (len(same), 2, 1)))
            np.testing.assert_array_equal(found, np.concatenate([alone[3 * i + j] for i in same]))
        np.testing.assert_array_equal(
            first_lists(together), np.concatenate([first_lists(cases[i].rules) for i in same])
        )
        picked = together.of(np.array([len(same) - 1]))
        np.testing.assert_array_equal(first_lists(picked), first_lists(cases[same[-1]].rules))


def joined(rules: list[Rules]) -> Rules:
    """One Rules of several requests."""
    arrays = {
        name: np.concatenate([getattr(r, name) for r in rules])
        for name in Rules.__annotations__
        if name not in ("length", "gap_slots", "quota_column_Q")
    }
    return Rules(length=rules[0].length, gap_slots=rules[0].gap_slots, quota_column_Q=rules[0].quota_column_Q, **arrays)


def test_without_rules_anything_unused_may_come_next() -> None:
    mask = np.array([[True, True, True, False], [True, True, True, True]])
    rules = unconstrained(mask, 3)
    found = feasible_next(rules, np.array([[[0], [2]], [[3], [1]]]))
    expected = np.repeat(mask[:, None], 2, axis=1)
    expected[[0, 0, 1, 1], [0, 1, 0, 1], [0, 2, 3, 1]] = False
    np.testing.assert_array_equal(found, expected)
    assert feasible_requests(unconstrained(mask, 4)).tolist() == [False, True]  # 3 candidates fill no 4 slots


@pytest.mark.parametrize(
    ("prefix", "why"),
    [([0, 0], "an item twice"), ([0, 1], "gap"), ([4, 0], "excluded"), ([0, 3], "pinned elsewhere")],
)
def test_after_a_prefix_that_breaks_a_rule_nothing_may_come(prefix: list[int], why: str) -> None:
    constraints = Constraints(gap=GapRule(by="group", slots=2), exclude=(14,), pinned={2: 13})
    rules = compile_rules(constraints, [10, 11, 12, 13, 14, 15], {"group": [*"aabcde"]}, 3)
    assert not feasible_next(rules, np.array([[prefix]])).any(), why
    assert feasible_next(rules, np.array([[[0, 2]]])).nonzero()[2].tolist() == [3]


def test_the_first_lists_follow_the_upstream_order_as_far_as_the_rules_allow() -> None:
    constraints = Constraints(gap=GapRule(by="group", slots=2), quotas=(QuotaRule(by="group", value="c", min=1),))
    rules = compile_rules(constraints, list(range(5)), {"group": [*"aaabc"]}, 3)
    assert first_lists(rules).tolist() == [[0, 3, 4]]
    impossible = compile_rules(constraints, list(range(5)), {"group": [*"aaaab"]}, 3)
    assert first_lists(impossible).tolist() == [[-1, -1, -1]]


def test_full_lists_are_told_apart_as_check_list_tells_them() -> None:
    rng = np.random.default_rng(9)
    case = draw(rng, ("gap", "quota"))
    while len(case.ids) < 5 or not feasible_requests(case.rules)[0]:
        case = draw(rng, ("gap", "quota"))
    rules = case.rules
    seen = set()
    for order in permutations(range(len(case.ids)), case.length):
        fine = bool(obeyed(rules, np.array([[order]]))[0, 0])
        seen.add(fine)
        assert fine == obeys(case, order)
        if fine:
            check_list(rules, order)
        else:
            with pytest.raises(ConstraintError):
                check_list(rules, order)
    assert seen == {True, False}


def test_the_mask_along_a_list_is_the_mask_of_its_prefixes() -> None:
    case = large(np.random.default_rng(3))
    order = first_lists(case.rules)[:, None]
    along = feasible_along(case.rules, order)
    assert along.shape == (1, 1, 10, 40)
    for t in range(10):
        np.testing.assert_array_equal(along[:, :, t], feasible_next(case.rules, order[:, :, :t]))
        assert along[0, 0, t, order[0, 0, t]]


def test_the_same_question_twice_gets_the_same_answer() -> None:
    case = large(np.random.default_rng(4))
    empty = np.zeros((1, 1, 0), np.int64)
    np.testing.assert_array_equal(feasible_next(case.rules, empty), feasible_next(case.rules, empty))
