"""The exported graph against the PyTorch model it was written from: the same lists, on every layout and any number of candidates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from degre_prod.bundle.decoder import Decoder, open_decoder
from degre_prod.encoding.encoder import GROUPS, Encoded, Layout
from degre_prod.models.decoders import DecoderForm
from degre_prod.models.generator import Generator, GeneratorSpec
from degre_prod.training.greedy_graph import export_onnx
from degre_prod.training.step_graph import export_steps

L = 4
NUMBERS = Layout({"item": 8, "prior": 6, "user": 4, "context": 1}, dict.fromkeys(GROUPS, ()), L, 1)
CATEGORIES = Layout(
    {"item": 3, "prior": 3, "user": 1, "context": 2},
    {"item": (5,), "prior": (4, 9), "user": (3, 3), "context": (7,)},
    L,
    1,
)


def model(layout: Layout, folder: Path, layers: int = 1, decoder: DecoderForm = "gru") -> tuple[Generator, Decoder]:
    torch.manual_seed(0)
    generator = Generator(GeneratorSpec(layout, 16, layers, decoder)).eval()
    with torch.no_grad():  # biases and norms start at 0 and 1, which would hide a mistake in folding them
        for parameter in generator.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    export_onnx(generator, folder / "generator.onnx")
    export_steps(generator, folder / "encode.onnx", folder / "step.onnx")
    return generator, open_decoder(*(folder / f"{name}.onnx" for name in ("generator", "encode", "step")))


def encoded(layout: Layout, C: int, rng: np.random.Generator) -> Encoded:
    out: Encoded = {"prior_rank_C": rng.permutation(C)}
    for group in GROUPS:
        rows = (C,) if group in ("item", "prior") else ()
        axes = "CF" if rows else "F"
        out[f"{group}_num_{axes}"] = rng.normal(size=(*rows, layout.num[group])).astype(np.float32)
        out[f"{group}_cat_{axes}"] = rng.integers(0, layout.cat[group], (*rows, len(layout.cat[group])))
    return out


def eager(generator: Generator, arrays: Encoded) -> tuple[np.ndarray, np.ndarray]:
    C = len(arrays["prior_rank_C"])
    batch = {name.rsplit("_", 1)[0]: torch.from_numpy(a)[None] for name, a in arrays.items()}
    with torch.inference_mode():
        order, margins = generator.decode(batch | {"mask": torch.ones(1, C, dtype=torch.bool)}, L)
    return order[0, : min(L, C)].numpy(), margins[0, : min(L, C)].numpy()


@pytest.mark.parametrize("layout", [NUMBERS, CATEGORIES], ids=["numbers", "categories"])
@pytest.mark.parametrize("layers", [1, 2])
def test_lists_and_margins_are_those_of_pytorch(layout: Layout, layers: int, tmp_path: Path) -> None:
    generator, decoder = model(layout, tmp_path, layers)
    rng = np.random.default_rng(1)
    for C in (1, 2, 3, 4, 5, 30, 100) * 4:
        arrays = encoded(layout, C, rng)
        order, margins = eager(generator, arrays)
        decoded = decoder.decode(arrays, L)
        assert decoded.order.tolist() == order.tolist()
        rivals = C - 1 if C <= L else L  # the last candidate has none
        np.testing.assert_allclose(decoded.margins[:rivals], margins[:rivals], atol=1e-4, rtol=1e-4)
        assert np.isinf(decoded.margins[rivals:]).all()


def test_equal_candidates_come_in_the_order_of_their_prior_rank(tmp_path: Path) -> None:
    _, decoder = model(NUMBERS, tmp_path)
    arrays = encoded(NUMBERS, 6, np.random.default_rng(2))
    for name in ("item_num_CF", "prior_num_CF"):
        arrays[name][:] = arrays[name][0]
    decoded = decoder.decode(arrays, L)
    assert decoded.order.tolist() == np.argsort(arrays["prior_rank_C"])[:L].tolist()
    assert decoded.margins.tolist() == [0.0] * L


def test_permuting_the_candidates_permutes_the_answer(tmp_path: Path) -> None:
    _, decoder = model(CATEGORIES, tmp_path)
    rng = np.random.default_rng(3)
    arrays = encoded(CATEGORIES, 20, rng)
    moved = rng.permutation(20)
    there = {n: a[moved] if n.endswith(("_C", "_CF")) else a for n, a in arrays.items()}
    assert moved[decoder.decode(there, L).order].tolist() == decoder.decode(arrays, L).order.tolist()


def test_length_is_cut_at_what_there_is(tmp_path: Path) -> None:
    _, decoder = model(NUMBERS, tmp_path)
    arrays = encoded(NUMBERS, 3, np.random.default_rng(4))
    assert sorted(decoder.decode(arrays, 99).order.tolist()) == [0, 1, 2]
    assert len(decoder.decode(arrays, 2).order) == 2
