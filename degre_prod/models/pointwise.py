"""Pointwise baseline: each candidate's own chance of feedback, blind to the rest of the list."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from degre_prod.encoding.encoder import Layout
from degre_prod.models.fields import Batch, FieldEmbedding, Token


class PointwiseScorer(nn.Module):
    """Token → one logit per objective; a slot bias explains position in training and is left out of the score."""

    def __init__(self, layout: Layout, width: int, slots: int) -> None:
        super().__init__()
        self.fields = FieldEmbedding(layout, width)
        self.token = Token(width)
        self.out = nn.Linear(width, layout.objectives)
        self.slot_bias = nn.Parameter(torch.zeros(slots, layout.objectives))

    def forward(self, batch: Batch) -> Tensor:
        """logits_BCO without the slot bias."""
        return self.out(self.token(self.fields(batch)))

    def logged(self, batch: Batch) -> Tensor:
        """logits_BTO at their slots of lists whose items are the batch's candidates, in this order."""
        logits_BTO = self(batch)
        return logits_BTO + self.slot_bias[: logits_BTO.shape[1]]
