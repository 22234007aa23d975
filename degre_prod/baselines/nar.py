"""Non-autoregressive generator in the manner of NAR4Rec (Ren et al. 2024): every slot is matched with every candidate at once.

Slots don't see what other slots chose; used items are masked while a list is read off. Likelihood on the lists of a
group above its mean utility, unlikelihood on those below.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from degre_prod.baselines.calls import Calls
from degre_prod.baselines.material import Material, Ranker
from degre_prod.baselines.policy import Graded, Policy, draw, train_policy
from degre_prod.baselines.set_encoder import SetEncoder
from degre_prod.encoding.encoder import Layout
from degre_prod.models.generator import NEVER
from degre_prod.training.data import TensorBatch


class SlotMatcher(Policy):
    """Slot queries attend to the encoded candidates; logits are their products with the candidates' keys."""

    def __init__(self, layout: Layout, width: int, layers: int) -> None:
        super().__init__()
        self.encoder = SetEncoder(layout, width, layers)
        self.slots = nn.Parameter(torch.randn(layout.list_length, width) * 0.1)
        self.request = nn.Linear(3 * width, width)
        self.look = nn.Linear(width, width)
        self.seen = nn.Linear(width, width)
        self.mix = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.GELU())
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)

    def matches(self, batch: TensorBatch) -> Tensor:
        """logits_BLC, padding masked."""
        z, request = self.encoder(batch)
        D = z.shape[-1]
        slots = self.slots + self.request(request).unsqueeze(1)
        attention = (self.look(slots) @ z.transpose(1, 2) / D**0.5).masked_fill(~batch["mask"].unsqueeze(1), NEVER)
        mixed = self.mix(torch.cat([slots, torch.softmax(attention, -1) @ self.seen(z)], dim=-1))
        logits = self.query(mixed) @ self.key(z).transpose(1, 2) / D**0.5
        return logits.masked_fill(~batch["mask"].unsqueeze(1), NEVER)

    def logits(self, batch: TensorBatch, lists_BGL: Tensor) -> Tensor:
        """See `Policy`."""
        matches = self.matches(batch)
        picked = F.one_hot(lists_BGL, matches.shape[-1])
        return matches.unsqueeze(1).masked_fill(picked.cumsum(2) - picked > 0, NEVER)

    def sample(self, batch: TensorBatch, groups: int, length: int, noise: torch.Generator | None) -> Tensor:
        """See `Policy`."""
        matches = self.matches(batch).unsqueeze(1)
        free = batch["mask"].unsqueeze(1).repeat(1, groups, 1)
        chosen = []
        for t in range(length):
            item = draw(matches[:, :, t].expand_as(free), free, noise)
            chosen.append(item)
            free = free.scatter(2, item.unsqueeze(-1), False)
        return torch.stack(chosen, dim=-1)


def nar(material: Material, calls: Calls) -> Ranker:
    """Slots matched with items, from scratch."""
    torch.manual_seed(material.seed)
    settings = material.generator
    model = SlotMatcher(material.layout, settings.width, settings.encoder_layers)
    return train_policy(material, calls, model, likelihood_and_unlikelihood)


def likelihood_and_unlikelihood(_: TensorBatch, graded: Graded) -> Tensor:
    """loss_B = −log p on lists above the group's mean, −log(1 − p) on the others, mean over slots and lists."""
    good = graded.utility > graded.utility.mean(1, keepdim=True)
    against = -torch.log1p(-graded.logp.exp().clamp(max=1 - 1e-4))
    return torch.where(good.unsqueeze(-1), -graded.logp, against).mean((1, 2))
