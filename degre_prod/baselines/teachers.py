"""Search on the evaluator at request time: teachers of the generator, too slow to serve, so not rivals."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from degre_prod.baselines.calls import Calls, CountingEvaluator
from degre_prod.baselines.material import Material, Ranker
from degre_prod.encoding.store import EncodedSet
from degre_prod.evaluation.methods import input_order
from degre_prod.mining.beam import Leaves, search, union_search
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.training.data import TensorBatch, to_batch

BEAM_WIDTH = 8
CHUNK = 32


def greedy_evaluator(material: Material, calls: Calls) -> Ranker:
    """The best next item by prefix utility, slot by slot."""
    return _searched(
        material,
        calls,
        lambda model, batch: search(model, model.prepare(batch), batch["mask"], width=1, to_go=False),
    )


def beam_evaluator(material: Material, calls: Calls) -> Ranker:
    """The best leaf of the two beams that mining uses."""
    return _searched(
        material, calls, lambda model, batch: union_search(model, model.prepare(batch), batch["mask"], width=BEAM_WIDTH)
    )


def _searched(material: Material, calls: Calls, find: Callable[[LookaheadEvaluator, TensorBatch], Leaves]) -> Ranker:
    """Requests with fewer candidates than slots keep the upstream order."""
    model = CountingEvaluator(material.evaluator, calls)

    def rank(encoded: EncodedSet) -> np.ndarray:
        lists = input_order(encoded, material.layout.list_length)
        full = np.flatnonzero((lists >= 0).all(1))
        with torch.inference_mode():
            for start in range(0, len(full), CHUNK):
                requests = full[start : start + CHUNK]
                leaves = find(model, to_batch(encoded, requests))
                lists[requests] = leaves.lists[torch.arange(len(requests)), leaves.utility.argmax(1)].numpy()
        return lists

    return rank
