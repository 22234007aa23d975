"""On-policy prefixes: the generator's own greedy lists, mined along as well, as further samples (METHOD §4)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from degre_prod.artefact import written_aside
from degre_prod.config import GeneratorConfig, MiningConfig
from degre_prod.constraints.mask import feasible_along, feasible_next
from degre_prod.constraints.rules import Rules, unconstrained
from degre_prod.distill.dataset import DenseTargets
from degre_prod.distill.targets import soft_labels, step_values
from degre_prod.encoding.encoder import load_encoder
from degre_prod.encoding.store import EncodedSet, load_encoded
from degre_prod.mining.beam import Leaves, values_along
from degre_prod.mining.mine import best_leaf_through
from degre_prod.mining.record import mining_rules
from degre_prod.mining.replan import replan
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.models.generator import Generator
from degre_prod.training.data import to_batch
from degre_prod.training.group import Worker
from degre_prod.training.modules import load_evaluator


def with_own_lists(
    targets: DenseTargets,
    generator: Generator,
    settings: GeneratorConfig,
    config: dict[str, Any],
    worker: Worker,
    name: str,
) -> DenseTargets:
    """The targets with one list more a request: the generator's own, its label at each slot the first item of the re-plan
    from there, its weight 1.

    `config`: the task's, with `encoded`, `evaluator`, `mined`, `folder` and `mining` (MiningConfig). Each worker mines its
    share of the shards and leaves `{name}-NNNNN.npz`; one that is there already is left alone.
    """
    mining, folder = MiningConfig(**config["mining"]), Path(config["folder"])
    encoded = load_encoded(Path(config["encoded"]) / "train")
    spec = load_encoder(Path(config["encoded"]) / "encoder.json").spec
    evaluator = load_evaluator(Path(config["evaluator"]), pessimism=mining.pessimism)
    _, rules = mining_rules(spec, encoded, targets.request, mining)
    kept = _kept_leaves(Path(config["mined"]))
    places = np.arange(len(targets.request))
    shards = [places[i : i + mining.shard_size] for i in range(0, len(places), mining.shard_size)]
    files = [folder / f"{name}-{index:05d}.npz" for index in range(len(shards))]
    mine_of = worker.share(len(shards))
    for done, index in enumerate(mine_of):
        worker.progress(folder, done, len(mine_of), "own lists")
        if not files[index].exists():
            parts = np.split(shards[index], range(mining.chunk_size, len(shards[index]), mining.chunk_size))
            chunks = [
                own_lists(
                    generator,
                    evaluator,
                    encoded,
                    targets.request[part],
                    Leaves(kept.lists[part], kept.utility[part]),
                    mining,
                    None if rules is None else rules.of(part),
                )
                for part in parts
            ]
            with written_aside(files[index]) as aside, aside.open("wb") as stream:
                np.savez(stream, allow_pickle=False, **{n: np.concatenate([c[n] for c in chunks]) for n in chunks[0]})
    worker.sum(torch.zeros(1))  # nobody goes on before all have written
    return added(targets, _read(files), settings)


@torch.inference_mode()
def own_lists(
    generator: Generator,
    evaluator: LookaheadEvaluator,
    encoded: EncodedSet,
    requests: np.ndarray,
    kept: Leaves,
    mining: MiningConfig,
    rules: Rules | None = None,
) -> dict[str, np.ndarray]:
    """Greedy lists_RL, label_RL, one_step_RLC and backed_up_RLC as `mine` gives them for its lists; `kept` are the mined
    lists, `rules` those of the requests."""
    batch = to_batch(encoded, requests)
    prepared = evaluator.prepare(batch)
    L, C = evaluator.spec.layout.list_length, batch["mask"].shape[1]
    generator.eval()
    lists_BL, _ = generator.decode(batch, L, None if rules is None else _feasible(rules))
    order = lists_BL.numpy()
    one_step = values_along(evaluator, prepared, lists_BL.unsqueeze(1)).numpy()
    one_step[~feasible_along(rules or unconstrained(batch["mask"].numpy(), L), order[:, None])] = np.nan
    backed_up = best_leaf_through(order[:, None], kept, C)
    label, replanned = replan(evaluator, prepared, batch["mask"], order, mining.replan_width, mining.beams, rules)
    return {
        "lists": order.astype(np.int32),
        "label": label.astype(np.int32),
        "one_step": one_step[:, 0].astype(np.float32),
        "backed_up": np.fmax(backed_up[:, 0], replanned).astype(np.float32),
    }


def added(targets: DenseTargets, own: dict[str, np.ndarray], settings: GeneratorConfig) -> DenseTargets:
    """The targets with the arrays of `own_lists` as their last list."""
    soft, _ = soft_labels(step_values(own["one_step"], own["backed_up"], form=settings.targets), settings.tau_q)
    soft[own["label"] < 0] = 0.0
    feasible = None
    if targets.feasible is not None:
        feasible = np.concatenate([targets.feasible, ~np.isnan(own["one_step"])[:, None]], axis=1)
    return DenseTargets(
        request=targets.request,
        inputs=np.concatenate([targets.inputs, own["lists"][:, None].astype(np.int64)], axis=1),
        labels=np.concatenate([targets.labels, own["label"][:, None].astype(np.int64)], axis=1),
        soft=np.concatenate([targets.soft, soft[:, None].astype(np.float32)], axis=1),
        weight=np.concatenate([targets.weight, np.ones_like(targets.weight[:, :1])], axis=1),
        feasible=feasible,
    )


def _feasible(rules: Rules) -> Callable[[Tensor], Tensor]:
    return lambda lists_BT: torch.from_numpy(feasible_next(rules, lists_BT.numpy()[:, None])[:, 0])


def _kept_leaves(mined: Path) -> Leaves:
    kept = _read(sorted(mined.glob("shard-*.npz")), "lists", "utility")
    return Leaves(torch.from_numpy(kept["lists"].astype(np.int64)), torch.from_numpy(kept["utility"]))


def _read(files: list[Path], *names: str) -> dict[str, np.ndarray]:
    """Arrays of all shards one after another; all of them without names."""
    parts = []
    for file in files:
        with np.load(file, allow_pickle=False) as shard:
            parts.append({name: shard[name] for name in names or shard.files})
    return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
