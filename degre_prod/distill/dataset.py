"""Mined shards as the generator's training samples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from degre_prod.config import GeneratorConfig
from degre_prod.distill.targets import list_weights, soft_labels, step_values
from degre_prod.errors import TrainingError
from degre_prod.mining.record import read_record


@dataclass(frozen=True)
class DenseTargets:
    """R mined requests, J teacher-forced lists each: the K kept ones, then the generator's own of on-policy rounds.

    request_R index into the encoded split · inputs_RJL items fed · labels_RJL hard labels (-1: no loss there) ·
    soft_RJLC q(v|s) (all 0: no KL there) · weight_RJ · feasible_RJLC what may come next, None where only used items and
    padding may not.
    """

    request: np.ndarray
    inputs: np.ndarray
    labels: np.ndarray
    soft: np.ndarray
    weight: np.ndarray
    feasible: np.ndarray | None = None


def load_targets(mined: Path, settings: GeneratorConfig) -> DenseTargets:
    """Read every shard of a mined artefact; raises TrainingError when there is none."""
    files = sorted(mined.glob("shard-*.npz"))
    if not files:
        raise TrainingError(f"{mined} holds no mined shard; run `degre mine` first")
    parts, restricted = [], read_record(mined).restricted
    for file in files:
        with np.load(file, allow_pickle=False) as shard:
            parts.append(dense_targets(dict(shard), settings, restricted=restricted))
    joined = {
        name: np.concatenate([getattr(p, name) for p in parts])
        for name in DenseTargets.__annotations__
        if getattr(parts[0], name) is not None
    }
    return DenseTargets(**joined)


def dense_targets(shard: dict[str, np.ndarray], settings: GeneratorConfig, *, restricted: bool = False) -> DenseTargets:
    """Targets of one shard's arrays (names and shapes as in degre_prod.mining.mine), mined under rules or not."""
    values = step_values(shard["one_step"], shard["backed_up"], form=settings.targets)
    soft, _ = soft_labels(values, settings.tau_q)
    lists = shard["lists"].astype(np.int64)
    return DenseTargets(
        request=shard["request"],
        inputs=lists,
        labels=lists,
        soft=soft.astype(np.float32),
        weight=list_weights(shard["utility"], settings.tau_w).astype(np.float32),
        feasible=~np.isnan(shard["one_step"]) if restricted else None,
    )
