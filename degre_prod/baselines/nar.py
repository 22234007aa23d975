"""Non-autoregressive generator in the manner of NAR4Rec (Ren et al. 2024): every slot is matched with every candidate at once.

Taken: the matching model (slots queried against encoded candidates, all at once) and unlikelihood training on bad lists.
Different: good and bad lists are those above and below their group's mean utility, not logged lists with and without
feedback, so that it may ask the evaluator like the other methods; used items are masked while a list is read off, where the
paper decodes contrastively by item similarity.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from degre_prod.baselines.calls import Calls
from degre_prod.baselines.graded import Graded, Learning, train_policy
from degre_prod.baselines.material import Material, Ranker
from degre_prod.baselines.policy import Drawn, Policy, draw
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

    def sample(self, batch: TensorBatch, groups: int, length: int, noise: torch.Generator | None) -> Drawn:
        """See `Policy`."""
        matches = self.matches(batch).unsqueeze(1)
        used = ~batch["mask"].unsqueeze(1).expand(-1, groups, -1)
        lists, logits = [], []
        for t in range(length):
            logits.append(matches[:, :, t].masked_fill(used, NEVER))
            lists.append(draw(logits[-1], noise))
            used = used.scatter(2, lists[-1].unsqueeze(-1), True)
        return Drawn(torch.stack(lists, dim=-1), torch.stack(logits, dim=2))


@dataclass(frozen=True)
class NarConfig(Learning):
    """`unlikelihood`: weight of pushing down the lists below the group's mean."""

    unlikelihood: float = 1.0


TRIALS: tuple[NarConfig, ...] = (
    NarConfig(),
    NarConfig(unlikelihood=0.3),
    NarConfig(learning_rate=3e-3),
    NarConfig(group=32, batch_size=32),
)


def nar(material: Material, calls: Calls, config: NarConfig = TRIALS[0]) -> Ranker:
    """Slots matched with items, from scratch."""
    torch.manual_seed(material.seed)
    settings = material.generator
    model = SlotMatcher(material.layout, settings.width, settings.encoder_layers)
    return train_policy(
        material,
        calls,
        model,
        lambda graded: likelihood_and_unlikelihood(graded, config.unlikelihood),
        config,
    )


def likelihood_and_unlikelihood(graded: Graded, unlikelihood: float) -> Tensor:
    """loss_B = −log p on lists above the group's mean, −log(1 − p) on the others, mean over slots and lists."""
    good = graded.utility > graded.utility.mean(1, keepdim=True)
    against = -torch.log1p(-graded.logp.exp().clamp(max=1 - 1e-4)) * unlikelihood
    return torch.where(good.unsqueeze(-1), -graded.logp, against).mean((1, 2))
