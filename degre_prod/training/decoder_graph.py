"""The generator's decoders as ONNX nodes, one slot at a time: `degre_prod.models.decoders` with its interface.

A sequence of one is (1, 1, D) everywhere, so that a gathered row of z is an input without reshaping.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from degre_prod.models.generator import GeneratorSpec
from degre_prod.training.attention_graph import AttentionGraph
from degre_prod.training.graph_parts import Weights, linear
from degre_prod.training.onnx_graph import GraphBuilder, Value

State = tuple[Value, ...]


class DecoderGraph(Protocol):
    """Nodes of one kind of decoder, made of a generator's spec and weights."""

    def __init__(self, spec: GeneratorSpec, weights: Weights) -> None: ...

    def state_shapes(self) -> Sequence[Sequence[int | str]]:
        """float32 shapes of the state's tensors; strings name axes that grow."""

    def start(self, g: GraphBuilder, request: Value) -> State:
        """The state before the first input, from request_1X."""

    def step(self, g: GraphBuilder, x: Value, state: State) -> tuple[Value, State]:
        """One slot: input (1, 1, D) and state → h (1, 1, D), whose product with the keys are the logits, and the next state."""


class GruGraph:
    """One GRU operator a slot instead of thirteen nodes."""

    def __init__(self, spec: GeneratorSpec, weights: Weights) -> None:
        self._D, self._w = spec.width, weights

    def state_shapes(self) -> Sequence[Sequence[int | str]]:
        """h."""
        return [(1, 1, self._D)]

    def start(self, g: GraphBuilder, request: Value) -> State:
        """See DecoderGraph."""
        h = g.node("Tanh", linear(g, self._w, "decoder.initial", request))
        return (g.node("Unsqueeze", h, g.ints(0)),)

    def step(self, g: GraphBuilder, x: Value, state: State) -> tuple[Value, State]:
        """See DecoderGraph."""
        w, D = self._w, self._D
        # ONNX orders the gates update, reset, new; GatedCell reset, update, new.
        order = np.concatenate([np.arange(D, 2 * D), np.arange(D), np.arange(2 * D, 3 * D)])
        inputs, recurrent = (g.const(w[f"decoder.cell.{k}.weight"][order][None]) for k in ("input", "hidden"))
        bias = g.const(
            np.concatenate([w["decoder.cell.input.bias"][order], w["decoder.cell.hidden.bias"][order]])[None]
        )
        (h,) = state
        h = g.nodes("GRU", x, inputs, recurrent, bias, "", h, outputs=2, hidden_size=D, linear_before_reset=1)[1]
        return h, (h,)


DECODERS: dict[str, type[DecoderGraph]] = {"gru": GruGraph, "attention": AttentionGraph}


def decoder_nodes(spec: GeneratorSpec, weights: Weights) -> DecoderGraph:
    """The nodes of the decoder that the spec names."""
    return DECODERS[spec.decoder](spec, weights)


def first_input(g: GraphBuilder, w: Weights, request: Value) -> Value:
    """x (1, 1, D) of the first slot, from request_1X."""
    return g.node("Unsqueeze", linear(g, w, "first", request), g.ints(0))


def pointer_keys(g: GraphBuilder, w: Weights, z: Value, D: int) -> Value:
    """keys_DC: the pointer's query projection and its 1/√D are folded in, so a slot's logits are h · keys."""
    return g.node("Transpose", g.linear(z, (w["query.weight"].T @ w["key.weight"]).T * D**-0.5), perm=[1, 0])
