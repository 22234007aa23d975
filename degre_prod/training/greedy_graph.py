"""The whole greedy pass as one ONNX graph for one request: the same function as `Generator.decode`.

- the pointer's query projection is folded into the keys, so a slot is one decoder step and one product;
- used candidates get a penalty by scatter; margins and runners-up are left to whoever asks for them: the logits go out;
- what may never be chosen (exclusions, the trust region) is an input. Rules that depend on what was chosen before
  (gaps, quotas, pins, what must be included) are not in this graph: see `step_graph`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from degre_prod.models.generator import NEVER, Generator, GeneratorSpec
from degre_prod.training.decoder_graph import decoder_nodes, first_input, pointer_keys
from degre_prod.training.encoder_graph import encoder_nodes
from degre_prod.training.graph_parts import Weights, weights_of
from degre_prod.training.onnx_graph import GraphBuilder, Value


def export_onnx(generator: Generator, file: Path) -> None:
    """Write the graph: inputs are the generator's batch arrays for a batch of 1, C dynamic, and allowed_1C bool, false where
    a candidate is seen but never chosen; outputs order_1L, and logits_1LC with the candidates in ascending prior rank, near
    NEVER where one could not be chosen.

    Past the last allowed candidate `order` is meaningless: callers cut there.
    """
    w, spec = weights_of(generator), generator.spec
    L = spec.layout.list_length
    g = GraphBuilder()
    encoded = encoder_nodes(g, w, generator)
    allowed = g.node("Gather", g.input("allowed", np.bool_, (1, "C")), encoded.by_rank, axis=1)
    penalty = g.node("Where", allowed, g.const(0.0), g.const(NEVER))
    chosen, logits = _pointer(g, w, spec, encoded.z, encoded.request, penalty)
    order = g.node("Gather", encoded.by_rank, chosen)
    g.save(str(file), {"order": (order, np.int64, (1, L)), "logits": (logits, np.float32, (1, L, "C"))})


def _pointer(
    g: GraphBuilder, w: Weights, spec: GeneratorSpec, z: Value, request: Value, penalty: Value
) -> tuple[Value, Value]:
    """chosen_1L and logits_1LC, candidates in prior-rank order."""
    D, L = spec.width, spec.layout.list_length
    decoder = decoder_nodes(spec, w)
    keys, penalty = pointer_keys(g, w, z, D), g.reshape(penalty, -1)
    x, state = first_input(g, w, request), decoder.start(g, request)
    chosen: list[Value] = []  # (1, 1) each, so that a gathered row is a sequence of one, (1, 1, D), without reshaping
    logits: list[Value] = []
    for step in range(L):
        if step:
            penalty = g.node("ScatterND", penalty, chosen[-1], g.const([NEVER]))
            x = g.node("Gather", z, chosen[-1])
        h, state = decoder.step(g, x, state)
        logits.append(g.node("Add", g.node("MatMul", h, keys), penalty))
        chosen.append(g.node("ArgMax", logits[-1], axis=2, keepdims=0))
    return g.node("Concat", *chosen, axis=1), g.node("Concat", *logits, axis=1)
