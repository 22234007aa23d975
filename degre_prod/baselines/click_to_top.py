"""Supervised pointer: the Online Generator, taught to repeat logged lists with what was clicked moved to the top."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from degre_prod.baselines.calls import Calls
from degre_prod.baselines.material import LOG_EPOCHS, Material, Ranker, batches, cut, resolve, train_on_logs
from degre_prod.encoding.store import EncodedSet
from degre_prod.models.generator import Generator
from degre_prod.training.data import Draws, logged_lists, to_batch
from degre_prod.training.generator import generator_spec, step_loss


@dataclass(frozen=True)
class ClickToTopConfig:
    """How the network learns from the logs; the best epoch by held-out loss is kept."""

    epochs: int = LOG_EPOCHS
    learning_rate: float = 2e-3


TRIALS: tuple[ClickToTopConfig, ...] = (
    ClickToTopConfig(),
    ClickToTopConfig(learning_rate=5e-3),
    ClickToTopConfig(learning_rate=7e-4),
    ClickToTopConfig(epochs=12),
)


def click_to_top(material: Material, _: Calls, config: ClickToTopConfig = TRIALS[0]) -> Ranker:
    """Train, then decode greedily."""
    model = train_click_to_top(material, config)
    return lambda encoded: decoded(model, encoded, material.layout.list_length)


def train_click_to_top(material: Material, config: ClickToTopConfig = TRIALS[0]) -> Generator:
    """Cross-entropy of each item of `clicked_first`, teacher forced."""
    torch.manual_seed(material.seed)
    weights = np.array(material.evaluator.spec.weights_OL)[:, 0]
    model = Generator(generator_spec(material.layout, material.generator))

    def loss(samples: np.ndarray, _random: Draws) -> tuple[Tensor, Tensor]:
        encoded, requests = resolve(material, samples)
        shown, feedback, _ = logged_lists(encoded, requests, material.layout.list_length, None)
        labels = torch.from_numpy(clicked_first(shown, np.einsum("bol,o->bl", feedback, weights)))
        logits = model.teacher_forced(to_batch(encoded, requests), labels.clamp(min=0).unsqueeze(1))[:, 0]
        steps = step_loss(logits, labels, torch.zeros_like(logits), 0.0)
        return steps.sum(), (labels >= 0).sum()

    train_on_logs(material, model, loss, epochs=config.epochs, learning_rate=config.learning_rate)
    return model


def clicked_first(shown_BL: np.ndarray, feedback_BL: np.ndarray) -> np.ndarray:
    """Items with more feedback first, otherwise in shown order; padding stays last."""
    order = np.argsort(np.where(shown_BL < 0, np.inf, -feedback_BL), axis=1, kind="stable")
    return np.take_along_axis(shown_BL, order, axis=1)


def decoded(model: Generator, encoded: EncodedSet, length: int) -> np.ndarray:
    """The generator's greedy lists (R, L)."""
    with torch.inference_mode():
        return cut(np.concatenate([model.decode(batch, length)[0].numpy() for batch in batches(encoded)]), encoded)
