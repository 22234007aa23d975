"""The greedy pass in ONNX Runtime: encoded arrays in, a list and its margins out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from degre_prod.encoding.encoder import Encoded
from degre_prod.errors import BundleError

ALONE = 1e8  # a margin above this means that no other item was left


@dataclass(frozen=True, slots=True)
class Decoded:
    """A greedy list: order (length,) of indices into the candidates, margins (length,) float32, inf where nothing else was left."""

    order: np.ndarray
    margins: np.ndarray


@dataclass(frozen=True)
class Decoder:
    """An ONNX Runtime session on one thread; safe to call from several threads."""

    session: Any
    input_names: tuple[str, ...]

    def decode(self, encoded: Encoded, length: int) -> Decoded:
        """The greedy list of one encoded request, cut at `length`, at L and at the number of candidates."""
        C = len(encoded["prior_rank_C"])
        inputs = {name: encoded[_key(name)][None] for name in self.input_names if name != "mask"}
        inputs["mask"] = np.ones((1, C), bool)
        order, margins = self.session.run(None, inputs)
        take = min(length, C, order.shape[1])
        margin = margins[0, :take]
        return Decoded(order[0, :take], np.where(margin > ALONE, np.float32(np.inf), margin))


def open_decoder(file: Path) -> Decoder:
    """Open generator.onnx; raises BundleError when ONNX Runtime cannot."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises many types of its own
        raise BundleError(f"{file} does not load in ONNX Runtime: {error}") from error
    return Decoder(session, tuple(i.name for i in session.get_inputs()))


def _key(name: str) -> str:
    """The encoder's name of an input of the graph."""
    if name == "prior_rank":
        return "prior_rank_C"
    return f"{name}_CF" if name.startswith(("item", "prior")) else f"{name}_F"
