"""The greedy pass in ONNX Runtime: encoded arrays in, a list and its margins out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from degre_prod.encoding.encoder import Encoded
from degre_prod.errors import BundleError

ALONE = 1e8  # a margin above this means that no other item was left


@dataclass(frozen=True, slots=True)
class Decoded:
    """A greedy list: order (length,) of indices into the candidates, margins (length,) float32, inf where nothing else was left.

    logits (length,) float32 of the chosen items and runner_up (length,), indices into the candidates, -1 where nothing else
    was left; both None from a bundle of format 1.
    """

    order: np.ndarray
    margins: np.ndarray
    logits: np.ndarray | None = None
    runner_up: np.ndarray | None = None


@dataclass(frozen=True)
class Decoder:
    """An ONNX Runtime session on one thread; safe to call from several threads.

    `inputs`: the graph's name and the encoder's name of each array.
    """

    session: Any
    inputs: tuple[tuple[str, str], ...]

    def decode(self, encoded: Encoded, length: int) -> Decoded:
        """The greedy list of one encoded request, cut at `length`, at L and at the number of candidates."""
        C = len(encoded["prior_rank_C"])
        feed = {name: encoded[key][None] for name, key in self.inputs}
        feed["mask"] = np.ones((1, C), bool)
        order, margins, *more = self.session.run(None, feed)
        take = min(length, C, order.shape[1])
        margin = margins[0, :take]
        alone = margin > ALONE
        decoded = Decoded(order[0, :take], np.where(alone, np.float32(np.inf), margin))
        if not more:
            return decoded
        logits, runner_up = more
        return replace(decoded, logits=logits[0, :take], runner_up=np.where(alone, -1, runner_up[0, :take]))


def open_decoder(file: Path) -> Decoder:
    """Open generator.onnx; raises BundleError when ONNX Runtime cannot."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # One thread: two gained 7 % at 100 candidates and spin while they wait. Other options made no difference.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises many types of its own
        raise BundleError(f"{file} does not load in ONNX Runtime: {error}") from error
    names = (i.name for i in session.get_inputs())
    return Decoder(session, tuple((name, _key(name)) for name in names if name != "mask"))


def _key(name: str) -> str:
    """The encoder's name of an input of the graph."""
    if name == "prior_rank":
        return "prior_rank_C"
    return f"{name}_CF" if name.startswith(("item", "prior")) else f"{name}_F"
