"""Listwise scorer in the manner of PRM (Pei et al. 2019): every candidate is scored in sight of the others, then sorted.

Taken: self-attention over the candidates with the upstream scores among the features, trained on logged feedback. Different:
cross-entropy an item instead of a softmax over the list, for several items of a list may be clicked; a bias for the logged
slot, left out of the score; the upstream rank is a feature instead of a position embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from degre_prod.baselines.calls import Calls
from degre_prod.baselines.material import LOG_EPOCHS, Material, Ranker, by_score, resolve, train_on_logs
from degre_prod.baselines.pointwise import worth_of
from degre_prod.baselines.set_encoder import SetEncoder
from degre_prod.encoding.encoder import Layout
from degre_prod.models.fields import Batch, gather
from degre_prod.training.data import Draws, logged_lists, to_batch


class ListwiseScorer(nn.Module):
    """Set encoder → one logit per objective; a slot bias explains position in training and is left out of the score."""

    def __init__(self, layout: Layout, width: int, layers: int, slots: int) -> None:
        super().__init__()
        self.encoder = SetEncoder(layout, width, layers)
        self.out = nn.Linear(width, layout.objectives)
        self.slot_bias = nn.Parameter(torch.zeros(slots, layout.objectives))

    def forward(self, batch: Batch) -> Tensor:
        """logits_BCO without the slot bias."""
        z, _ = self.encoder(batch)
        return self.out(z)


@dataclass(frozen=True)
class PrmConfig:
    """How the network learns from the logs; the best epoch by held-out loss is kept."""

    epochs: int = LOG_EPOCHS
    learning_rate: float = 2e-3
    layers: int = 1


TRIALS: tuple[PrmConfig, ...] = (
    PrmConfig(),
    PrmConfig(learning_rate=7e-4),
    PrmConfig(layers=2),
    PrmConfig(epochs=12),
)


def prm(material: Material, _: Calls, config: PrmConfig = TRIALS[0]) -> Ranker:
    """Cross-entropy of the feedback of every shown item, then sort."""
    torch.manual_seed(material.seed)
    model = ListwiseScorer(material.layout, material.generator.width, config.layers, material.slots)

    def loss(samples: np.ndarray, _: Draws) -> tuple[Tensor, Tensor]:
        encoded, requests = resolve(material, samples)
        shown, feedback, carries = logged_lists(encoded, requests, material.slots, None)
        bias = 0.0 if material.layout.position_free else model.slot_bias
        logits = gather(model(to_batch(encoded, requests)), torch.from_numpy(shown)) + bias
        losses = F.binary_cross_entropy_with_logits(
            logits, torch.from_numpy(feedback).transpose(1, 2), reduction="none"
        )
        counted = torch.from_numpy(carries)
        return (losses.sum(-1) * counted).sum(), counted.sum()

    train_on_logs(material, model, loss, epochs=config.epochs, learning_rate=config.learning_rate)
    return lambda encoded: by_score(encoded, material.layout.list_length, worth_of(model, material))
