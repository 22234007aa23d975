"""Mining: what a shard holds, whoever mined it (METHOD §3)."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import Any

import crafted
import numpy as np
import pytest
import torch
from crafted import Crafted, L, N

from degre_prod.config import MiningConfig
from degre_prod.errors import TrainingError
from degre_prod.mining import mine as mining
from degre_prod.mining.beam import Leaves, search
from degre_prod.mining.mine import (
    BeamForm,
    best_leaf_through,
    keep_best,
    minable_requests,
    mine,
    mine_requests,
    pooled_leaves,
)
from degre_prod.mining.replan import replan
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.training.data import logged_lists, to_batch
from degre_prod.training.group import Worker
from degre_prod.training.modules import save_module

COUNTS = (N, 5, N, 3, 2, N, 4, N, N, 1, N, N, 5, N)
SETTINGS = MiningConfig(requests=100, beam_width=4, keep=3, replan_width=3, shard_size=5, chunk_size=3)


@pytest.fixture(autouse=True)
def _no_gradients() -> object:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Crafted:
    return crafted.crafted(tmp_path_factory.mktemp("world"), counts=COUNTS)


@pytest.fixture(scope="module")
def model(world: Crafted) -> LookaheadEvaluator:
    return crafted.evaluator(world.encoder)


@pytest.fixture(scope="module")
def full(world: Crafted) -> np.ndarray:
    return minable_requests(world.encoded, L, 100)


def mined(folder: Path, world_folder: Path, settings: MiningConfig, workers: int = 1) -> dict[str, dict[str, Any]]:
    """All shards of a folder, mined by so many workers one after the other."""
    config = {
        "encoded": str(world_folder),
        "evaluator": str(world_folder / "evaluator"),
        "folder": str(folder),
        "mining": settings.model_dump(),
    }
    folder.mkdir(exist_ok=True)
    for rank in reversed(range(workers)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mining, "current_worker", lambda rank=rank: Worker(rank, workers))
            mine(config)
    return {f.name: dict(np.load(f, allow_pickle=False)) for f in sorted(folder.glob("shard-*.npz"))}


@pytest.fixture
def on_disk(tmp_path: Path) -> Path:
    """An encoded split and a random evaluator, as the stages leave them."""
    world = crafted.crafted(tmp_path / "world", counts=COUNTS)
    model = crafted.evaluator(world.encoder)
    (tmp_path / "world" / "evaluator").mkdir()
    save_module(model, model.spec, tmp_path / "world" / "evaluator", "evaluator")
    return tmp_path / "world"


@pytest.mark.parametrize(("beams", "width", "leaves"), [("prefix", 1, 3), ("union", 1, 4), ("union", 2, 7)])
def test_the_greedy_list_is_in_the_pool_and_searched_for_once(
    world: Crafted, model: LookaheadEvaluator, full: np.ndarray, beams: BeamForm, width: int, leaves: int
) -> None:
    batch = to_batch(world.encoded, full)
    prepared = model.prepare(batch)
    logged, _, _ = logged_lists(world.encoded, full, L, None)
    pool = pooled_leaves(model, prepared, batch, torch.from_numpy(logged), width, beams)
    greedy = search(model, prepared, batch["mask"], width=1, to_go=False).lists
    assert pool.lists.shape[1] == leaves
    assert (pool.lists == greedy).all(2).any(1).all()


def test_two_workers_leave_what_one_leaves(on_disk: Path, tmp_path: Path) -> None:
    one = mined(tmp_path / "one", on_disk, SETTINGS)
    two = mined(tmp_path / "two", on_disk, SETTINGS, workers=2)
    assert list(one) == list(two) == ["shard-00000.npz", "shard-00001.npz", "shard-00002.npz"]
    for name, arrays in one.items():
        for key, value in arrays.items():
            np.testing.assert_array_equal(two[name][key], value)


def test_the_chunk_size_changes_no_result(on_disk: Path, tmp_path: Path) -> None:
    small = mined(tmp_path / "one", on_disk, SETTINGS.model_copy(update={"chunk_size": 1}))
    large = mined(tmp_path / "two", on_disk, SETTINGS.model_copy(update={"chunk_size": 50}))
    for name, arrays in small.items():
        for key, value in arrays.items():
            np.testing.assert_allclose(large[name][key], value, rtol=1e-5, atol=1e-5)


def test_only_requests_with_a_choice_are_mined_and_the_newest_of_them(world: Crafted) -> None:
    assert minable_requests(world.encoded, L, 100).tolist() == [r for r, n in enumerate(COUNTS) if n >= L]
    assert minable_requests(world.encoded, L, 2).tolist() == [12, 13]


def test_nothing_to_mine_is_an_error_that_says_so(tmp_path: Path) -> None:
    world = crafted.crafted(tmp_path / "world", counts=(2, 1, 2))
    model = crafted.evaluator(world.encoder)
    (tmp_path / "world" / "evaluator").mkdir()
    save_module(model, model.spec, tmp_path / "world" / "evaluator", "evaluator")
    with pytest.raises(TrainingError, match="no training request has 3 candidates"):
        mined(tmp_path / "out", tmp_path / "world", SETTINGS)


def test_kept_lists_are_distinct_and_the_best(world: Crafted, model: LookaheadEvaluator, full: np.ndarray) -> None:
    arrays = mine_requests(model, world.encoded, full, SETTINGS)
    batch = to_batch(world.encoded, full)
    logged, _, _ = logged_lists(world.encoded, full, L, None)
    for b in range(len(full)):
        kept = [tuple(x) for x in arrays["lists"][b]]
        worth = arrays["utility"][b]
        assert len(set(kept)) == SETTINGS.keep  # every request here has six lists at least
        assert all(len(set(x)) == L and batch["mask"][b, list(x)].all() for x in kept)
        assert (np.diff(worth) <= 1e-6).all()
        one = {name: v[b : b + 1] for name, v in batch.items()}
        for x, u in zip(kept, worth, strict=True):
            assert float(model.utilities(one, torch.tensor([x]))[0, -1]) == pytest.approx(float(u), rel=1e-5)
        for known in (tuple(range(L)), tuple(logged[b].tolist())):  # pooled, so nothing kept is worse
            if len(set(known)) == L:
                u = float(model.utilities(one, torch.tensor([known]))[0, -1])
                assert known in kept or u <= worth[-1] + 1e-5


def test_keep_best_of_a_crafted_pool() -> None:
    lists = torch.tensor([[[0, 1], [1, 0], [0, 1], [2, 0], [0, 2]]])
    worth = torch.tensor([[1.0, 3.0, 2.0, float("-inf"), 3.0 + 1e-7]])
    kept, utility = keep_best(Leaves(lists, worth), 4)
    assert kept[0, :3].tolist() == [[1, 0], [0, 2], [0, 1]]  # a tie goes to the earlier one, a repeat to its best
    assert utility[0].tolist() == [3.0, pytest.approx(3.0), 2.0, float("-inf")]


def test_best_leaf_through_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    every = np.array(list(permutations(range(4), L)))
    leaves = np.stack([every[rng.integers(0, len(every), 9)] for _ in range(5)])
    worth = rng.normal(size=(5, 9)).astype(np.float32)
    worth[:, 3] = -np.inf
    lists = leaves[:, :4]
    out = best_leaf_through(lists, Leaves(torch.from_numpy(leaves), torch.from_numpy(worth)), 4)
    for b, k, t, c in product(range(5), range(4), range(L), range(4)):
        child = [*lists[b, k, :t], c]
        through = [u for x, u in zip(leaves[b].tolist(), worth[b], strict=True) if x[: t + 1] == child and u > -np.inf]
        if through:
            assert out[b, k, t, c] == max(through)
        else:
            assert np.isnan(out[b, k, t, c])


def test_one_step_values_are_there_for_free_items_alone(
    world: Crafted, model: LookaheadEvaluator, full: np.ndarray
) -> None:
    arrays = mine_requests(model, world.encoded, full, SETTINGS)
    mask = world.encoded.arrays["mask"][full]
    K, along = SETTINGS.keep, arrays["lists"]
    assert arrays["one_step"].shape == arrays["backed_up"].shape == (len(full), K, L, N)
    for b, k, t in product(range(len(full)), range(K), range(L)):
        used = set(along[b, k, :t].tolist())
        expected = [bool(mask[b, c]) and c not in used for c in range(N)]
        assert (~np.isnan(arrays["one_step"][b, k, t])).tolist() == expected
        backed = ~np.isnan(arrays["backed_up"][b, k, t])
        assert not (backed & ~np.array(expected)).any()
        assert backed[along[b, k, t]]


def replanned(
    model: LookaheadEvaluator, world: Crafted, requests: np.ndarray, logged: np.ndarray, width: int
) -> np.ndarray:
    batch = to_batch(world.encoded, requests)
    with torch.inference_mode():
        return replan(model, model.prepare(batch), batch["mask"], logged, width)[0]


def test_the_replanned_label_is_the_best_way_on_and_not_the_logged_one(
    world: Crafted, model: LookaheadEvaluator
) -> None:
    requests = np.flatnonzero(world.encoded.arrays["mask"].sum(1) == N)
    batch = to_batch(world.encoded, requests)
    worst = []
    for b in range(len(requests)):  # the log shows the evaluator's worst list
        lists, worth = crafted.of_all_lists(model, batch, b)
        worst.append(lists[int(worth.argmin())].numpy())
    logged = np.stack(worst)
    label = replanned(model, world, requests, logged, width=200)
    for b, t in product(range(len(requests)), range(L)):
        lists, worth = crafted.of_all_lists(model, batch, b)
        below = (lists[:, :t] == torch.from_numpy(logged[b, :t])).all(1)
        best = int(torch.where(below, worth, -1e9).argmax())
        assert label[b, t] == lists[best, t]
    assert (label != logged).all()


def test_the_label_does_not_see_the_lists_own_next_item(world: Crafted, model: LookaheadEvaluator) -> None:
    requests = np.flatnonzero(world.encoded.arrays["mask"].sum(1) == N)
    logged = np.tile([0, 1, 2], (len(requests), 1))
    before = replanned(model, world, requests, logged, width=3)
    for t in range(L):
        other = logged.copy()
        other[:, t:] = np.array([5, 4, 3])[: L - t]
        np.testing.assert_array_equal(replanned(model, world, requests, other, width=3)[:, : t + 1], before[:, : t + 1])


def test_a_logged_list_that_is_short_is_no_leaf(tmp_path: Path) -> None:
    world = crafted.crafted(tmp_path, counts=(N, N))
    world.encoded.arrays["shown"] = np.array([[3, -1, -1], [1, 2, 0]])
    model = crafted.evaluator(world.encoder)
    everything = SETTINGS.model_copy(update={"keep": 20})  # all leaves there are
    arrays = mine_requests(model, world.encoded, np.arange(2), everything)
    for lists, worth in zip(arrays["lists"], arrays["utility"], strict=True):
        assert all(len(set(x.tolist())) == L for x in lists[np.isfinite(worth)])
    assert [1, 2, 0] in arrays["lists"][1][np.isfinite(arrays["utility"][1])].tolist()
