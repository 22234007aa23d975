"""What every baseline is given, and the few steps that most of them share."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from degre_prod.config import GeneratorConfig
from degre_prod.encoding.encoder import Layout
from degre_prod.encoding.store import EncodedSet
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.training.data import TensorBatch, to_batch
from degre_prod.training.group import current_worker
from degre_prod.training.loop import Loss, Schedule, fit

CHUNK = 100
LOG_BATCH, LOG_EPOCHS = 256, 5  # networks that learn from the logs alone; the best epoch by held-out loss is kept
HELD_OUT = 10  # every tenth of the requests that the evaluator is asked about chooses the epoch, as for the generator

Ranker = Callable[[EncodedSet], np.ndarray]  # lists (R, L), indices into the candidates, -1 past a short list


@dataclass(frozen=True)
class Material:
    """Data, evaluator and budget.

    `requests`: the training requests the evaluator may be asked about, those that are mined for the generator. `budget`:
    evaluator calls a method may spend on learning. `generator`: the sizes and the optimiser of the Online Generator,
    which every method with a generator of its own uses. `slots`: longest logged list.
    """

    train: EncodedSet
    validation: EncodedSet
    layout: Layout
    slots: int
    evaluator: LookaheadEvaluator
    requests: np.ndarray
    budget: int
    generator: GeneratorConfig
    seed: int


Method = Callable[..., Ranker]  # (material, calls), and of the tunable ones a configuration, see registry.TRIALS


def train_on_logs(material: Material, model: nn.Module, loss: Loss, *, epochs: int, learning_rate: float) -> None:
    """Train on every logged training request; `loss` is given indices as `resolve` reads them."""
    learn(
        model,
        loss,
        np.arange(len(material.train)),
        -1 - np.arange(len(material.validation)),
        Schedule(epochs, LOG_BATCH, learning_rate, material.generator.weight_decay, material.seed),
    )


def learn(model: nn.Module, loss: Loss, train: np.ndarray, validation: np.ndarray, schedule: Schedule) -> None:
    """The project's training loop in a temporary folder: an interrupted baseline starts again, so its price is right."""
    with tempfile.TemporaryDirectory() as folder:
        fit(
            model,
            loss,
            train=train,
            validation=validation,
            schedule=schedule,
            worker=current_worker(),
            folder=Path(folder),
            name="baseline",
        )


def resolve(material: Material, samples: np.ndarray) -> tuple[EncodedSet, np.ndarray]:
    """Samples ≥ 0 are training requests, negative ones (-1 - r) validation requests; never mixed in one call."""
    if len(samples) and samples[0] < 0:
        return material.validation, -1 - samples
    return material.train, samples


def utilities_of(model: LookaheadEvaluator, encoded: EncodedSet, requests: np.ndarray, lists_BGL: Tensor) -> Tensor:
    """What the evaluator believes G full lists of each request are worth: (B, G), in units of Ū."""
    B, G, L = lists_BGL.shape
    flat = lists_BGL.reshape(B * G, L)
    batch = to_batch(encoded, np.repeat(requests, G), only_BX=flat.numpy())  # the listed items alone
    with torch.no_grad():
        return model.utilities(batch, torch.arange(L).expand(B * G, L))[:, -1].view(B, G)


def by_score(encoded: EncodedSet, length: int, scores: Callable[[TensorBatch], Tensor]) -> np.ndarray:
    """Candidates by score_BC, best first, ties by prior rank: (R, L)."""
    out = []
    with torch.inference_mode():
        for batch in batches(encoded):
            order = (
                scores(batch).masked_fill(~batch["mask"], float("-inf")).argsort(dim=1, descending=True, stable=True)
            )
            out.append(order[:, :length].numpy())
    return cut(np.concatenate(out), encoded)


def batches(encoded: EncodedSet) -> Iterator[TensorBatch]:
    """All requests of a split, in order."""
    for start in range(0, len(encoded), CHUNK):
        yield to_batch(encoded, np.arange(start, min(start + CHUNK, len(encoded))))


def cut(lists_RL: np.ndarray, encoded: EncodedSet) -> np.ndarray:
    """-1 past the last candidate."""
    count = encoded.arrays["mask"].sum(1)
    return np.where(np.arange(lists_RL.shape[1]) < count[:, None], lists_RL, -1)
