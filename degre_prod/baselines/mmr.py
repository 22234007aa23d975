"""Maximal marginal relevance (Carbonell and Goldstein 1998): what many teams run today.

Next item = argmax λ · relevance − (1 − λ) · highest similarity to an item already chosen. Relevance is the pointwise
score, scaled to 0 … 1 within the request; similarity is the cosine of the items' encoded numbers, negative ones as 0.
λ is the one that the evaluator values most on held-out logged requests.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from degre_prod.baselines.calls import Calls, CountingEvaluator
from degre_prod.baselines.material import Material, Ranker, batches, cut, utilities_of
from degre_prod.baselines.pointwise import TRIALS as SCORERS
from degre_prod.baselines.pointwise import PointwiseConfig, train_pointwise, worth_of
from degre_prod.encoding.store import EncodedSet
from degre_prod.training.data import TensorBatch

TRADE_OFFS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
CHOICE_REQUESTS = 500
TRIALS: tuple[PointwiseConfig, ...] = SCORERS  # of the relevance; λ is chosen within a trial


def mmr(material: Material, calls: Calls, config: PointwiseConfig = TRIALS[0]) -> Ranker:
    """Train the pointwise scorer, choose λ."""
    relevance = worth_of(train_pointwise(material, config), material)
    evaluator = CountingEvaluator(material.evaluator, calls)
    L = material.layout.list_length
    full = np.flatnonzero(material.validation.arrays["mask"].sum(1) >= L)[:CHOICE_REQUESTS]

    def worth(trade_off: float) -> float:
        lists = diversified(relevance, material.validation, L, trade_off)[full, None]
        return float(utilities_of(evaluator, material.validation, full, torch.from_numpy(lists)).mean())

    best = max(TRADE_OFFS, key=worth)
    return lambda encoded: diversified(relevance, encoded, L, best)


def diversified(
    relevance: Callable[[TensorBatch], Tensor], encoded: EncodedSet, length: int, trade_off: float
) -> np.ndarray:
    """Lists (R, L) by marginal relevance."""
    out = []
    with torch.inference_mode():
        for batch in batches(encoded):
            scores = relevance(batch)
            vectors = F.normalize(batch["item_num"], dim=-1)
            similar = (vectors @ vectors.transpose(1, 2)).clamp(min=0)
            out.append(marginal_relevance(scores, similar, batch["mask"], length, trade_off).numpy())
    return cut(np.concatenate(out), encoded)


def marginal_relevance(
    scores_BC: Tensor, similar_BCC: Tensor, mask_BC: Tensor, length: int, trade_off: float
) -> Tensor:
    """Greedy lists (B, L) by λ · relevance − (1 − λ) · similarity; ties by prior rank."""
    low = scores_BC.masked_fill(~mask_BC, float("inf")).amin(1, keepdim=True)
    high = scores_BC.masked_fill(~mask_BC, float("-inf")).amax(1, keepdim=True)
    relevance = (scores_BC - low) / (high - low).clamp(min=1e-9)
    free, closest = mask_BC.clone(), torch.zeros_like(scores_BC)
    rows, chosen = torch.arange(len(scores_BC)), []
    for _ in range(length):
        worth = trade_off * relevance - (1 - trade_off) * closest
        item = worth.masked_fill(~free, float("-inf")).argmax(1)
        chosen.append(item)
        free[rows, item] = False
        closest = torch.maximum(closest, similar_BCC[rows, item])
    return torch.stack(chosen, dim=1)
