"""What the evaluator would do from prefixes that no beam visited: the re-plan of on-policy rounds."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from degre_prod.constraints.rules import Rules
from degre_prod.mining.mine import BeamForm, plans
from degre_prod.models.evaluator import LookaheadEvaluator, Prepared


def replan(
    model: LookaheadEvaluator,
    prepared: Prepared,
    mask_BC: Tensor,
    lists_BL: np.ndarray,
    width: int,
    form: BeamForm = "union",
    rules: Rules | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Re-plan from every prefix of given full lists: label_BL, the first item of the best plan (-1 after a prefix that no list
    obeying the rules starts with), and the best leaf through each first item (B, L, C), NaN where none. The list's own next
    item plays no part (METHOD §4)."""
    B, C = mask_BC.shape
    L = model.spec.layout.list_length
    label = np.full((B, L), -1)
    backed_up = np.full((B, L, C), np.nan)
    lists = torch.from_numpy(lists_BL)
    beams = model.start(prepared)
    root = torch.zeros(B, 1, dtype=torch.long)
    for t in range(L):
        found = plans(model, prepared, mask_BC, form, width=width, start=beams, prefix_BT=lists[:, :t], rules=rules)
        first, worth = found.lists[:, :, t].numpy(), found.utility.numpy().astype(np.float64)
        best = np.round(worth, 6).argmax(1)
        there = np.isfinite(worth.max(1))
        label[there, t] = first[there, best[there]]
        out = np.full((B, C), -np.inf)
        for p in range(first.shape[1]):
            rows = np.arange(B)
            out[rows, first[:, p]] = np.maximum(out[rows, first[:, p]], worth[:, p])
        backed_up[:, t] = np.where(np.isfinite(out) & there[:, None], out, np.nan)
        beams = model.advance(prepared, beams, root, lists[:, t : t + 1])
    return label, backed_up
