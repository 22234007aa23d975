"""The generator's greedy pass as an ONNX graph for one request, arranged for one core.

The same function as `Generator.decode`, with what is constant multiplied out beforehand (in float64):

- a group's linear map and its embedding tables are folded with the token's query, key, value and output projections, so
  that a field costs its few columns instead of 3 · D, and user and context are projected once, not once a candidate;
- the pointer's query projection and its 1/√D are folded into the keys, so a step is one GRU cell and one product;
- ties: candidates are brought into the order of the prior rank first; the first largest logit is then the right one;
- used candidates get a penalty by scatter, and the margins of all steps are read at the end by one top-2.

Written node by node: the exporters turn the same arithmetic into four times as many nodes, each of which costs a
microsecond on the request path.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import numpy as np

from degre_prod.encoding.store import CANDIDATE_ARRAYS, REQUEST_ARRAYS
from degre_prod.models.generator import NEVER, Generator, SetBlock
from degre_prod.training.onnx_graph import MICROSOFT, GraphBuilder, Value

Weights = dict[str, np.ndarray]  # float64, by the names of the state dictionary


def export_onnx(generator: Generator, file: Path) -> None:
    """Write the graph: inputs are the generator's batch arrays for a batch of 1, C dynamic; outputs order_1L, margins_1L,
    the chosen items' logits_1L, runner_up_1L (indices, -1: nobody; meaningless where the margin says that nothing was left).

    Arrays without columns are no inputs. Past the last candidate `order` is meaningless: callers cut there.
    """
    weights = {name: tensor.detach().double().numpy() for name, tensor in generator.state_dict().items()}
    layout, D = generator.spec.layout, generator.spec.width
    g = GraphBuilder()
    arrays: dict[str, Value] = {}
    for name in (*CANDIDATE_ARRAYS, *REQUEST_ARRAYS):
        group, kind = name.rsplit("_", 1)
        width = layout.num[group] if kind == "num" else len(layout.cat[group])
        if width:
            shape = (1, "C", width) if name in CANDIDATE_ARRAYS else (1, width)
            arrays[name] = g.input(name, np.float32 if kind == "num" else np.int64, shape)
    mask = g.input("mask", np.bool_, (1, "C"))
    by_rank = _by_prior_rank(g, g.input("prior_rank", np.int64, (1, "C")))
    for name in CANDIDATE_ARRAYS:
        if name in arrays:
            arrays[name] = g.node("Gather", g.node("Squeeze", arrays[name], g.ints(0)), by_rank, axis=0)
    mask = g.node("Gather", mask, by_rank, axis=1)
    penalty = g.node("Where", mask, g.const(0.0), g.const(NEVER))  # (1, C)

    fields = [
        _field(g, weights, group, arrays, len(layout.cat[group]), D) for group in ("item", "prior", "user", "context")
    ]
    z = _token(g, weights, fields, D)
    for layer, block in enumerate(cast(Iterable[SetBlock], generator.blocks)):
        z = _block(g, weights, f"blocks.{layer}", z, penalty, D, block.heads)
    z = _norm(g, weights, "norm", z)
    user, context = (g.node("Slice", f, g.ints(0), g.ints(D), g.ints(1)) for f in fields[2:])
    request = g.node("Concat", user, context, _mean(g, z, mask), axis=1)
    order, margins, logits, runner_up = _pointer(g, weights, z, request, penalty, D, layout.list_length)
    order = g.node("Gather", by_rank, order)
    runner_up = g.node("Gather", g.node("Concat", by_rank, g.ints(-1), axis=0), runner_up)  # -1: nobody
    of_indices, of_logits = (np.int64, (1, layout.list_length)), (np.float32, (1, layout.list_length))
    outputs: dict[str, tuple[Value, type, tuple[int, ...]]] = {
        "order": (order, *of_indices),
        "margins": (margins, *of_logits),
    }
    outputs |= {"logits": (logits, *of_logits), "runner_up": (runner_up, *of_indices)}
    g.save(str(file), outputs)


def _by_prior_rank(g: GraphBuilder, prior_rank: Value) -> Value:
    """Indices (C,) of the candidates in ascending prior rank."""
    rank = g.reshape(prior_rank, -1)
    return g.nodes("TopK", rank, g.node("Shape", rank), outputs=2, axis=0, largest=0, sorted=1)[1]


def _field(g: GraphBuilder, w: Weights, group: str, arrays: dict[str, Value], categories: int, D: int) -> Value:
    """(X, 4D): the field itself | query | key | value, the last one through the output projection."""
    query, key, value = np.split(w["token.qkv.weight"], 3)
    query_bias, key_bias, value_bias = np.split(w["token.qkv.bias"], 3)
    out, scale = w["token.out.weight"], D**-0.5
    spread = np.concatenate([np.eye(D), query.T * scale, key.T, (out @ value).T], axis=1)
    # Attention weights sum to 1, so the output's bias may ride on the values.
    bias = np.concatenate([np.zeros(D), query_bias * scale, key_bias, out @ value_bias + w["token.out.bias"]])
    linear = w[f"fields.linear.{group}.weight"].T @ spread
    x = g.linear(arrays[f"{group}_num"], linear, w[f"fields.linear.{group}.bias"] @ spread + bias)
    if categories:
        columns = (
            g.nodes("Split", arrays[f"{group}_cat"], outputs=categories, axis=-1)
            if categories > 1
            else [arrays[f"{group}_cat"]]
        )
        for j, column in enumerate(columns):
            table = g.const(w[f"fields.tables.{group}.{j}.weight"] @ spread)
            x = g.node("Add", x, g.node("Gather", table, g.reshape(column, -1)))
    return x


def _token(g: GraphBuilder, w: Weights, fields: list[Value], D: int) -> Value:
    """z_CD: attention among the four fields of each candidate, pooled together with item ⊙ user."""
    C = g.node("Shape", fields[0], start=0, end=1)
    spread = g.node("Concat", C, g.ints(8 * D), axis=0)
    request = g.node("Expand", g.node("Concat", *fields[2:], axis=1), spread)
    stacked = g.reshape(g.node("Concat", *fields[:2], request, axis=1), -1, 4, 4 * D)
    x, query, key, value = g.nodes("Split", stacked, outputs=4, axis=2)
    scores = g.node("FusedMatMul", query, key, domain=MICROSOFT, transB=1)
    x = g.node("Add", x, g.node("MatMul", g.node("Softmax", scores, axis=-1), value))
    item, user = (g.node("Slice", f, g.ints(0), g.ints(D), g.ints(1)) for f in (fields[0], fields[2]))
    pooled = g.node("Concat", g.reshape(x, -1, 4 * D), g.node("Mul", item, user), axis=1)
    return _perceptron(g, w, pooled, "token.pool1", "token.pool2")


def _block(g: GraphBuilder, w: Weights, name: str, x: Value, penalty: Value, D: int, heads: int) -> Value:
    """x_CD → x_CD through one SetBlock."""
    normed = _norm(g, w, f"{name}.norm1", x)
    weight, bias = w[f"{name}.qkv.weight"].T.copy(), w[f"{name}.qkv.bias"].copy()
    scale = (D // heads) ** -0.5
    weight[:, :D] *= scale
    bias[:D] *= scale
    qkv = g.reshape(g.linear(normed, weight, bias), -1, 3 * heads, D // heads)
    qkv = g.node("Transpose", qkv, perm=[1, 0, 2])
    query, key, value = g.nodes("Split", qkv, outputs=3, axis=0)
    scores = g.node("Add", g.node("FusedMatMul", query, key, domain=MICROSOFT, transB=1), penalty)
    attended = g.node("MatMul", g.node("Softmax", scores, axis=-1), value)
    attended = g.reshape(g.node("Transpose", attended, perm=[1, 0, 2]), -1, D)
    x = g.node("Add", x, _linear(g, w, f"{name}.out", attended))
    return g.node("Add", x, _perceptron(g, w, _norm(g, w, f"{name}.norm2", x), f"{name}.ff1", f"{name}.ff2"))


def _mean(g: GraphBuilder, z: Value, mask: Value) -> Value:
    """mean_1D over the candidates that are there."""
    there = g.node("Cast", mask, to=1)
    count = g.node("Max", g.node("ReduceSum", there, g.ints(1), keepdims=1), g.const(1.0))
    return g.node("Div", g.node("MatMul", there, z), count)


def _pointer(
    g: GraphBuilder, w: Weights, z: Value, request: Value, penalty: Value, D: int, length: int
) -> tuple[Value, Value, Value, Value]:
    """order_1L, margins_1L, the chosen logits_1L, runner_up_1L; indices in prior-rank order.

    One candidate more, never chosen, is every last one's rival: index C.
    """
    keys = g.node("Transpose", g.linear(z, (w["query.weight"].T @ w["key.weight"]).T * D**-0.5), perm=[1, 0])
    keys = g.node("Concat", keys, g.const(np.zeros((D, 1))), axis=1)
    penalty = g.node("Concat", g.reshape(penalty, -1), g.const([2 * NEVER]), axis=0)
    # ONNX orders the gates update, reset, new; GatedCell reset, update, new.
    order = np.concatenate([np.arange(D, 2 * D), np.arange(D), np.arange(2 * D, 3 * D)])
    inputs, recurrent = (g.const(w[f"cell.{k}.weight"][order][None]) for k in ("input", "hidden"))
    bias = g.const(np.concatenate([w["cell.input.bias"][order], w["cell.hidden.bias"][order]])[None])
    x = g.node("Unsqueeze", _linear(g, w, "first", request), g.ints(0))
    h = g.node("Unsqueeze", g.node("Tanh", _linear(g, w, "initial", request)), g.ints(0))
    chosen: list[Value] = []  # (1, 1) each, so that a gathered row is a sequence of one, (1, 1, D), without reshaping
    logits: list[Value] = []
    for step in range(length):
        if step:
            penalty = g.node("ScatterND", penalty, chosen[-1], g.const([NEVER]))
            x = g.node("Gather", z, chosen[-1])
        h = g.nodes("GRU", x, inputs, recurrent, bias, "", h, outputs=2, hidden_size=D, linear_before_reset=1)[1]
        logits.append(g.node("Add", g.node("MatMul", h, keys), penalty))
        chosen.append(g.node("ArgMax", logits[-1], axis=2, keepdims=0))
    best, indices = g.nodes("TopK", g.node("Concat", *logits, axis=1), g.ints(2), outputs=2, axis=2)
    first, second = g.nodes("Split", best, outputs=2, axis=2)
    margins = g.reshape(g.node("Sub", first, second), 1, length)
    runner_up = g.nodes("Split", indices, outputs=2, axis=2)[1]
    return g.node("Concat", *chosen, axis=1), margins, g.reshape(first, 1, length), g.reshape(runner_up, 1, length)


def _perceptron(g: GraphBuilder, w: Weights, x: Value, first: str, second: str) -> Value:
    """Linear, exact GELU, linear."""
    hidden = g.node("MatMul", x, g.const(w[f"{first}.weight"].T))
    hidden = g.node("BiasGelu", hidden, g.const(w[f"{first}.bias"]), domain=MICROSOFT)
    return _linear(g, w, second, hidden)


def _linear(g: GraphBuilder, w: Weights, name: str, x: Value) -> Value:
    return g.linear(x, w[f"{name}.weight"].T, w[f"{name}.bias"])


def _norm(g: GraphBuilder, w: Weights, name: str, x: Value) -> Value:
    scale, bias = g.const(w[f"{name}.weight"]), g.const(w[f"{name}.bias"])
    return g.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-5)
