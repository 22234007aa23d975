"""Train the Lookahead Evaluator, its value-to-go network and the pointwise baseline: one task of the worker group."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from degre_prod.artefact import write_json
from degre_prod.config import EvaluatorConfig
from degre_prod.encoding.encoder import Layout, load_encoder
from degre_prod.encoding.store import EncodedSet, load_encoded
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.models.member import EvaluatorSpec, Member
from degre_prod.models.pointwise import PointwiseScorer
from degre_prod.schema import DataSchema
from degre_prod.training.data import Draws, logged_lists, mean_utility, to_batch
from degre_prod.training.group import Worker, current_worker
from degre_prod.training.loop import Loss, Schedule, fit
from degre_prod.training.modules import load_evaluator, load_pointwise, save_module
from degre_prod.training.warm_start import start_from

M = TypeVar("M", bound=nn.Module)
FORMS: Final = ("additive", "products", "attention")
MEMBER_SEEDS: Final = 1000  # between the seeds of two members


def train_evaluator(config: dict[str, Any]) -> None:
    """Task: `encoded` (folder with train/, validation/, encoder.json), `folder` (where to work), `evaluator` (EvaluatorConfig),
    optionally `warm_start` (folder of an evaluator of the same shape: its weights are where training starts).

    With `prefix_state: auto` the first member's count network is trained in every form and the one with the lowest
    validation loss is kept; later members take its form. Leaves evaluator.safetensors/.json, pointwise.safetensors and
    curves.json (the curves of every form).
    """
    settings = EvaluatorConfig(**config["evaluator"])
    folder, encoded = Path(config["folder"]), Path(config["encoded"])
    encoder = load_encoder(encoded / "encoder.json")
    train, validation = load_encoded(encoded / "train"), load_encoded(encoded / "validation")
    run = _Training(settings, folder, (train, validation), current_worker())
    forms: tuple[str, ...] = FORMS if settings.prefix_state == "auto" else (settings.prefix_state,)
    warm = load_evaluator(Path(config["warm_start"])) if "warm_start" in config else None
    members: list[Member] = []
    for i in range(settings.members):
        candidates = []
        for form in forms:
            spec = evaluator_spec(encoder.schema, encoder.layout(), settings, form, train)
            torch.manual_seed(settings.seed + MEMBER_SEEDS * i)
            member = Member(spec)
            if warm is not None:
                start_from(member, list(warm.each())[i])
            lowest = run.fit(f"evaluator {form}", i, member, ("value", "head"), count_loss, run.epochs(form))
            candidates.append((lowest, form, member))
        _, chosen, member = min(candidates, key=lambda candidate: candidate[0])
        forms = (chosen,)
        run.fit("value to go", i, member, ("togo", "pool"), to_go_loss, run.togo_epochs)
        members.append(member)
    spec = members[0].spec
    torch.manual_seed(settings.seed)
    pointwise = PointwiseScorer(spec.layout, settings.width, encoder.schema.logged_length)
    if warm is not None:
        known = load_pointwise(Path(config["warm_start"]), spec.layout, settings.width, encoder.schema.logged_length)
        start_from(pointwise, known)
    run.fit(
        "pointwise",
        0,
        pointwise,
        ("",),
        lambda model, sets: pointwise_loss(model, sets, spec.layout.position_free),
        (run.epochs("additive") + 1) // 2,
    )
    if run.worker.rank == 0:
        model = LookaheadEvaluator(spec)
        for part, trained in zip(model.each(), members, strict=True):
            part.load_state_dict(trained.state_dict())
        save_module(model, spec, folder, "evaluator")
        save_module(pointwise, spec, folder, "pointwise")
        write_json(folder / "curves.json", run.curves)


@dataclass
class _Training:
    """What the networks of one task share; `curves` grows by one entry a network."""

    settings: EvaluatorConfig
    folder: Path
    sets: tuple[EncodedSet, EncodedSet]
    worker: Worker
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    @property
    def _steps(self) -> int:
        return math.ceil(len(self.sets[0]) / self.settings.batch_size)

    def epochs(self, form: str) -> int:
        """Of a count network. A small log gets `min_steps`, the attention form its share of them."""
        settings = self.settings
        wanted = settings.attention_epochs if form == "attention" else settings.epochs
        return max(wanted, math.ceil(settings.min_steps * wanted / settings.epochs / self._steps))

    @property
    def togo_epochs(self) -> int:
        """Of a value-to-go network."""
        return max(1, round(self.settings.togo_steps / self._steps))

    def fit(
        self,
        name: str,
        i: int,
        model: M,
        parts: tuple[str, ...],
        loss: Callable[[M, tuple[EncodedSet, EncodedSet]], Loss],
        epochs: int,
    ) -> float:
        """Train the parameters whose names begin with one of `parts`, for member `i`; the lowest validation loss."""
        settings = self.settings
        name = f"{name} {i + 1}" if i else name
        for parameter_name, parameter in model.named_parameters():  # value and to-go are networks of their own
            parameter.requires_grad_(parameter_name.startswith(parts))
        records = fit(
            model,
            loss(model, self.sets),
            train=np.arange(len(self.sets[0])),
            validation=-1 - np.arange(len(self.sets[1])),  # negative: validation
            schedule=Schedule(
                epochs,
                settings.batch_size,
                settings.learning_rate,
                settings.weight_decay,
                settings.seed + MEMBER_SEEDS * i,
            ),
            worker=self.worker,
            folder=self.folder,
            name=name.replace(" ", "_"),
        )
        self.curves[name] = [vars(r) for r in records]
        return min(r.validation for r in records)


def evaluator_spec(
    schema: DataSchema, layout: Layout, settings: EvaluatorConfig, prefix_state: str, train: EncodedSet
) -> EvaluatorSpec:
    """The spec of an evaluator for a data set, in one form of prefix state; Ū comes from the training split."""
    weights_OL = np.array([o.weight for o in schema.objectives])[:, None] * np.array(schema.slot_weights_OL())
    return EvaluatorSpec(
        layout=layout,
        prefix_state=prefix_state,
        width=settings.width,
        layers=settings.layers,
        at_most_one=tuple(o.at_most_one for o in schema.objectives),
        weights_OL=tuple(tuple(row) for row in weights_OL.tolist()),
        mean_utility=mean_utility(train, weights_OL, position_free=schema.position_free),
        head=settings.head,
        members=settings.members,
    )


def count_loss(model: Member, sets: tuple[EncodedSet, EncodedSet]) -> Loss:
    """The count head's loss on logged lists; only the listed items are embedded."""
    layout = model.spec.layout

    def loss(samples: np.ndarray, random: Draws) -> tuple[Tensor, Tensor]:
        encoded, requests = _resolve(sets, samples)
        lists, feedback, carries = logged_lists(
            encoded, requests, layout.list_length, random if layout.position_free else None
        )
        batch = to_batch(encoded, requests, only_BX=lists)
        at = torch.arange(lists.shape[1]).expand(len(requests), -1)
        return model.head.loss(model.logits(batch, at), torch.from_numpy(feedback), torch.from_numpy(carries))

    return loss


def to_go_loss(model: Member, sets: tuple[EncodedSet, EncodedSet]) -> Loss:
    """Squared error on the utility still to come in the log, Σ_{i>t} ω w_i y_i / Ū, zeros after leaving included."""
    layout = model.spec.layout

    def loss(samples: np.ndarray, random: Draws) -> tuple[Tensor, Tensor]:
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

    def loss(samples: np.ndarray, random: Draws) -> tuple[Tensor, Tensor]:
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
