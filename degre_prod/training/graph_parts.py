"""What every part of the exported graphs is made of: linear maps, norms, perceptrons, by the names of the state dictionary."""

from __future__ import annotations

import numpy as np
from torch import nn

from degre_prod.training.onnx_graph import MICROSOFT, GraphBuilder, Value

Weights = dict[str, np.ndarray]  # float64, by the names of the state dictionary


def weights_of(module: nn.Module) -> Weights:
    """The weights in float64, so that what is constant is multiplied out without loss."""
    return {name: tensor.detach().double().numpy() for name, tensor in module.state_dict().items()}


def linear(g: GraphBuilder, w: Weights, name: str, x: Value) -> Value:
    """x_XI → x_XO."""
    return g.linear(x, w[f"{name}.weight"].T, w[f"{name}.bias"])


def perceptron(g: GraphBuilder, w: Weights, x: Value, first: str, second: str) -> Value:
    """Linear, exact GELU, linear."""
    hidden = g.node("MatMul", x, g.const(w[f"{first}.weight"].T))
    hidden = g.node("BiasGelu", hidden, g.const(w[f"{first}.bias"]), domain=MICROSOFT)
    return linear(g, w, second, hidden)


def norm(g: GraphBuilder, w: Weights, name: str, x: Value) -> Value:
    """LayerNorm over the last axis."""
    scale, bias = g.const(w[f"{name}.weight"]), g.const(w[f"{name}.bias"])
    return g.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-5)
