"""Candidates seen together: the Online Generator's own encoder, for networks with another way to answer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from degre_prod.encoding.encoder import Layout
from degre_prod.models.fields import Batch, FieldEmbedding, Token
from degre_prod.models.generator import SetBlock


class SetEncoder(nn.Module):
    """Fields → tokens → bidirectional attention over candidates."""

    def __init__(self, layout: Layout, width: int, layers: int) -> None:
        super().__init__()
        self.fields = FieldEmbedding(layout, width)
        self.token = Token(width)
        self.blocks = nn.ModuleList(SetBlock(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """z_BCD, and request_BX: user, context and the mean candidate side by side (X = 3 D)."""
        fields = self.fields(batch)
        z = self.token(fields)
        for block in self.blocks:
            z = block(z, batch["mask"])
        z = self.norm(z)
        mask = batch["mask"].unsqueeze(-1).to(z.dtype)
        mean = (z * mask).sum(1) / mask.sum(1).clamp(min=1)
        return z, torch.cat([fields.user, fields.context, mean], dim=-1)
