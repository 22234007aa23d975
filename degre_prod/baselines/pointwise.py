"""Pointwise sort: each candidate by its own chance of feedback."""

from __future__ import annotations

import torch

from degre_prod.baselines.calls import Calls
from degre_prod.baselines.material import Material, Ranker, by_score, train_on_logs
from degre_prod.models.pointwise import PointwiseScorer
from degre_prod.training.evaluator import pointwise_loss


def pointwise(material: Material, _: Calls) -> Ranker:
    """Train the scorer, sort by it."""
    model = train_pointwise(material)
    return lambda encoded: by_score(encoded, material.layout.list_length, lambda batch: model(batch).sum(-1))


def train_pointwise(material: Material) -> PointwiseScorer:
    """The scorer of degre_prod.models.pointwise, trained on all logged slots."""
    torch.manual_seed(material.seed)
    model = PointwiseScorer(material.layout, material.evaluator.spec.width, material.slots)
    loss = pointwise_loss(model, (material.train, material.validation), material.layout.position_free)
    train_on_logs(material, model, loss, learning_rate=3e-3)
    return model
