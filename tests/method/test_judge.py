"""The judge: it sees whole lists both ways, learns from traffic of its own, and is kept and asked without loss."""

from __future__ import annotations

import json
from pathlib import Path

import crafted
import numpy as np
import pytest
import torch
from crafted import Crafted, L, N

from degre_prod.config import JudgeConfig
from degre_prod.encoding.encoder import load_encoder
from degre_prod.encoding.splits import encode_splits
from degre_prod.encoding.store import load_encoded
from degre_prod.evaluation.enumeration import random_lists, true_increments
from degre_prod.evaluation.ranking import spearman_by_request
from degre_prod.models.judge import Judge
from degre_prod.schema import load_schema
from degre_prod.training.data import to_batch
from degre_prod.training.judge import judge_spec, judged_utility, older_half, train_judge
from degre_prod.training.modules import load_judge
from degre_prod.worlds.simulate import simulate
from degre_prod.worlds.truth import load_world
from orchestration.bench.direct_join import join_by_id

SMALL = {"width": 16, "layers": 1, "epochs": 2, "batch_size": 4, "min_steps": 4}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Crafted:
    return crafted.crafted(tmp_path_factory.mktemp("judge"), counts=(N, 5, N, 2))


@pytest.fixture
def judge(world: Crafted) -> Judge:
    spec = judge_spec(world.encoder.schema, world.encoder.layout(), JudgeConfig(width=16, layers=1))
    torch.manual_seed(0)
    return Judge(spec).eval()


def test_every_slot_sees_the_whole_list_and_padding_is_not_seen(judge: Judge, world: Crafted) -> None:
    lists = np.array([[0, 1, 2]])
    with torch.no_grad():
        base = judge(to_batch(world.encoded, np.array([0]), only_BX=lists))
        later = judge(to_batch(world.encoded, np.array([0]), only_BX=np.array([[0, 1, 3]])))
        assert (base[0, 0] - later[0, 0]).abs().max() > 1e-6  # an evaluator's first slot could not know
        short = judge(to_batch(world.encoded, np.array([0]), only_BX=np.array([[0, 1, -1]])))
        cut = judge(to_batch(world.encoded, np.array([0]), only_BX=np.array([[0, 1]])))
        torch.testing.assert_close(short[:, :2], cut)
        nothing = judge(to_batch(world.encoded, np.array([0]), only_BX=np.array([[-1, -1, -1]])))
        assert torch.isfinite(nothing).all()


def test_utility_weighs_objectives_and_slots_and_padding_earns_nothing(world: Crafted) -> None:
    objectives = world.encoder.schema.objectives
    slotted = [o.model_copy(update={"slot_weights": (1.0, 0.5, 0.25)}) for o in objectives]
    schema = world.encoder.schema.model_copy(update={"objectives": tuple(slotted)})
    model = Judge(judge_spec(schema, world.encoder.layout(), JudgeConfig(width=16, layers=1))).eval()
    lists = np.array([[2, 0, 4], [1, 3, -1], [5, 1, 0], [1, 0, -1]])
    got = judged_utility(model, world.encoded, lists)
    for r, row in enumerate(lists):
        with torch.no_grad():
            chance = torch.sigmoid(model(to_batch(world.encoded, np.array([r]), only_BX=row[None])))[0].numpy()
        filled = [t for t in range(L) if row[t] >= 0]
        expected = sum(slotted[o].weight * 0.5**t * chance[t, o] for t in filled for o in range(2))
        assert got[r] == pytest.approx(expected, rel=1e-5)


def test_a_trained_judge_is_kept_whole_and_may_learn_from_the_older_half(tmp_path: Path) -> None:
    world = crafted.crafted(tmp_path, counts=(N,) * 12)
    kept = older_half(world.encoded)
    times = world.encoded.arrays["timestamp"]
    assert len(kept) == 6
    assert times[kept].max() < np.delete(times, kept).min()
    judged = {}
    for requests in ("all", "all again", "older_half"):
        folder = tmp_path / requests
        folder.mkdir()
        config = {"encoded": str(tmp_path), "folder": str(folder), "judge": SMALL}
        train_judge({**config, "requests": requests.removesuffix(" again")})
        assert {"judge.safetensors", "judge.json", "curves.json"} <= {p.name for p in folder.iterdir()}
        assert json.loads((folder / "judge.json").read_text())["width"] == 16
        judged[requests] = judged_utility(load_judge(folder), world.encoded, np.tile(np.arange(L), (12, 1)))
    np.testing.assert_array_equal(judged["all"], judged["all again"])
    assert np.abs(judged["all"] - judged["older_half"]).max() > 1e-6


def test_it_ranks_random_lists_as_the_truth_does(tmp_path: Path) -> None:
    simulate("substitutes", "small", tmp_path / "log", train=50, validation=10, test=100)
    simulate(
        "substitutes", "small", tmp_path / "random", train=4000, validation=300, test=1, exploration=1.0, traffic=1
    )
    given = None
    for name in ("log", "random"):
        rows, out = tmp_path / f"{name}_rows", tmp_path / f"{name}_encoded"
        rows.mkdir()
        join_by_id(tmp_path / name, rows)
        encode_splits(rows, load_schema(tmp_path / name), out, given)
        given = given or load_encoder(out / "encoder.json")
    assert (tmp_path / "random_encoded" / "encoder.json").read_text() == given.to_json()  # read like the first log
    folder = tmp_path / "judge"
    folder.mkdir()
    settings = JudgeConfig(width=16, epochs=8, min_steps=1).model_dump()
    encoded = str(tmp_path / "random_encoded")
    train_judge({"encoded": encoded, "folder": str(folder), "judge": settings, "requests": "all"})
    test = load_encoded(tmp_path / "log_encoded" / "test")
    ids = [[int(i) for i in row] for row in _candidates(tmp_path / "log", 100)]
    users = _users(tmp_path / "log", 100)
    lists = random_lists(100, 8, 4, 20, seed=3)
    truth = true_increments(load_world(tmp_path / "log"), users, np.array(ids), lists).sum(2)
    model = load_judge(folder)
    judged = np.stack([judged_utility(model, test, lists[:, k]) for k in range(20)], axis=1)
    assert np.nanmean(spearman_by_request(judged, truth)) > 0.5


def _candidates(dataset: Path, last: int) -> list[list[int]]:
    import pyarrow.parquet as pq

    return pq.read_table(dataset / "impressions.parquet")["candidate_ids"].to_pylist()[-last:]


def _users(dataset: Path, last: int) -> np.ndarray:
    import pyarrow.parquet as pq

    return pq.read_table(dataset / "impressions.parquet")["user_id"].to_numpy()[-last:]
