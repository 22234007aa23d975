"""`degre bench mining`: both sides find the same lists, and what is timed is what mining does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import crafted
import numpy as np
import pytest
import torch
from crafted import N

from degre_prod.config import MiningConfig
from degre_prod.mining.beam import union_search
from degre_prod.mining.mine import mine_requests
from degre_prod.training.data import to_batch
from orchestration.bench import mining
from orchestration.bench.mining_kills import Job, bench_kills
from orchestration.bench.reencoding import Keep, ReencodingEvaluator


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("keep", ["tokens", "fields"])
@pytest.mark.parametrize("form", ["attention", "additive", "products"])
@pytest.mark.parametrize("position_free", [False, True])
def test_encoding_every_prefix_anew_finds_the_same_lists(
    tmp_path: Path, keep: Keep, form: str, position_free: bool
) -> None:
    made = crafted.crafted(tmp_path, counts=(N, 5, N, 4), position_free=position_free)
    model = crafted.evaluator(made.encoder, form)
    anew = ReencodingEvaluator(model, keep)
    batch = to_batch(made.encoded, np.arange(4))
    one, other = (union_search(m, m.prepare(batch), batch["mask"], width=4) for m in (model, anew))
    assert torch.equal(one.lists, other.lists)
    torch.testing.assert_close(one.utility, other.utility, rtol=1e-5, atol=1e-5)
    settings = MiningConfig(beam_width=4, keep=3)
    cached, made_anew = (mine_requests(m, made.encoded, np.arange(4), settings) for m in (model, anew))
    for name, value in cached.items():
        np.testing.assert_allclose(made_anew[name], value, rtol=1e-5, atol=1e-5)


def test_every_form_is_timed_on_the_same_requests(tmp_path: Path) -> None:
    bed = mining.make_bed(tmp_path, 6, size="small")
    rates = mining.measure_one_core(bed, 4, 1)
    assert set(rates["search"]) == {"default", "additive", "attention", "reencoding", "reencoding from fields"}
    for form in ("default", "additive", "attention", "reencoding"):
        assert len(rates["mining"][form]["repeats"]) == 1
        assert 0 < rates["mining"][form]["requests_per_s"] < rates["search"][form]["requests_per_s"]


def test_mining_killed_and_started_again_leaves_the_same_files(tmp_path: Path) -> None:
    found = bench_kills(tmp_path, 2, workers=0, requests=240, shard_size=4)
    assert (found["kills"], found["of_the_driver"]) == (2, 2)
    assert found["files_equal"] is True
    assert found["shards_recomputed"] == 0


@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_group_killed_leaves_the_same_files(tmp_path: Path) -> None:
    found = bench_kills(tmp_path, 1, workers=2, requests=240, shard_size=4)
    assert (found["kills"], found["files_equal"], found["shards_recomputed"]) == (1, True, 0)


def test_a_shard_made_again_is_noticed(tmp_path: Path) -> None:
    job = Job({"folder": str(tmp_path)})
    shard = tmp_path / "shard-00000.npz"
    shard.write_bytes(b"one")
    job.note_committed()
    assert job.recomputed() == 0
    other = tmp_path / "other"
    other.write_bytes(b"one")
    other.replace(shard)
    assert job.recomputed() == 1
