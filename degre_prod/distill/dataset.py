"""Mined shards as the generator's training samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from degre_prod.config import GeneratorConfig
from degre_prod.distill.targets import list_weights, soft_labels, step_values
from degre_prod.errors import TrainingError


@dataclass(frozen=True)
class DenseTargets:
    """R mined requests, J = K + 1 teacher-forced lists each (the K kept ones, then the logged one).

    request_R index into the encoded split · inputs_RJL items fed · labels_RJL hard labels (-1: no loss there) ·
    soft_RJLC q(v|s) (all 0: no KL there) · weight_RJ.
    """

    request: np.ndarray
    inputs: np.ndarray
    labels: np.ndarray
    soft: np.ndarray
    weight: np.ndarray


def load_targets(mined: Path, settings: GeneratorConfig) -> DenseTargets:
    """Read every shard of a mined artefact; raises TrainingError when there is none."""
    files = sorted(mined.glob("shard-*.npz"))
    if not files:
        raise TrainingError(f"{mined} holds no mined shard; run `degre mine` first")
    parts = []
    for file in files:
        with np.load(file, allow_pickle=False) as shard:
            parts.append(dense_targets(dict(shard), settings))
    return DenseTargets(*(np.concatenate([getattr(p, name) for p in parts]) for name in DenseTargets.__annotations__))


def dense_targets(shard: dict[str, np.ndarray], settings: GeneratorConfig) -> DenseTargets:
    """Targets of one shard's arrays (names and shapes as in degre_prod.mining.mine)."""
    values = step_values(shard["one_step"], shard["backed_up"], form=settings.targets)
    soft, _ = soft_labels(values, settings.tau_q)
    logged, label = shard["logged"][:, None].astype(np.int64), shard["label"][:, None].astype(np.int64)
    soft[:, -1][label[:, 0] < 0] = 0.0
    weight = list_weights(shard["utility"], settings.tau_w)
    return DenseTargets(
        request=shard["request"],
        inputs=np.maximum(np.concatenate([shard["lists"], logged], axis=1), 0),
        labels=np.concatenate([shard["lists"], label], axis=1),
        soft=soft.astype(np.float32),
        weight=np.concatenate([weight, np.ones_like(weight[:, :1])], axis=1).astype(np.float32),
    )
