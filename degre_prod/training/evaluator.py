"""Train the Lookahead Evaluator, its value-to-go network and the pointwise baseline: one task of the worker group."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from degre_prod.artefact import write_json
from degre_prod.config import EvaluatorConfig
from degre_prod.encoding.encoder import load_encoder
from degre_prod.encoding.store import EncodedSet, load_encoded
from degre_prod.models.evaluator import EvaluatorSpec, LookaheadEvaluator
from degre_prod.models.pointwise import PointwiseScorer
from degre_prod.schema import DataSchema
from degre_prod.training.data import logged_lists, mean_utility, to_batch
from degre_prod.training.group import current_worker
from degre_prod.training.loop import Loss, Schedule, fit
from degre_prod.training.modules import save_module


def train_evaluator(config: dict[str, Any]) -> None:
    """Task: `encoded` (folder with train/, validation/, encoder.json), `folder` (where to work), `evaluator` (EvaluatorConfig).

    Leaves evaluator.safetensors/.json, pointwise.safetensors and curves.json.
    """
    worker = current_worker()
    settings = EvaluatorConfig(**config["evaluator"])
    folder, encoded = Path(config["folder"]), Path(config["encoded"])
    encoder = load_encoder(encoded / "encoder.json")
    train, validation = load_encoded(encoded / "train"), load_encoded(encoded / "validation")
    spec = evaluator_spec(encoder.schema, encoder.layout(), settings, train)
    torch.manual_seed(settings.seed)
    model = LookaheadEvaluator(spec)
    pointwise = PointwiseScorer(spec.layout, settings.width, encoder.schema.logged_length)
    split = {"train": np.arange(len(train)), "validation": -1 - np.arange(len(validation))}  # negative: validation
    sets = (train, validation)
    steps = math.ceil(len(train) / settings.batch_size)
    count_epochs = max(settings.epochs, math.ceil(settings.min_steps / steps))
    togo_epochs = max(1, round(settings.togo_steps / steps))
    curves = {}
    for name, parts, network, loss, epochs in (
        ("evaluator", ("value", "head"), model, count_loss(model, sets), count_epochs),
        ("value to go", ("togo", "pool"), model, to_go_loss(model, sets), togo_epochs),
        (
            "pointwise",
            ("",),
            pointwise,
            pointwise_loss(pointwise, sets, spec.layout.position_free),
            (count_epochs + 1) // 2,
        ),
    ):
        for parameter_name, parameter in network.named_parameters():  # value and to-go are networks of their own
            parameter.requires_grad_(parameter_name.startswith(parts))
        records = fit(
            network,
            loss,
            **split,
            schedule=Schedule(
                epochs, settings.batch_size, settings.learning_rate, settings.weight_decay, settings.seed
            ),
            worker=worker,
            folder=folder,
            name=name.replace(" ", "_"),
        )
        curves[name] = [vars(r) for r in records]
    if worker.rank == 0:
        save_module(model, spec, folder, "evaluator")
        save_module(pointwise, spec, folder, "pointwise")
        write_json(folder / "curves.json", curves)


def evaluator_spec(schema: DataSchema, layout: Any, settings: EvaluatorConfig, train: EncodedSet) -> EvaluatorSpec:
    """The spec of an evaluator for a data set; Ū comes from the training split."""
    weights_OL = np.array([o.weight for o in schema.objectives])[:, None] * np.array(schema.slot_weights_OL())
    return EvaluatorSpec(
        layout=layout,
        prefix_state=settings.prefix_state,
        width=settings.width,
        layers=settings.layers,
        at_most_one=tuple(o.at_most_one for o in schema.objectives),
        weights_OL=tuple(tuple(row) for row in weights_OL.tolist()),
        mean_utility=mean_utility(train, weights_OL, position_free=schema.position_free),
    )


def count_loss(model: LookaheadEvaluator, sets: tuple[EncodedSet, EncodedSet]) -> Loss:
    """Cross-entropy of each slot's feedback given the observed count before it; only the listed items are embedded."""
    layout = model.spec.layout

    def loss(samples: np.ndarray, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        encoded, requests = _resolve(sets, samples)
        lists, feedback, carries = logged_lists(
            encoded, requests, layout.list_length, random if layout.position_free else None
        )
        batch = to_batch(encoded, requests, only_BX=lists)
        at = torch.arange(lists.shape[1]).expand(len(requests), -1)
        a, b = model.logits(batch, at)
        return model.head.loss(a, b, torch.from_numpy(feedback), torch.from_numpy(carries))

    return loss


def to_go_loss(model: LookaheadEvaluator, sets: tuple[EncodedSet, EncodedSet]) -> Loss:
    """Squared error on the utility still to come in the log, Σ_{i>t} ω w_i y_i / Ū, zeros after leaving included."""
    layout = model.spec.layout

    def loss(samples: np.ndarray, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        encoded, requests = _resolve(sets, samples)
        lists, feedback, carries = logged_lists(
            encoded, requests, layout.list_length, random if layout.position_free else None
        )
        carries_BL = torch.from_numpy(carries)
        earned = torch.einsum("bol,ol->bl", torch.from_numpy(feedback), model.weights_OL) * carries_BL
        target = earned.flip(1).cumsum(1).flip(1) - earned
        G = model.to_go(to_batch(encoded, requests), torch.from_numpy(lists))
        lost = (torch.from_numpy(lists) >= 0) & ~carries_BL  # what came after t is known only if no later slot is lost
        known = carries_BL & (lost.flip(1).cumsum(1).flip(1) == 0)
        counted = known[:, : layout.list_length - 1]
        return ((G - target).square()[:, : layout.list_length - 1] * counted).sum(), counted.sum()

    return loss


def pointwise_loss(model: PointwiseScorer, sets: tuple[EncodedSet, EncodedSet], position_free: bool) -> Loss:
    """Cross-entropy of each shown item's feedback on its own."""

    def loss(samples: np.ndarray, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        encoded, requests = _resolve(sets, samples)
        longest = encoded.arrays["shown"].shape[1]
        lists, feedback, carries = logged_lists(encoded, requests, longest, random if position_free else None)
        batch = to_batch(encoded, requests, only_BX=lists)
        logits = model.logged(batch, torch.arange(longest).expand(len(requests), -1))
        losses = F.binary_cross_entropy_with_logits(
            logits, torch.from_numpy(feedback).transpose(1, 2), reduction="none"
        )
        carries_BT = torch.from_numpy(carries)
        return (losses.sum(-1) * carries_BT).sum(), carries_BT.sum()

    return loss


def _resolve(sets: tuple[EncodedSet, EncodedSet], samples: np.ndarray) -> tuple[EncodedSet, np.ndarray]:
    """Samples ≥ 0 are training requests, negative ones validation requests; never mixed in one call."""
    if len(samples) and samples[0] < 0:
        return sets[1], -1 - samples
    return sets[0], samples
