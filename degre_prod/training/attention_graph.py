"""The attention decoder as ONNX nodes, one slot at a time: the same function as `AttentionDecoder.step`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from degre_prod.models.attention import HEADS
from degre_prod.models.generator import GeneratorSpec
from degre_prod.training.graph_parts import Weights, linear, norm, perceptron
from degre_prod.training.onnx_graph import MICROSOFT, GraphBuilder, Value


class AttentionGraph:
    """See DecoderGraph. State: keys and values (H, t, D/H) of the t inputs so far; the slot is read from their length."""

    def __init__(self, spec: GeneratorSpec, weights: Weights) -> None:
        self._D, self._w = spec.width, weights

    def state_shapes(self) -> Sequence[Sequence[int | str]]:
        """Keys, values."""
        return [(HEADS, "filled", self._D // HEADS)] * 2

    def start(self, g: GraphBuilder, request: Value) -> tuple[Value, ...]:  # noqa: ARG002 - the request enters as the first input
        """See DecoderGraph."""
        empty = g.const(np.zeros((HEADS, 0, self._D // HEADS)))
        return empty, empty

    def step(self, g: GraphBuilder, x: Value, state: tuple[Value, ...]) -> tuple[Value, tuple[Value, ...]]:
        """See DecoderGraph."""
        w, D, block = self._w, self._D, "decoder.block"
        keys, values = state
        slot = g.node("Gather", g.const(w["decoder.slot.weight"]), g.node("Shape", keys, start=1, end=2))
        x = g.node("Add", g.reshape(x, 1, D), slot)
        scale = np.concatenate([np.full(D, (D // HEADS) ** -0.5), np.ones(2 * D)])  # of the queries
        weight, bias = w[f"{block}.qkv.weight"].T * scale, w[f"{block}.qkv.bias"] * scale
        projected = g.reshape(g.linear(norm(g, w, f"{block}.norm1", x), weight, bias), 3 * HEADS, 1, D // HEADS)
        q, k, v = g.nodes("Split", projected, outputs=3, axis=0)
        keys, values = g.node("Concat", keys, k, axis=1), g.node("Concat", values, v, axis=1)
        scores = g.node("FusedMatMul", q, keys, domain=MICROSOFT, transB=1)
        attended = g.reshape(g.node("MatMul", g.node("Softmax", scores, axis=-1), values), 1, D)
        x = g.node("Add", x, linear(g, w, f"{block}.out", attended))
        fed = perceptron(g, w, norm(g, w, f"{block}.norm2", x), f"{block}.ff1", f"{block}.ff2")
        h = norm(g, w, "decoder.norm", g.node("Add", x, fed))
        return g.reshape(h, 1, 1, D), (keys, values)
