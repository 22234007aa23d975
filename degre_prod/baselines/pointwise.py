"""Pointwise sort: each candidate by its own chance of feedback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from degre_prod.baselines.calls import Calls
from degre_prod.baselines.material import LOG_EPOCHS, Material, Ranker, by_score, train_on_logs
from degre_prod.models.pointwise import PointwiseScorer
from degre_prod.training.data import TensorBatch
from degre_prod.training.evaluator import pointwise_loss


@dataclass(frozen=True)
class PointwiseConfig:
    """How the scorer learns from the logs; the best epoch by held-out loss is kept."""

    epochs: int = LOG_EPOCHS
    learning_rate: float = 3e-3


TRIALS: tuple[PointwiseConfig, ...] = (
    PointwiseConfig(),
    PointwiseConfig(learning_rate=1e-3),
    PointwiseConfig(learning_rate=1e-2),
    PointwiseConfig(epochs=12),
)


def pointwise(material: Material, _: Calls, config: PointwiseConfig = TRIALS[0]) -> Ranker:
    """Train the scorer, sort by it."""
    worth = worth_of(train_pointwise(material, config), material)
    return lambda encoded: by_score(encoded, material.layout.list_length, worth)


def worth_of(model: nn.Module, material: Material) -> Callable[[TensorBatch], Tensor]:
    """Scores Σ_o ω_o P(y_o = 1) of a network that gives logits_BCO; ω as at the first slot."""
    weights = torch.tensor(material.evaluator.spec.weights_OL)[:, 0]
    return lambda batch: torch.sigmoid(model(batch)) @ weights


def train_pointwise(material: Material, config: PointwiseConfig = TRIALS[0]) -> PointwiseScorer:
    """The scorer of degre_prod.models.pointwise, trained on all logged slots."""
    torch.manual_seed(material.seed)
    model = PointwiseScorer(material.layout, material.evaluator.spec.width, material.slots)
    loss = pointwise_loss(model, (material.train, material.validation), material.layout.position_free)
    train_on_logs(material, model, loss, epochs=config.epochs, learning_rate=config.learning_rate)
    return model
