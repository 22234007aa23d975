"""The same greedy pass in two small ONNX graphs, for requests with rules that depend on what was chosen before.

`encode.onnx` runs once a request, `step.onnx` once a slot; between two slots the caller masks with
`degre_prod.constraints.feasible_next`. The rules could be tensor operations of one graph, but then they would exist twice,
in NumPy for mining, targets and training, and in ONNX for serving, and every difference between the two would be a list
that training never allowed. A slot costs some ten microseconds more this way; there is one mask function.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from degre_prod.models.generator import Generator
from degre_prod.training.decoder_graph import decoder_nodes, first_input, pointer_keys
from degre_prod.training.encoder_graph import encoder_nodes
from degre_prod.training.graph_parts import weights_of
from degre_prod.training.onnx_graph import GraphBuilder, Value


def export_steps(generator: Generator, encode_file: Path, step_file: Path) -> None:
    """Write both graphs. In each, candidates are in ascending prior rank.

    encode: the generator's batch arrays for a batch of 1 → z (C, D), keys (D, C), x (1, 1, D), state_0 … (the decoder's).
    step: x, keys, state_0 … → logits (C,), next_0 …, of the shapes of the state. The next x is the chosen row of z.
    """
    w, spec = weights_of(generator), generator.spec
    D, decoder = spec.width, decoder_nodes(spec, w)
    shapes = decoder.state_shapes()

    g = GraphBuilder()
    encoded = encoder_nodes(g, w, generator)
    outputs: dict[str, tuple[Value, type, tuple[int | str, ...]]] = {
        "z": (encoded.z, np.float32, ("C", D)),
        "keys": (pointer_keys(g, w, encoded.z, D), np.float32, (D, "C")),
        "x": (first_input(g, w, encoded.request), np.float32, (1, 1, D)),
    }
    outputs |= {
        f"state_{i}": (value, np.float32, tuple(shapes[i])) for i, value in enumerate(decoder.start(g, encoded.request))
    }
    g.save(str(encode_file), outputs)

    g = GraphBuilder()
    x, keys = g.input("x", np.float32, (1, 1, D)), g.input("keys", np.float32, (D, "C"))
    inputs = tuple(g.input(f"state_{i}", np.float32, shape) for i, shape in enumerate(shapes))
    h, state = decoder.step(g, x, inputs)
    logits = g.reshape(g.node("MatMul", h, keys), -1)
    g.save(
        str(step_file),
        {"logits": (logits, np.float32, ("C",))}
        | {f"next_{i}": (value, np.float32, _grown(shapes[i])) for i, value in enumerate(state)},
    )


def _grown(shape: Sequence[int | str]) -> tuple[int | str, ...]:
    """The shape after a slot: an axis that grows has another name, or the runtime would think it the same length."""
    return tuple(f"{axis}_next" if isinstance(axis, str) else axis for axis in shape)
