"""The generator: equivariant, valid, deterministic, able to memorise, and the same in ONNX Runtime (METHOD §5)."""

from __future__ import annotations

from pathlib import Path

import crafted
import numpy as np
import pytest
import torch
from crafted import Crafted, L, N

from degre_prod.bundle import Bundle
from degre_prod.distill.dataset import DenseTargets
from degre_prod.evaluation.methods import encoded_request
from degre_prod.models.generator import Generator, GeneratorSpec
from degre_prod.training.data import TensorBatch, to_batch
from degre_prod.training.export import Lineage, write_bundle
from degre_prod.training.generator import dense_loss
from degre_prod.training.group import Worker
from degre_prod.training.loop import Schedule, fit

NEAR = 1e-4  # a smaller margin may be settled differently by another order of summing


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Crafted:
    counts = [int(n) for n in np.random.default_rng(0).integers(1, N + 1, 60)]
    return crafted.crafted(tmp_path_factory.mktemp("world"), counts=counts)


@pytest.fixture(scope="module", params=["gru", "attention"])
def model(request: pytest.FixtureRequest, world: Crafted) -> Generator:
    return crafted.generator(world.encoder, decoder=request.param)


@pytest.fixture(scope="module")
def batch(world: Crafted) -> TensorBatch:
    return to_batch(world.encoded, np.arange(len(world.encoded)))


def decode(model: Generator, batch: TensorBatch) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        return model.decode(batch, L)


def test_permuting_the_candidates_permutes_the_answer(model: Generator, batch: TensorBatch) -> None:
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    before, margins = decode(model, batch)
    after, moved_margins = decode(model, crafted.permuted(batch, order))
    for r, n in enumerate(batch["mask"].sum(1).tolist()):
        assert order[after[r]][:n].tolist() == before[r][:n].tolist()
        torch.testing.assert_close(moved_margins[r, : n - 1], margins[r, : n - 1], rtol=1e-4, atol=1e-5)


def test_no_item_twice_and_no_padding(model: Generator, batch: TensorBatch) -> None:
    order, margins = decode(model, crafted.padded(batch, 4))
    plain, _ = decode(model, batch)
    for r, n in enumerate(batch["mask"].sum(1).tolist()):
        chosen = order[r][: min(n, L)].tolist()
        assert len(set(chosen)) == len(chosen)
        assert all(c < n for c in chosen)
        assert chosen == plain[r][: min(n, L)].tolist()
        assert (margins[r][: min(n - 1, L)] >= 0).all()
        assert (margins[r][: min(n - 1, L)] < 1e6).all()
        if n <= L:
            assert margins[r, n - 1] > 1e8  # nothing else was left


def test_ties_go_to_the_smaller_prior_rank(model: Generator, world: Crafted, batch: TensorBatch) -> None:
    model = crafted.zeroed(crafted.generator(world.encoder, decoder=model.spec.decoder))
    full = {name: value[batch["mask"].all(1)] for name, value in batch.items()}
    order, margins = decode(model, full)
    assert (order == torch.arange(L)).all()
    assert (margins == 0).all()
    permutation = torch.tensor([4, 2, 0, 5, 1, 3])
    order, _ = decode(model, crafted.permuted(full, permutation))
    assert (permutation[order] == torch.arange(L)).all()


def test_teacher_forced_logits_are_those_of_the_greedy_pass(model: Generator, batch: TensorBatch) -> None:
    full = {name: value[batch["mask"].sum(1) > L] for name, value in batch.items()}
    order, margins = decode(model, full)
    with torch.inference_mode():
        logits = model.teacher_forced(full, torch.stack([order, order.flip(1)], dim=1))[:, 0]
    top = logits.topk(2, dim=-1)
    assert torch.equal(top.indices[..., 0], order)
    torch.testing.assert_close(top.values[..., 0] - top.values[..., 1], margins, rtol=1e-4, atol=1e-5)


def test_teacher_forcing_masks_what_is_used_and_what_is_padding(model: Generator, batch: TensorBatch) -> None:
    lists = torch.arange(L).expand(len(batch["mask"]), 1, L)
    with torch.inference_mode():
        logits = model.teacher_forced(batch, lists)[:, 0]
    for t in range(L):
        forbidden = ~batch["mask"].clone()
        forbidden[:, :t] = True
        assert ((logits[:, t] < -1e8) == forbidden).all()


def test_it_memorises_one_hundred_requests(tmp_path: Path) -> None:
    world = crafted.crafted(tmp_path / "world", counts=(N,) * 100, seed=3)
    rng = np.random.default_rng(0)
    lists = np.stack([rng.permutation(N)[:L] for _ in range(100)])
    soft = np.zeros((100, 1, L, N), np.float32)
    for t in range(L):
        soft[np.arange(100), 0, t, lists[:, t]] = 1.0
    targets = DenseTargets(np.arange(100), lists[:, None], lists[:, None], soft, np.ones((100, 1), np.float32))
    torch.manual_seed(0)
    model = Generator(GeneratorSpec(world.encoder.layout(), 32, 1))
    everyone = np.arange(100)
    fit(
        model,
        dense_loss(model, world.encoded, targets, 0.5),
        train=everyone,
        validation=everyone,
        schedule=Schedule(epochs=100, batch_size=25, learning_rate=5e-3, weight_decay=0.0, seed=0),
        worker=Worker(0, 1),
        folder=tmp_path,
        name="generator",
    )
    order, _ = decode(model, to_batch(world.encoded, everyone))
    assert (order.numpy() == lists).all(1).mean() >= 0.99


@pytest.fixture(scope="module", params=["item features", "every kind of column"])
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Generator, Crafted, Bundle]:
    """1,000 requests of 1 to 12 candidates, and a bundle around a random generator for them."""
    folder = tmp_path_factory.mktemp("exported")
    counts = [int(n) for n in np.random.default_rng(1).integers(1, 13, 1000)]
    changes = {"list_length": 5, "max_candidates": 12}
    if request.param != "item features":
        changes = crafted.rich(**changes)
    world = crafted.crafted(folder / "world", counts=counts, seed=5, **changes)
    model = crafted.generator(world.encoder, width=32, seed=1)
    lineage = Lineage("crafted", crafted.MOMENT, "a", "b", "c", (crafted.MOMENT, crafted.MOMENT), {})
    return model, world, write_bundle(folder / "bundle", model, world.encoder, world.rows[:8], lineage)


def test_onnx_runtime_gives_the_lists_of_pytorch(exported: tuple[Generator, Crafted, Bundle]) -> None:
    model, world, bundle = exported
    length, count = 5, len(world.encoded)
    with torch.inference_mode():
        order, margins = model.decode(to_batch(world.encoded, np.arange(count)), length)
    equal = 0
    for r, (request, user, items) in enumerate(world.rows):
        n = min(len(request.candidate_ids), length)
        got = bundle.decode(encoded_request(world.encoded, r), length)
        assert got.order.shape == got.margins.shape == (n,)
        assert got.margins.dtype == np.float32
        expected = order[r, :n].tolist()
        if got.order.tolist() == expected:
            equal += 1
            alone = np.isinf(got.margins)
            assert alone.tolist() == [len(request.candidate_ids) - t == 1 for t in range(n)]
            np.testing.assert_allclose(got.margins[~alone], margins[r, :n].numpy()[~alone], rtol=1e-3, atol=NEAR)
        else:
            first = int(np.flatnonzero(got.order != np.array(expected))[0])
            assert float(margins[r, first]) < NEAR
        assert bundle.answer(request, user, items, length) == [request.candidate_ids[c] for c in got.order]
    assert equal >= 0.999 * count


def test_a_shorter_list_is_the_beginning_of_the_longer_one(exported: tuple[Generator, Crafted, Bundle]) -> None:
    _, world, bundle = exported
    for r in range(20):
        encoded = encoded_request(world.encoded, r)
        whole = bundle.decode(encoded, 5)
        for length in (1, 3, 50):
            part = bundle.decode(encoded, length)
            assert part.order.tolist() == whole.order[:length].tolist()


def test_what_explains_an_answer_is_what_the_network_says(exported: tuple[Generator, Crafted, Bundle]) -> None:
    """Logits of the chosen items and the runners-up, against teacher forcing along the answer."""
    model, world, bundle = exported
    for r in range(60):
        encoded = encoded_request(world.encoded, r)
        got = bundle.decode(encoded, 5)
        assert got.logits is not None
        assert got.runner_up is not None
        with torch.inference_mode():
            batch = to_batch(world.encoded, np.array([r]))
            logits = model.teacher_forced(batch, torch.from_numpy(got.order.astype(np.int64))[None, None])[0, 0]
        chosen = logits.gather(1, torch.from_numpy(got.order.astype(np.int64))[:, None])[:, 0].numpy()
        np.testing.assert_allclose(got.logits, chosen, rtol=1e-3, atol=NEAR)
        for t, runner_up in enumerate(got.runner_up.tolist()):
            if runner_up < 0:
                assert np.isinf(got.margins[t])
            else:
                assert runner_up not in got.order[: t + 1]
                assert chosen[t] - float(logits[t, runner_up]) == pytest.approx(float(got.margins[t]), abs=1e-3)
