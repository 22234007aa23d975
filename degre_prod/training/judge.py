"""Train the judge on traffic the evaluator never saw, and ask it about lists.

In a simulated world that traffic is a log of uniformly random lists. A real log without exploration traffic is halved by
time: a judge of the older half judges what an evaluator of the newer half taught.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from degre_prod.artefact import write_json
from degre_prod.config import JudgeConfig
from degre_prod.encoding.encoder import Layout, load_encoder
from degre_prod.encoding.store import EncodedSet, load_encoded
from degre_prod.models.judge import Judge, JudgeSpec
from degre_prod.schema import DataSchema
from degre_prod.training.data import Draws, logged_lists, to_batch
from degre_prod.training.group import current_worker
from degre_prod.training.loop import Loss, Schedule, fit
from degre_prod.training.modules import save_module

CHUNK = 500


def train_judge(config: dict[str, Any]) -> None:
    """Task: `encoded` (folder with train/, validation/, encoder.json), `folder` (where to work), `judge` (JudgeConfig),
    and `requests`: "all" or "older_half" of the training requests, or a list of their indices.

    Leaves judge.safetensors/.json and curves.json.
    """
    worker = current_worker()
    settings = JudgeConfig(**config["judge"])
    folder, encoded = Path(config["folder"]), Path(config["encoded"])
    encoder = load_encoder(encoded / "encoder.json")
    train, validation = load_encoded(encoded / "train"), load_encoded(encoded / "validation")
    samples = _chosen(config["requests"], train)
    spec = judge_spec(encoder.schema, encoder.layout(), settings)
    torch.manual_seed(settings.seed)
    model = Judge(spec)
    steps = math.ceil(len(samples) / settings.batch_size)
    epochs = max(settings.epochs, math.ceil(settings.min_steps / steps))
    records = fit(
        model,
        slot_loss(model, (train, validation)),
        train=samples,
        validation=-1 - np.arange(len(validation)),
        schedule=Schedule(epochs, settings.batch_size, settings.learning_rate, settings.weight_decay, settings.seed),
        worker=worker,
        folder=folder,
        name="judge",
    )
    if worker.rank == 0:
        save_module(model, spec, folder, "judge")
        write_json(folder / "curves.json", {"judge": [vars(r) for r in records]})


def judge_spec(schema: DataSchema, layout: Layout, settings: JudgeConfig) -> JudgeSpec:
    """The judge of a data set."""
    slots_OL = schema.slot_weights_OL()
    weights = tuple(tuple(o.weight * w for w in row) for o, row in zip(schema.objectives, slots_OL, strict=True))
    return JudgeSpec(layout, settings.width, settings.layers, weights)


def _chosen(requests: str | list[int], train: EncodedSet) -> np.ndarray:
    if isinstance(requests, list):
        return np.array(requests, np.int64)
    return np.arange(len(train)) if requests == "all" else older_half(train)


def older_half(encoded: EncodedSet) -> np.ndarray:
    """The older half of the requests, as indices."""
    order = np.argsort(encoded.arrays["timestamp"], kind="stable")
    return np.sort(order[: max(1, len(order) // 2)])


def slot_loss(model: Judge, sets: tuple[EncodedSet, EncodedSet]) -> Loss:
    """Cross-entropy of every slot's feedback given the whole list; samples < 0 (-1 - r) are validation requests.

    A slot the user never reached counts as no feedback: leaving is an effect of the list.
    """
    layout = model.spec.layout

    def loss(samples: np.ndarray, random: Draws) -> tuple[Tensor, Tensor]:
        held_out = len(samples) > 0 and samples[0] < 0
        encoded, requests = (sets[1], -1 - samples) if held_out else (sets[0], samples)
        lists, feedback, carries = logged_lists(
            encoded, requests, layout.list_length, random if layout.position_free else None
        )
        logits = model(to_batch(encoded, requests, only_BX=lists))
        target = torch.from_numpy(feedback).transpose(1, 2)
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        counted = torch.from_numpy(carries)
        return (losses.sum(-1) * counted).sum(), counted.sum()

    return loss


def judged_utility(model: Judge, encoded: EncodedSet, lists_RL: np.ndarray) -> np.ndarray:
    """What the judge believes given lists are worth, (R,) in units of feedback; -1 pads a short list and earns nothing."""
    return judged_slots(model, encoded, lists_RL).sum(1)


def judged_slots(model: Judge, encoded: EncodedSet, lists_RL: np.ndarray) -> np.ndarray:
    """What the judge believes each slot of given lists earns, (R, L) in units of feedback; -1 pads a short list."""
    out = np.empty(lists_RL.shape)
    with torch.inference_mode():
        for start in range(0, len(encoded), CHUNK):
            requests = np.arange(start, min(start + CHUNK, len(encoded)))
            out[requests] = model.slot_utilities(to_batch(encoded, requests, only_BX=lists_RL[requests])).numpy()
    return out
