"""Simulated worlds: exact truth, honest logs, references that are at least as good as anything else."""

from __future__ import annotations

import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from degre_prod.artefact import file_digest
from degre_prod.errors import ConfigurationError, DataError
from degre_prod.records import impression_model, impression_schema
from degre_prod.schema import load_schema
from degre_prod.worlds.catalogue import ITEMS, USERS
from degre_prod.worlds.drift import drifted
from degre_prod.worlds.reference import hook_first, reference_values, true_beam_values
from degre_prod.worlds.search import beam, local_search
from degre_prod.worlds.simulate import draw_log, react, simulate
from degre_prod.worlds.spec import SIZES, WORLDS, world_spec
from degre_prod.worlds.truth import World, load_world, make_world

SMALL = {  # the method's table, once more by hand
    "none": {"sub": 0.0, "l0": 0.0, "l1": 0.0, "h": (0.0, 0.0), "pen": 1.2},
    "substitutes": {"sub": 1.5, "l0": 0.0, "l1": 0.0, "h": (0.0, 0.0), "pen": 1.2},
    "exit": {"sub": 0.8, "l0": 0.0, "l1": 0.0, "h": (0.05, 0.6), "pen": 1.2},
    "hooks": {"sub": 0.0, "l0": 0.4, "l1": 1.8, "h": (0.0, 0.0), "pen": 1.2},
    "mixed": {"sub": 1.0, "l0": 0.4, "l1": 1.8, "h": (0.0, 0.2), "pen": 0.8},
    "saturated": {"sub": 1.0, "l0": 0.4, "l1": 1.8, "h": (0.0, 0.2), "pen": 0.8},
}


def slow_clicks_and_exits(world: World, user_id: int, shown_ids: list[int]) -> list[tuple[float, float]]:
    """Click and leave probability of each slot of a small world, straight from the method's formulas."""
    c, cat = SMALL[world.spec.world], world.catalogue
    user = [float(x) for x in cat.taste[user_id - 1]]
    z = [[float(x) for x in cat.style[i - 1]] for i in shown_ids]
    hook = [float(cat.hook[i - 1]) for i in shown_ids]
    out = []
    for t, item in enumerate(shown_ids):
        logit = -1.5 + 0.8 * sum(a * b for a, b in zip(user, z[t], strict=True))
        logit += 0.4 * float(cat.quality[item - 1]) - c["pen"] * hook[t] - 0.25 * t
        effects = []
        for w in range(t):
            s = max(sum(a * b for a, b in zip(z[w], z[t], strict=True)), 0.0)
            effects.append(-c["sub"] * s + hook[w] * (1 - hook[t]) * (c["l0"] + c["l1"] * s))
        if world.spec.world == "saturated":
            logit += math.tanh(sum(max(e, 0.0) for e in effects)) + 2 * min([0.0, *effects])
        else:
            logit += sum(effects)
        low, high = c["h"]
        out.append((1 / (1 + math.exp(-logit)), low + (high - low) * float(cat.boredom[item - 1])))
    return out


def slow_value(world: World, user_id: int, shown_ids: list[int]) -> float:
    """Expected clicks by walking the slots."""
    there, value = 1.0, 0.0
    for p, h in slow_clicks_and_exits(world, user_id, shown_ids):
        value += there * p
        there *= p + (1 - p) * (1 - h)
    return value


def draw(world: World, requests: int, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    users = rng.integers(1, USERS + 1, requests)
    return users, np.stack([rng.permutation(ITEMS)[: world.spec.candidates] + 1 for _ in range(requests)])


@pytest.mark.parametrize("name", WORLDS)
def test_truth_follows_the_formulas(name: str) -> None:
    world = make_world(name, "small", 0)
    users, candidates = draw(world, 40)
    lists = np.stack([[np.random.default_rng(i).permutation(8)[:4]] for i in range(40)])
    values = world.true_values(users, candidates, lists)
    slow = [slow_value(world, users[b], [int(candidates[b, i]) for i in lists[b, 0]]) for b in range(40)]
    np.testing.assert_allclose(values[:, 0], slow, rtol=1e-12)


@pytest.mark.parametrize("name", ["exit", "saturated"])
def test_truth_is_the_mean_of_simulated_users(name: str) -> None:
    world = make_world(name, "small", 1)
    users, candidates = draw(world, 5)
    repeats, rng = 20_000, np.random.default_rng(0)
    lists = np.tile(np.arange(4), (5, 1, 1))
    truth = world.true_values(users, candidates, lists)[:, 0]
    clicks, seen = react(world, np.repeat(users, repeats), np.repeat(candidates[:, :4], repeats, axis=0), rng)
    counts = clicks.sum(axis=1).reshape(5, repeats)
    error = counts.std(axis=1) / math.sqrt(repeats)
    assert (np.abs(counts.mean(axis=1) - truth) < 4 * error).all()
    assert not (clicks & ~seen).any()
    assert (seen[:, :-1] >= seen[:, 1:]).all()


@pytest.mark.parametrize("name", WORLDS)
def test_enumeration_is_the_optimum(name: str) -> None:
    world = make_world(name, "small", 0)
    users, candidates = draw(world, 2)
    values, lists = reference_values(world, users, candidates)
    for b in range(2):
        every = [slow_value(world, users[b], list(p)) for p in permutations(map(int, candidates[b]), 4)]
        assert values[b] == pytest.approx(max(every), rel=1e-12)
        assert slow_value(world, users[b], [int(candidates[b, i]) for i in lists[b]]) == pytest.approx(values[b])


@pytest.mark.parametrize("name", WORLDS)
def test_large_reference_beats_beams_starts_and_random_lists(name: str) -> None:
    world = make_world(name, "large", 0)
    users, candidates = draw(world, 6)
    done: list[int] = []
    values, lists = reference_values(world, users, candidates, progress=done.append)
    assert sum(done) == 6
    np.testing.assert_allclose(world.true_values(users, candidates, lists[:, None])[:, 0], values, rtol=1e-9)
    assert all(len(set(row)) == 10 for row in lists.tolist())
    problems = world.problems(users, candidates)
    rivals = [beam(world.spec, problems, k) for k in (1, 16, 256)] + hook_first(world.spec, problems)
    rng = np.random.default_rng(1)
    rivals += [np.stack([rng.permutation(50)[:10] for _ in range(6)]) for _ in range(50)]
    rival_values = world.true_values(users, candidates, np.stack(rivals, axis=1))
    assert (values[:, None] >= rival_values - 1e-9).all()


@pytest.mark.parametrize("name", WORLDS)
def test_local_search_ends_where_no_neighbour_is_better(name: str) -> None:
    world = make_world(name, "small", 0)
    users, candidates = draw(world, 4)
    starts = np.tile(np.arange(4), (4, 1))
    values, lists = local_search(world.spec, world.problems(users, candidates), np.arange(4), starts)
    assert (values >= world.true_values(users, candidates, starts[:, None])[:, 0]).all()
    for b in range(4):
        here, neighbours = list(lists[b]), []
        for i in range(4):
            for j in range(4):
                swapped, moved = here.copy(), here.copy()
                swapped[i], swapped[j] = swapped[j], swapped[i]
                moved.insert(j, moved.pop(i))
                neighbours += [swapped, moved]
            neighbours += [[*here[:i], v, *here[i + 1 :]] for v in range(8) if v not in here]
        around = world.true_values(users[b : b + 1], candidates[b : b + 1], np.array([neighbours]))
        assert around.max() <= values[b] + 1e-9


@pytest.mark.parametrize("name", ["mixed", "saturated"])
def test_a_beam_as_wide_as_the_tree_is_exact(name: str) -> None:
    world = make_world(name, "small", 0)
    users, candidates = draw(world, 8)
    best = beam(world.spec, world.problems(users, candidates), 8 * 7 * 6)
    values = world.true_values(users, candidates, best[:, None])[:, 0]
    np.testing.assert_allclose(values, reference_values(world, users, candidates)[0], rtol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_logged_clicks_average_to_the_truth_of_the_logged_lists(size: str) -> None:
    world = make_world("mixed", size, 2)
    log = draw_log(world, 6000, np.random.default_rng(9))
    counts = log.click_BL.sum(axis=1)
    truth = world.true_values(log.user_ids_B, log.candidate_ids_BC, log.shown_BL[:, None])[:, 0]
    assert abs(counts.mean() - truth.mean()) < 4 * (counts - truth).std() / math.sqrt(6000)
    assert (np.diff(np.sort(log.candidate_ids_BC, axis=1)) > 0).all(), "candidates are distinct"
    assert (np.diff(log.upstream_BC, axis=1) <= 0).all(), "candidates come in upstream order"


@pytest.mark.parametrize("tau", [0.5, 0.1])
def test_logging_policy_is_plackett_luce_with_the_propensity_it_states(tau: float) -> None:
    world = make_world("none", "small", 0)
    log = draw_log(world, 20_000, np.random.default_rng(4), tau=tau)
    weight = np.exp(log.upstream_BC.astype(float) / tau)
    first = weight / weight.sum(axis=1, keepdims=True)
    shown_first = np.zeros_like(first)
    np.put_along_axis(shown_first, log.shown_BL[:, :1], 1.0, axis=1)
    error = np.sqrt((first * (1 - first)).sum(axis=0)) / 20_000
    assert (np.abs(shown_first.mean(axis=0) - first.mean(axis=0)) < 4 * error).all()
    for b in range(50):
        left, chance = list(range(8)), 1.0
        for item in log.shown_BL[b]:
            chance *= weight[b, item] / weight[b, left].sum()
            left.remove(int(item))
        assert log.list_propensity_B[b] == pytest.approx(chance, rel=1e-9)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds") / "set"
    simulate("mixed", "small", folder, seed=5, train=300, validation=50, test=40)
    return folder


def test_dataset_holds_the_contract_and_hides_the_truth(dataset: Path) -> None:
    schema = load_schema(dataset)
    log = pq.read_table(dataset / "impressions.parquet")
    assert log.num_rows == 390
    assert (schema.list_length, schema.max_candidates) == (4, 8)
    first_test = log["event_timestamp"][350].as_py()
    assert schema.test_start == first_test
    contract = impression_schema(schema)
    unused = {"constraints", "seen", "propensity", "bundle", "arm", "source", "confirmed", "created_timestamp"}
    assert log.schema.equals(pa.schema([field for field in contract if field.name not in unused]))
    for row in log.to_pylist():
        impression_model(schema).model_validate(row)
    users, items = (pq.read_table(dataset / f"{kind}_features.parquet") for kind in ("user", "item"))
    assert (users.num_rows, items.num_rows) == (USERS, ITEMS)
    stamps = {"event_timestamp", "created_timestamp"}
    assert set(users.column_names) == {"user_id", *stamps, *(f.name for f in schema.user.features)}
    assert set(items.column_names) == {"item_id", *stamps, *(f.name for f in schema.item.features)}
    for table in (users, items):
        assert max(table["event_timestamp"].to_pylist()) < log["event_timestamp"][0].as_py()
    assert items.schema.field("quality").type == pa.float32()
    assert items.schema.field("style").type.value_type == pa.float32()
    for file in ("schema.yaml", "conversion.json", "made_from.json"):
        assert "mixed" not in (dataset / file).read_text()


def test_world_behind_a_dataset_is_found_again(dataset: Path) -> None:
    world = load_world(dataset)
    assert (world.spec, world.seed) == (world_spec("mixed", "small"), 5)
    items = pq.read_table(dataset / "item_features.parquet")
    np.testing.assert_array_equal(items["quality"].to_numpy(), world.catalogue.quality)


def test_same_seed_same_bytes_other_seed_other_bytes(dataset: Path, tmp_path: Path) -> None:
    for seed, same in ((5, True), (6, False)):
        other = tmp_path / f"seed{seed}"
        simulate("mixed", "small", other, seed=seed, train=300, validation=50, test=40)
        for name in ("impressions.parquet", "user_features.parquet", "item_features.parquet"):
            assert (file_digest(other / name) == file_digest(dataset / name)) is same


def test_done_already_writes_nothing(dataset: Path) -> None:
    before = (dataset / "impressions.parquet").stat().st_mtime_ns
    summary = simulate("mixed", "small", dataset, seed=5, train=300, validation=50, test=40)
    assert (dataset / "impressions.parquet").stat().st_mtime_ns == before
    assert summary["requests"] == 390
    assert summary["requests_by_split"] == {"train": 300, "validation": 50, "test": 40}
    assert sorted(path.name for path in dataset.parent.iterdir()) == ["set"]


def test_the_temperature_of_the_logging_policy_is_part_of_the_data_set(tmp_path: Path) -> None:
    for folder, tau in (("usual", {}), ("said", {"tau": 0.5}), ("narrow", {"tau": 0.1})):
        simulate("mixed", "small", tmp_path / folder, train=200, validation=0, test=0, **tau)
    usual, said, narrow = (tmp_path / name / "impressions.parquet" for name in ("usual", "said", "narrow"))
    assert file_digest(usual) == file_digest(said)
    logs = [pq.read_table(file).to_pylist() for file in (usual, narrow)]
    first = [np.mean([row["shown_ids"][0] == row["candidate_ids"][0] for row in log]) for log in logs]
    assert first[0] < 0.7 < first[1]


@pytest.mark.parametrize("exploration", [1.0, 0.4])
def test_a_share_of_the_requests_shows_any_list_alike_with_the_propensity_it_states(exploration: float) -> None:
    world = make_world("none", "small", 0)
    usual = draw_log(world, 20_000, np.random.default_rng(4))
    log = draw_log(world, 20_000, np.random.default_rng(4), exploration=exploration)
    np.testing.assert_array_equal(log.candidate_ids_BC, usual.candidate_ids_BC)
    assert (np.sort(log.shown_BL, axis=1)[:, 1:] > np.sort(log.shown_BL, axis=1)[:, :-1]).all(), "distinct"
    unchanged = (log.shown_BL == usual.shown_BL).all(axis=1).mean()
    assert abs(unchanged - (1 - exploration)) < 0.02
    first = np.bincount(log.shown_BL[:, 0], minlength=8) / 20_000
    ranked = np.bincount(usual.shown_BL[:, 0], minlength=8) / 20_000
    np.testing.assert_allclose(first, exploration / 8 + (1 - exploration) * ranked, atol=0.015)
    by_rank = np.array([1 / 8, 1 / 7, 1 / 6, 1 / 5]).prod()
    if exploration == 1:
        np.testing.assert_allclose(log.list_propensity_B, by_rank, rtol=1e-9)
    else:
        same = (log.shown_BL == usual.shown_BL).all(axis=1)
        np.testing.assert_allclose(
            log.list_propensity_B[same],
            exploration * by_rank + (1 - exploration) * usual.list_propensity_B[same],
            rtol=1e-9,
        )


def test_other_traffic_is_other_requests_of_the_same_world(tmp_path: Path) -> None:
    for traffic in (0, 1):
        simulate("mixed", "small", tmp_path / str(traffic), train=40, validation=0, test=0, traffic=traffic)
    one, other = (tmp_path / str(t) for t in (0, 1))
    assert file_digest(one / "item_features.parquet") == file_digest(other / "item_features.parquet")
    assert load_world(one).seed == load_world(other).seed
    users = [pq.read_table(f / "impressions.parquet")["user_id"].to_pylist() for f in (one, other)]
    assert users[0] != users[1]


def test_a_true_value_beam_plans_little_in_a_large_world_of_hooks() -> None:
    world = make_world("hooks", "large", 0)
    users, candidates = draw(world, 24)
    narrow, wide = (true_beam_values(world, users, candidates, width).mean() for width in (1, 32))
    reference = reference_values(world, users, candidates)[0].mean()
    assert narrow < wide < 0.75 * reference


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no world 'mixt'.*saturated"):
        simulate("mixt", "small", tmp_path / "a")
    with pytest.raises(ConfigurationError, match=r"no size 'huge'.*large"):
        simulate("mixed", "huge", tmp_path / "a")
    with pytest.raises(ConfigurationError, match="at least one training request"):
        simulate("mixed", "small", tmp_path / "a", train=0)
    with pytest.raises(ConfigurationError, match="tau is above 0"):
        simulate("mixed", "small", tmp_path / "a", tau=0.0)
    with pytest.raises(ConfigurationError, match="share from 0 to 1"):
        simulate("mixed", "small", tmp_path / "a", exploration=1.5)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigurationError, match="holds something"):
        simulate("mixed", "small", tmp_path / "mine", train=10)
    with pytest.raises(DataError, match="no known truth"):
        load_world(tmp_path)
    world = make_world("mixed", "small", 0)
    users, candidates = draw(world, 1)
    with pytest.raises(DataError, match="from 1 to 10000"):
        world.true_values(users * 0, candidates, np.zeros((1, 1, 1), dtype=np.int64))
    with pytest.raises(DataError, match="indices into 8 candidates"):
        world.true_values(users, candidates, np.full((1, 1, 1), 8))


def test_a_drifted_market_clicks_by_turned_taste_and_logs_the_old_one() -> None:
    world = make_world("mixed", "small", 0)
    same, turned, round_ = (drifted(world, degrees) for degrees in (0, 90, 360))
    users, items = np.array([3]), np.array([[5, 9, 14, 2]])
    np.testing.assert_allclose(same.base_logits(users, items), world.base_logits(users, items))
    np.testing.assert_allclose(round_.base_logits(users, items), world.base_logits(users, items))
    x, y, z = world.catalogue.taste[2]
    np.testing.assert_allclose(turned.catalogue.taste[2], [-y, x, z], atol=1e-12)
    before, after = (
        draw_log(world, 4000, np.random.default_rng(0), market=market) for market in (None, drifted(world, 180))
    )
    np.testing.assert_array_equal(before.upstream_BC, after.upstream_BC)  # the upstream ranker has not noticed
    np.testing.assert_array_equal(before.shown_BL, after.shown_BL)
    assert after.click_BL.mean() < before.click_BL.mean() - 0.02
