"""Train the Lookahead Evaluator, its value-to-go network and the pointwise baseline: one task of the worker group."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
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
from degre_prod.training.group import current_worker
from degre_prod.training.loop import Loss, Schedule
from degre_prod.training.modules import load_evaluator, load_pointwise, save_module
from degre_prod.training.side_by_side import Network, Trained, train_side_by_side
from degre_prod.training.warm_start import start_from

FORMS: Final = ("additive", "products", "attention")
MEMBER_SEEDS: Final = 1000  # between the seeds of two members
# A form whose validation loss half-way is more than so many times the best one's does not get there: it would have won in one of
# the runs in docs/results.md, "Which form", by a ten-thousandth.
BEHIND: Final = 1.001
# Of one optimiser step, beside the additive form's, read at n = 50, L = 10. They divide the work and change no result.
_COST: Final = {"additive": 1.0, "products": 1.25, "attention": 1.65, "value to go": 1.2, "pointwise": 0.8}


def train_evaluator(config: dict[str, Any]) -> None:
    """Task: `encoded` (folder with train/, validation/, encoder.json), `folder` (where to work), `evaluator` (EvaluatorConfig),
    optionally `warm_start` (folder of an evaluator of the same shape: its weights are where training starts).

    With `prefix_state: auto` the first member's count network is half trained in every form, then goes on in those that are
    not BEHIND; the one with the lowest validation loss is kept, and later members take its form. Leaves
    evaluator.safetensors/.json, pointwise.safetensors and curves.json (the curves of every form).
    """
    settings = EvaluatorConfig(**config["evaluator"])
    folder, encoded = Path(config["folder"]), Path(config["encoded"])
    encoder = load_encoder(encoded / "encoder.json")
    train, validation = load_encoded(encoded / "train"), load_encoded(encoded / "validation")
    worker = current_worker()
    together = partial(
        train_side_by_side,
        train=np.arange(len(train)),
        validation=-1 - np.arange(len(validation)),  # negative: validation
        worker=worker,
        folder=folder,
    )
    warm = Path(config["warm_start"]) if "warm_start" in config else None
    networks = _Networks(settings, (train, validation), encoder.schema, encoder.layout(), warm)
    scorer = networks.pointwise()
    form, trained = _trained(networks, scorer, together)
    if worker.rank == 0:
        model = LookaheadEvaluator(networks.spec(form))
        for i, member in enumerate(model.each()):
            count, to_go = trained[networks.count(i, form).name], trained[networks.to_go(i, form).name]
            member.load_state_dict(member.state_dict() | count.weights | to_go.weights)
        pointwise = scorer.make()
        pointwise.load_state_dict(trained[scorer.name].weights)
        save_module(model, model.spec, folder, "evaluator")
        save_module(pointwise, model.spec, folder, "pointwise")
        write_json(folder / "curves.json", {name: [vars(r) for r in t.curve] for name, t in trained.items()})


def _trained(
    networks: _Networks, scorer: Network, together: Callable[[list[Network]], dict[str, Trained]]
) -> tuple[str, dict[str, Trained]]:
    """The form of prefix state, and every network that was trained, by name."""
    form = networks.settings.prefix_state
    if form != "auto":
        return form, together([networks.count(0, form), scorer, *networks.after_the_first(form)])
    tried = {form: networks.count(0, form) for form in FORMS}
    trained = together([*(network.first_half() for network in tried.values()), scorer])
    losses = {form: trained[network.name].lowest for form, network in tried.items()}
    left = [form for form in FORMS if losses[form] <= BEHIND * min(losses.values())]
    rest = [tried[form].second_half() for form in left]
    if len(left) == 1:  # then nothing has to wait for the choice; halves divide more evenly
        after = networks.after_the_first(left[0])
        trained |= together([*rest, *(network.first_half() for network in after)])
        return left[0], trained | together([network.second_half() for network in after])
    trained |= together(rest)
    best = min(left, key=lambda form: trained[tried[form].name].lowest)
    return best, trained | together(networks.after_the_first(best))


@dataclass(frozen=True)
class _Networks:
    """The networks of one evaluator, as they are before training."""

    settings: EvaluatorConfig
    sets: tuple[EncodedSet, EncodedSet]
    schema: DataSchema
    layout: Layout
    warm: Path | None

    def count(self, i: int, form: str) -> Network:
        """The count network of member `i`. A small log gets `min_steps`, the attention form its share of them."""
        settings = self.settings
        wanted = settings.attention_epochs if form == "attention" else settings.epochs
        epochs = max(wanted, math.ceil(settings.min_steps * wanted / settings.epochs / self._steps))
        make, name = partial(self._member, i, form), _named(f"evaluator {form}", i)
        return Network(
            name, make, partial(count_loss, sets=self.sets), ("value", "head"), *self._plan(i, epochs, _COST[form])
        )

    def after_the_first(self, form: str) -> list[Network]:
        """The other members' count networks, then every member's value to go."""
        members = range(self.settings.members)
        return [*(self.count(i, form) for i in members[1:]), *(self.to_go(i, form) for i in members)]

    def to_go(self, i: int, form: str) -> Network:
        """The value to go of member `i`, whose count network has this form."""
        epochs = max(1, round(self.settings.togo_steps / self._steps))
        make, name = partial(self._member, i, form), _named("value to go", i)
        return Network(
            name,
            make,
            partial(to_go_loss, sets=self.sets),
            ("togo", "pool"),
            *self._plan(i, epochs, _COST["value to go"]),
        )

    def pointwise(self) -> Network:
        """The pointwise baseline; half as long as a count network."""
        epochs = (self.count(0, "additive").schedule.epochs + 1) // 2
        loss = partial(pointwise_loss, sets=self.sets, position_free=self.layout.position_free)
        return Network("pointwise", self._scorer, loss, ("",), *self._plan(0, epochs, _COST["pointwise"]))

    def spec(self, form: str) -> EvaluatorSpec:
        """The evaluator in one form of prefix state."""
        return evaluator_spec(self.schema, self.layout, self.settings, form, self.sets[0])

    def _member(self, i: int, form: str) -> Member:
        torch.manual_seed(self.settings.seed + MEMBER_SEEDS * i)
        member = Member(self.spec(form))
        if self.warm is not None:
            start_from(member, list(load_evaluator(self.warm).each())[i])
        return member

    def _scorer(self) -> PointwiseScorer:
        shape = (self.layout, self.settings.width, self.schema.logged_length)
        torch.manual_seed(self.settings.seed)
        scorer = PointwiseScorer(*shape)
        if self.warm is not None:
            start_from(scorer, load_pointwise(self.warm, *shape))
        return scorer

    @property
    def _steps(self) -> int:
        return math.ceil(len(self.sets[0]) / self.settings.batch_size)

    def _plan(self, i: int, epochs: int, cost: float) -> tuple[Schedule, float]:
        """How long member `i`'s network is trained and how fast, and what that costs."""
        s = self.settings
        seed = s.seed + MEMBER_SEEDS * i
        return Schedule(epochs, s.batch_size, s.learning_rate, s.weight_decay, seed), epochs * cost


def _named(name: str, i: int) -> str:
    return f"{name} {i + 1}" if i else name


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
        return model.head.loss(model.logits(batch), torch.from_numpy(feedback), torch.from_numpy(carries))

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
        losses = F.binary_cross_entropy_with_logits(
            model.logged(batch), torch.from_numpy(feedback).transpose(1, 2), reduction="none"
        )
        carries_BT = torch.from_numpy(carries)
        return (losses.sum(-1) * carries_BT).sum(), carries_BT.sum()

    return loss


def _resolve(sets: tuple[EncodedSet, EncodedSet], samples: np.ndarray) -> tuple[EncodedSet, np.ndarray]:
    """Samples ≥ 0 are training requests, negative ones validation requests; never mixed in one call."""
    if len(samples) and samples[0] < 0:
        return sets[1], -1 - samples
    return sets[0], samples
