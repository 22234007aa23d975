"""The judge: a second opinion on whole lists, by another architecture than the evaluator's (METHOD §2, §7.1).

Every slot sees every other one, earlier and later, so it can't be asked about prefixes and can't mine. It predicts each
slot's feedback as it is, leaving included, and the utility is their weighted sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from degre_prod.encoding.encoder import Layout
from degre_prod.models.fields import Batch, FieldEmbedding

HEADS = 4


@dataclass(frozen=True)
class JudgeSpec:
    """What rebuilds a judge besides its weights. `weights_OL` is ω_o w_{o,t}."""

    layout: Layout
    width: int
    layers: int
    weights_OL: tuple[tuple[float, ...], ...]


class Judge(nn.Module):
    """Tokens [item; user; context; upstream scores; slot] of one list → Transformer without a causal mask → P(y_t = 1)."""

    weights_OL: Tensor

    def __init__(self, spec: JudgeSpec) -> None:
        super().__init__()
        self.spec = spec
        D, layout = spec.width, spec.layout
        self.fields = FieldEmbedding(layout, D)
        self.mix1, self.mix2 = nn.Linear(5 * D, 2 * D), nn.Linear(2 * D, D)
        self.slot = nn.Parameter(torch.randn(1 if layout.position_free else layout.list_length, D) * 0.02)
        layer = nn.TransformerEncoderLayer(
            D, HEADS, 2 * D, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, spec.layers, nn.LayerNorm(D), enable_nested_tensor=False)
        self.out = nn.Linear(D, layout.objectives)
        self.register_buffer("weights_OL", torch.tensor(spec.weights_OL))

    def forward(self, batch: Batch) -> Tensor:
        """logits_BLO of the feedback of lists whose items are the batch's candidates, in this order; mask: padding."""
        item, prior, user, context = self.fields(batch)
        L = item.shape[1]
        of_request = [x.unsqueeze(1).expand_as(item) for x in (user, context)]
        parts = torch.cat([item, prior, *of_request, item * user.unsqueeze(1)], dim=-1)
        slots = self.slot.expand(L, -1) if self.spec.layout.position_free else self.slot[:L]
        tokens = self.mix2(F.gelu(self.mix1(parts))) + slots
        padding = ~batch["mask"]
        padding[:, 0] = False  # an empty list must attend to something
        return self.out(self.blocks(tokens, src_key_padding_mask=padding))

    def utilities(self, batch: Batch) -> Tensor:
        """Utility of whole lists, Σ_o ω_o Σ_t w_{o,t} P(y_{o,t} = 1), in units of feedback: (B,). Padding earns nothing."""
        return self.slot_utilities(batch).sum(1)

    def slot_utilities(self, batch: Batch) -> Tensor:
        """What each slot adds to it, (B, L)."""
        chance_BLO = torch.sigmoid(self(batch)) * batch["mask"].unsqueeze(-1)
        return torch.einsum("blo,ol->bl", chance_BLO, self.weights_OL[:, : chance_BLO.shape[1]])
