"""Train the Online Generator on dense targets: one task of the worker group.

Loss = Σ_l w_l · mean_t [CE(l_t, p_t) + α · KL(q_t ‖ p_t)] (METHOD §4).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from degre_prod.artefact import write_json
from degre_prod.config import GeneratorConfig
from degre_prod.distill.dataset import DenseTargets, load_targets
from degre_prod.encoding.encoder import Layout, load_encoder
from degre_prod.encoding.store import EncodedSet, load_encoded
from degre_prod.errors import TrainingError
from degre_prod.models.generator import Generator, GeneratorSpec
from degre_prod.training.data import Draws, to_batch
from degre_prod.training.group import current_worker
from degre_prod.training.loop import EpochRecord, Loss, Schedule, fit
from degre_prod.training.modules import load_generator, save_module
from degre_prod.training.own_lists import with_own_lists
from degre_prod.training.warm_start import start_from

HELD_OUT = 10  # every tenth mined request is kept for the learning curve and the choice of the epoch


def train_generator(config: dict[str, Any]) -> None:
    """Task: `encoded`, `mined` (folders), `folder` (where to work), `generator` (GeneratorConfig); for on-policy rounds
    also `evaluator` (folder) and `mining` (MiningConfig); optionally `warm_start` (folder of a generator of the same shape:
    its weights are where training starts).

    Leaves generator.safetensors/.json and curves.json. Raises TrainingError where there are more rounds than epochs.
    """
    worker = current_worker()
    settings = GeneratorConfig(**config["generator"])
    folder, encoded = Path(config["folder"]), Path(config["encoded"])
    layout = load_encoder(encoded / "encoder.json").layout()
    train = load_encoded(encoded / "train")
    targets = load_targets(Path(config["mined"]), settings)
    torch.manual_seed(settings.seed)
    spec = generator_spec(layout, settings)
    model = Generator(spec)
    if "warm_start" in config:
        start_from(model, load_generator(Path(config["warm_start"])))
    samples = np.arange(len(targets.request))
    records: list[EpochRecord] = []
    for round_, epochs in enumerate(epochs_by_round(settings)):
        if round_:
            targets = with_own_lists(targets, model, settings, config, worker, f"own-{round_}")
        learnt = fit(
            model,
            dense_loss(model, train, targets, settings.alpha),
            train=samples[samples % HELD_OUT != 0],
            validation=samples[samples % HELD_OUT == 0],
            schedule=Schedule(
                epochs, settings.batch_size, settings.learning_rate, settings.weight_decay, settings.seed
            ),
            worker=worker,
            folder=folder,
            name=f"generator-{round_}" if round_ else "generator",
        )
        records += [replace(record, epoch=len(records) + record.epoch) for record in learnt]
    if worker.rank == 0:
        save_module(model, spec, folder, "generator")
        write_json(folder / "curves.json", {"generator": [vars(r) for r in records]})


def epochs_by_round(settings: GeneratorConfig) -> list[int]:
    """The epochs in equal parts, one more than there are on-policy rounds, earlier ones longer where they don't divide."""
    parts = settings.on_policy_rounds + 1
    if settings.epochs < parts:
        raise TrainingError(
            f"generator.on_policy_rounds {settings.on_policy_rounds} needs {parts} epochs at least, "
            f"generator.epochs is {settings.epochs}"
        )
    return [len(part) for part in np.array_split(np.arange(settings.epochs), parts)]


def generator_spec(layout: Layout, settings: GeneratorConfig) -> GeneratorSpec:
    """The network that these settings ask for."""
    return GeneratorSpec(layout, settings.width, settings.encoder_layers, settings.decoder)


def dense_loss(model: Generator, encoded: EncodedSet, targets: DenseTargets, alpha: float) -> Loss:
    """The loss of the module's docstring, summed over requests."""

    def loss(samples: np.ndarray, _: Draws) -> tuple[Tensor, Tensor]:
        batch = to_batch(encoded, targets.request[samples])
        labels = torch.from_numpy(targets.labels[samples])
        q = torch.from_numpy(targets.soft[samples])
        feasible = None if targets.feasible is None else torch.from_numpy(targets.feasible[samples])
        logits = model.teacher_forced(batch, torch.from_numpy(targets.inputs[samples]), feasible)
        per_step = step_loss(logits, labels, q, alpha)
        counted = (labels >= 0).sum(-1).clamp(min=1)
        per_list = per_step.sum(-1) / counted
        value = (per_list * torch.from_numpy(targets.weight[samples])).sum()
        return value, torch.tensor(float(len(samples)))

    return loss


def step_loss(logits_XC: Tensor, labels_X: Tensor, q_XC: Tensor, alpha: float) -> Tensor:
    """CE(label, p) + α·KL(q ‖ p) for every step; 0 where the label is -1, no KL where q is all 0."""
    logp = F.log_softmax(logits_XC, dim=-1)
    hard = -logp.gather(-1, labels_X.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    soft = (torch.special.xlogy(q_XC, q_XC) - q_XC * logp).sum(-1)
    return (hard + alpha * soft) * (labels_X >= 0)
