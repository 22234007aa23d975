"""Both decoders: one step at a time is the whole list at once, in PyTorch and in ONNX Runtime; older weights still load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import crafted
import numpy as np
import pytest
import torch
from crafted import Crafted, L, N
from safetensors.torch import save_file

from degre_prod.bundle.decoder import open_decoder
from degre_prod.errors import MismatchError
from degre_prod.evaluation.methods import encoded_request
from degre_prod.models.decoders import DecoderForm, make_decoder, repeat
from degre_prod.models.generator import NEVER, Generator
from degre_prod.training.data import TensorBatch, to_batch
from degre_prod.training.greedy_graph import export_onnx
from degre_prod.training.modules import load_generator, save_module
from degre_prod.training.step_graph import export_steps

FORMS: tuple[DecoderForm, ...] = ("gru", "attention")
D = 16


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Crafted:
    counts = [int(n) for n in np.random.default_rng(0).integers(1, N + 1, 200)]
    return crafted.crafted(tmp_path_factory.mktemp("world"), counts=counts)


@pytest.fixture(scope="module", params=FORMS)
def model(request: pytest.FixtureRequest, world: Crafted) -> Generator:
    return crafted.generator(world.encoder, decoder=request.param)


@pytest.fixture(scope="module")
def batch(world: Crafted) -> TensorBatch:
    return to_batch(world.encoded, np.arange(len(world.encoded)))


def decode(model: Generator, batch: TensorBatch) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.inference_mode():
        return model.decode(batch, L)


@pytest.mark.parametrize("form", FORMS)
def test_step_by_step_gives_what_the_whole_sequence_gives(form: DecoderForm) -> None:
    torch.manual_seed(0)
    decoder: Any = make_decoder(form, D, slots=6)
    request, x = torch.randn(5, 3 * D), torch.randn(5, 6, D)
    with torch.inference_mode():
        state = decoder.start(request)
        whole = decoder.sequence(x, state)
        for t in range(6):
            h, state = decoder.step(x[:, t], state)
            torch.testing.assert_close(h, whole[:, t], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_no_step_sees_a_later_input_and_each_sees_the_earlier_ones(form: DecoderForm) -> None:
    torch.manual_seed(1)
    decoder: Any = make_decoder(form, D, slots=6)
    request, x = torch.randn(1, 3 * D), torch.randn(1, 6, D)
    other = x.clone()
    other[:, 3] *= -1
    with torch.inference_mode():
        change = (decoder.sequence(x, decoder.start(request)) - decoder.sequence(other, decoder.start(request))).abs()
    assert (change[:, :3] == 0).all()
    assert (change[:, 3:].amax(-1) > 1e-4).all()


def test_the_attention_decoder_knows_the_slot() -> None:
    torch.manual_seed(2)
    decoder: Any = make_decoder("attention", D, slots=4)
    with torch.inference_mode():
        same = decoder.sequence(torch.ones(1, 4, D), decoder.start(torch.zeros(1, 3 * D)))
    assert (same[:, 1:] - same[:, :1]).abs().amax() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_a_repeated_state_serves_several_lists_of_one_request(form: DecoderForm) -> None:
    torch.manual_seed(3)
    decoder: Any = make_decoder(form, D, slots=4)
    request, x = torch.randn(2, 3 * D), torch.randn(6, 4, D)
    with torch.inference_mode():
        got = decoder.sequence(x, repeat(decoder.start(request), 3))
        alone = decoder.sequence(x[4:5], decoder.start(request[1:]))
    torch.testing.assert_close(got[4:5], alone, rtol=1e-5, atol=1e-5)


def test_what_is_not_feasible_is_masked_and_nothing_else_changes(model: Generator, batch: TensorBatch) -> None:
    full = {name: value[batch["mask"].all(1)] for name, value in batch.items()}
    lists = torch.stack([torch.randperm(N)[:L] for _ in full["mask"]]).unsqueeze(1)
    feasible = torch.rand(len(lists), 1, L, N, generator=torch.Generator().manual_seed(0)) < 0.6
    with torch.inference_mode():
        free, bound = model.teacher_forced(full, lists), model.teacher_forced(full, lists, feasible)
    assert torch.equal(bound, free.masked_fill(~feasible, NEVER))


def test_the_greedy_graph_gives_the_lists_of_pytorch(
    model: Generator, world: Crafted, batch: TensorBatch, tmp_path: Path
) -> None:
    export_onnx(model, tmp_path / "generator.onnx")
    decoder = open_decoder(tmp_path / "generator.onnx")
    order, margins = decode(model, batch)
    for r, n in enumerate(batch["mask"].sum(1).tolist()):
        got = decoder.decode(encoded_request(world.encoded, r), L)
        assert got.order.tolist() == order[r, : min(n, L)].tolist()
        rivals = min(n - 1, L)
        np.testing.assert_allclose(got.margins[:rivals], margins[r, :rivals].numpy(), rtol=1e-3, atol=1e-4)


def test_the_step_graph_gives_the_logits_of_teacher_forcing(
    model: Generator, batch: TensorBatch, tmp_path: Path
) -> None:
    import onnxruntime

    export_steps(model, tmp_path / "encode.onnx", tmp_path / "step.onnx")
    encode, step = (onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx")) for name in ("encode", "step"))
    for r in np.flatnonzero(batch["mask"].all(1).numpy())[:10]:
        one = {name: value[r : r + 1] for name, value in batch.items()}
        chosen = np.random.default_rng(r).permutation(N)[:L]  # places in the order of the prior rank
        by_rank = one["prior_rank"][0].argsort()
        with torch.inference_mode():
            expected = model.teacher_forced(one, by_rank[torch.from_numpy(chosen)].view(1, 1, L))[0, 0][:, by_rank]
        fed = {i.name for i in encode.get_inputs()}
        given = {name: value.numpy() for name, value in one.items() if name in fed}
        made = dict(zip([o.name for o in encode.get_outputs()], encode.run(None, given), strict=True))
        z, keys, x = made["z"], made["keys"], made["x"]
        state = [made[f"state_{i}"] for i in range(len(made) - 3)]
        for t in range(L):
            feed = {"x": x, "keys": keys} | {f"state_{i}": s for i, s in enumerate(state)}
            logits, *state = step.run(None, feed)
            there = expected[t].numpy() > NEVER / 2
            np.testing.assert_allclose(logits[there], expected[t].numpy()[there], rtol=1e-3, atol=1e-4)
            x = z[chosen[t]][None, None]


def test_a_generator_comes_back_from_disk(model: Generator, batch: TensorBatch, tmp_path: Path) -> None:
    save_module(model, model.spec, tmp_path, "generator")
    back = load_generator(tmp_path)
    assert back.spec == model.spec
    assert torch.equal(decode(back, batch)[0], decode(model, batch)[0])


def test_weights_from_before_there_were_two_decoders_load(world: Crafted, batch: TensorBatch, tmp_path: Path) -> None:
    model = crafted.generator(world.encoder)
    save_module(model, model.spec, tmp_path, "generator")
    older = {k.replace("decoder.", ""): v.contiguous() for k, v in model.state_dict().items()}
    assert {"initial.weight", "cell.input.bias"} <= set(older)
    save_file(older, tmp_path / "generator.safetensors")
    spec = json.loads((tmp_path / "generator.json").read_text())
    del spec["decoder"]
    (tmp_path / "generator.json").write_text(json.dumps(spec))
    back = load_generator(tmp_path)
    assert back.spec.decoder == "gru"
    assert torch.equal(decode(back, batch)[1], decode(model, batch)[1])


def test_weights_of_the_other_decoder_are_refused(world: Crafted, tmp_path: Path) -> None:
    model = crafted.generator(world.encoder, decoder="attention")
    save_module(model, crafted.generator(world.encoder).spec, tmp_path, "generator")
    with pytest.raises(MismatchError, match=r"does not fit generator\.json"):
        load_generator(tmp_path)
