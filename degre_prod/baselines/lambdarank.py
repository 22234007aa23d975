"""LightGBM lambdarank on the encoder's features. Needs the optional package `lightgbm`."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch

from degre_prod.baselines.calls import Calls
from degre_prod.baselines.material import Material, Ranker, by_score
from degre_prod.encoding.store import CANDIDATE_ARRAYS, REQUEST_ARRAYS, EncodedSet
from degre_prod.errors import ConfigurationError
from degre_prod.training.data import TensorBatch

ROUNDS, PATIENCE = 1000, 50


@dataclass(frozen=True)
class LambdaRankConfig:
    """LightGBM's own names; at most `ROUNDS` trees, fewer when held-out NDCG stops rising for `PATIENCE` of them."""

    learning_rate: float = 0.05
    num_leaves: int = 31
    min_data_in_leaf: int = 20


TRIALS: tuple[LambdaRankConfig, ...] = (
    LambdaRankConfig(),
    LambdaRankConfig(min_data_in_leaf=200),
    LambdaRankConfig(learning_rate=0.02, num_leaves=15, min_data_in_leaf=100),
    LambdaRankConfig(num_leaves=63, min_data_in_leaf=100),
)


def lambdarank(material: Material, _: Calls, config: LambdaRankConfig = TRIALS[0]) -> Ranker:
    """Learn to rank what was shown by its feedback; the number of trees by held-out NDCG.

    Raises ConfigurationError without lightgbm.
    """
    try:
        import lightgbm
    except ImportError:
        raise ConfigurationError("the method `lambdarank` needs lightgbm: pip install 'degre-prod[bench]'") from None
    features, labels, sizes = shown_rows(material.train, material.seed)
    train = lightgbm.Dataset(features, labels, group=sizes, params={"verbose": -1})
    features, labels, sizes = shown_rows(material.validation, material.seed)
    held_out = lightgbm.Dataset(features, labels, group=sizes, reference=train, params={"verbose": -1})
    booster = lightgbm.train(
        {
            "objective": "lambdarank",
            "metric": "ndcg",
            "eval_at": [material.layout.list_length],
            **asdict(config),
            "num_threads": 1,
            "deterministic": True,
            "seed": material.seed,
            "verbose": -1,
        },
        train,
        ROUNDS,
        valid_sets=[held_out],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )

    def scores(batch: TensorBatch) -> torch.Tensor:
        B, C = batch["mask"].shape
        rows = candidate_rows({name: tensor.numpy() for name, tensor in batch.items()})
        predicted = booster.predict(rows.reshape(B * C, -1), num_threads=1)
        return torch.from_numpy(np.asarray(predicted)).view(B, C)

    return lambda encoded: by_score(encoded, material.layout.list_length, scores)


def shown_rows(encoded: EncodedSet, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (X, F) of every shown item, whether it got any feedback (X,), and shown items a request (R,).

    Items of a request come in random order: LightGBM's NDCG settles ties by row, and the shown order would leak the slot.
    """
    shown = np.asarray(encoded.arrays["shown"])
    keys = np.random.default_rng(seed).random(shown.shape)
    order = np.argsort(np.where(shown >= 0, keys, 2.0), axis=1)
    request, place = np.nonzero(np.take_along_axis(shown, order, 1) >= 0)
    slot = order[request, place]
    item = shown[request, slot]
    parts = [encoded.arrays[name][request, item] for name in CANDIDATE_ARRAYS]
    parts += [encoded.arrays[name][request] for name in REQUEST_ARRAYS]
    labels = encoded.arrays["feedback"].sum(1)[request, slot] > 0
    return np.concatenate(parts, axis=1, dtype=np.float32), labels.astype(np.int32), (shown >= 0).sum(1)


def candidate_rows(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Features of every candidate: (B, C, F), columns as in `shown_rows`."""
    B, C = arrays["mask"].shape
    parts = [arrays[name] for name in CANDIDATE_ARRAYS]
    parts += [np.broadcast_to(arrays[name][:, None], (B, C, arrays[name].shape[1])) for name in REQUEST_ARRAYS]
    return np.concatenate(parts, axis=2, dtype=np.float32)
