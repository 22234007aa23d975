"""The generator's encoder as ONNX nodes for one request: everything before the first slot is filled, arranged for one core.

The same arithmetic as `Generator.encode`, with what is constant multiplied out beforehand (in float64):

- a group's linear map and its embedding tables are folded with the token's query, key, value and output projections, so
  that a field costs its few columns instead of 3 · D, and user and context are projected once, not once a candidate;
- ties: candidates are brought into the order of the prior rank first; the first largest logit is then the right one.

Written node by node: the exporters turn the same arithmetic into four times as many nodes, each of which costs a
microsecond on the request path.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import numpy as np

from degre_prod.encoding.store import CANDIDATE_ARRAYS, REQUEST_ARRAYS
from degre_prod.models.generator import Generator, SetBlock
from degre_prod.training.graph_parts import Weights, linear, norm, perceptron
from degre_prod.training.onnx_graph import MICROSOFT, GraphBuilder, Value


@dataclass(frozen=True)
class EncodedNodes:
    """by_rank_C: indices of the candidates in ascending prior rank, in whose order z_CD is; request_1X: what the decoder
    starts from."""

    by_rank: Value
    z: Value
    request: Value


def encoder_nodes(g: GraphBuilder, w: Weights, generator: Generator) -> EncodedNodes:
    """Inputs are the generator's batch arrays for a batch of 1, C dynamic; arrays without columns are no inputs. One request
    has no padding, so there is no mask."""
    layout, D = generator.spec.layout, generator.spec.width
    arrays: dict[str, Value] = {}
    for name in (*CANDIDATE_ARRAYS, *REQUEST_ARRAYS):
        group, kind = name.rsplit("_", 1)
        width = layout.num[group] if kind == "num" else len(layout.cat[group])
        if width:
            shape = (1, "C", width) if name in CANDIDATE_ARRAYS else (1, width)
            arrays[name] = g.input(name, np.float32 if kind == "num" else np.int64, shape)
    by_rank = _by_prior_rank(g, g.input("prior_rank", np.int64, (1, "C")))
    for name in CANDIDATE_ARRAYS:
        if name in arrays:
            arrays[name] = g.node("Gather", g.node("Squeeze", arrays[name], g.ints(0)), by_rank, axis=0)

    fields = [_field(g, w, group, arrays, len(layout.cat[group]), D) for group in ("item", "prior", "user", "context")]
    z = _token(g, w, fields, D)
    for layer, block in enumerate(cast(Iterable[SetBlock], generator.blocks)):
        z = _block(g, w, f"blocks.{layer}", z, D, block.heads)
    z = norm(g, w, "norm", z)
    user, context = (g.node("Slice", f, g.ints(0), g.ints(D), g.ints(1)) for f in fields[2:])
    mean = g.node("ReduceMean", z, axes=[0], keepdims=1)
    return EncodedNodes(by_rank, z, g.node("Concat", user, context, mean, axis=1))


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
    return perceptron(g, w, pooled, "token.pool1", "token.pool2")


def _block(g: GraphBuilder, w: Weights, name: str, x: Value, D: int, heads: int) -> Value:
    """x_CD → x_CD through one SetBlock."""
    normed = norm(g, w, f"{name}.norm1", x)
    weight, bias = w[f"{name}.qkv.weight"].T.copy(), w[f"{name}.qkv.bias"].copy()
    scale = (D // heads) ** -0.5
    weight[:, :D] *= scale
    bias[:D] *= scale
    qkv = g.reshape(g.linear(normed, weight, bias), -1, 3 * heads, D // heads)
    qkv = g.node("Transpose", qkv, perm=[1, 0, 2])
    query, key, value = g.nodes("Split", qkv, outputs=3, axis=0)
    scores = g.node("FusedMatMul", query, key, domain=MICROSOFT, transB=1)
    attended = g.node("MatMul", g.node("Softmax", scores, axis=-1), value)
    attended = g.reshape(g.node("Transpose", attended, perm=[1, 0, 2]), -1, D)
    x = g.node("Add", x, linear(g, w, f"{name}.out", attended))
    return g.node("Add", x, perceptron(g, w, norm(g, w, f"{name}.norm2", x), f"{name}.ff1", f"{name}.ff2"))
