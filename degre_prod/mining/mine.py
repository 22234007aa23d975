"""Mine lists for training requests: one task of the worker group, one output file a shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from degre_prod.artefact import written_aside
from degre_prod.config import MiningConfig
from degre_prod.constraints.mask import feasible_along, first_lists, obeyed
from degre_prod.constraints.rules import Rules
from degre_prod.encoding.encoder import load_encoder
from degre_prod.encoding.store import EncodedSet, load_encoded
from degre_prod.errors import TrainingError
from degre_prod.mining.beam import Leaves, search, union_search, values_along
from degre_prod.mining.local_search import local_search
from degre_prod.mining.record import MiningRecord, mining_rules, write_record
from degre_prod.models.evaluator import LookaheadEvaluator, Prepared
from degre_prod.training.data import TensorBatch, logged_lists, to_batch
from degre_prod.training.group import current_worker
from degre_prod.training.modules import load_evaluator

BeamForm = Literal["union", "prefix"]


def mine(config: dict[str, Any]) -> None:
    """Task: `encoded`, `evaluator` (folders), `folder` (where to work), `mining` (MiningConfig).

    Leaves shard-NNNNN.npz; one that is there already is left alone. Arrays of R requests, values in units of Ū:
    request_R · lists_RKL and utility_RK, the K best lists · one_step_RKLC: U([s;v]) along them, NaN where v is not
    feasible · backed_up_RKLC: best leaf through (s, v), NaN where no pooled leaf goes there. Under standing constraints or a
    trust region requests without a list that obeys them are left out; mining.json counts them.

    Logged prefixes are not re-planned and supervised: that cost three quarters of the calls and brought nothing
    (docs/results.md).
    """
    worker = current_worker()
    settings = MiningConfig(**config["mining"])
    folder = Path(config["folder"])
    encoded = load_encoded(Path(config["encoded"]) / "train")
    model = load_evaluator(Path(config["evaluator"]), pessimism=settings.pessimism)
    newest = minable_requests(encoded, model.spec.layout.list_length, settings.requests)
    spec = load_encoder(Path(config["encoded"]) / "encoder.json").spec
    requests, rules = mining_rules(spec, encoded, newest, settings)
    if len(requests) == 0:
        raise TrainingError(
            f"none of {len(newest)} training requests has a list that obeys the constraints in schema.yaml"
            f"{'' if settings.trust_region is None else ' within mining.trust_region'}; loosen them"
        )
    if worker.rank == 0:
        constraints, region = spec.data_schema.constraints, settings.trust_region
        counts = {"mined": len(requests), "infeasible": len(newest) - len(requests)}
        write_record(folder, MiningRecord(constraints=constraints, trust_region=region, **counts))
    shards = [
        np.arange(len(requests))[i : i + settings.shard_size] for i in range(0, len(requests), settings.shard_size)
    ]
    mine_of = worker.share(len(shards))
    done, total = 0, sum(len(shards[index]) for index in mine_of)
    for index in mine_of:
        file = folder / f"shard-{index:05d}.npz"
        if not file.exists():
            chunks = []
            for i in range(0, len(shards[index]), settings.chunk_size):
                worker.progress(folder, done + i, total, f"{len(shards)} shards", unit="requests")
                part = shards[index][i : i + settings.chunk_size]
                rules_of_part = None if rules is None else rules.of(part)
                chunks.append(mine_requests(model, encoded, requests[part], settings, rules_of_part))
            arrays = {name: np.concatenate([c[name] for c in chunks]) for name in chunks[0]}
            with written_aside(file) as aside, aside.open("wb") as stream:
                np.savez(stream, allow_pickle=False, **arrays)
        done += len(shards[index])
        worker.progress(folder, done, total, f"{len(shards)} shards", unit="requests")


def minable_requests(encoded: EncodedSet, list_length: int, count: int) -> np.ndarray:
    """The newest requests with at least as many candidates as slots; raises TrainingError when there is none."""
    enough = np.flatnonzero(encoded.arrays["mask"].sum(1) >= list_length)
    if len(enough) == 0:
        raise TrainingError(
            f"no training request has {list_length} candidates, one for each slot; lower list_length in schema.yaml"
        )
    newest = enough[np.argsort(encoded.arrays["timestamp"][enough], kind="stable")][-count:]
    return np.sort(newest)


@torch.inference_mode()
def mine_requests(
    model: LookaheadEvaluator,
    encoded: EncodedSet,
    requests: np.ndarray,
    settings: MiningConfig,
    rules: Rules | None = None,
) -> dict[str, np.ndarray]:
    """Arrays of the module's shard for these requests; `rules` are theirs, and each has a list that obeys them."""
    batch = to_batch(encoded, requests)
    prepared = model.prepare(batch)
    logged_BL, _, _ = logged_lists(encoded, requests, model.spec.layout.list_length, None)
    pool = pooled_leaves(
        model, prepared, batch, torch.from_numpy(logged_BL), settings.beam_width, settings.beams, rules
    )
    if settings.sweeps:
        best = torch.from_numpy(keep_best(pool, 1)[0][:, 0])
        climbed = local_search(model, prepared, batch["mask"], best, settings.sweeps, rules, settings.shortlist)
        pool = Leaves(torch.cat([pool.lists, climbed.lists], 1), torch.cat([pool.utility, climbed.utility], 1))
    lists, utility = keep_best(pool, settings.keep)
    kept = torch.from_numpy(lists)
    one_step = values_along(model, prepared, kept).numpy()
    used = np.cumsum(np.eye(one_step.shape[-1], dtype=np.int8)[kept.numpy()], axis=2)
    used = np.concatenate([np.zeros_like(used[:, :, :1]), used[:, :, :-1]], axis=2).astype(bool)
    infeasible = used | ~batch["mask"].numpy()[:, None, None]
    if rules is not None:
        infeasible |= ~feasible_along(rules, kept.numpy())
    one_step[infeasible] = np.nan
    backed_up = best_leaf_through(lists, pool, one_step.shape[-1])
    return {
        "request": requests,
        "lists": lists.astype(np.int32),
        "utility": utility.astype(np.float32),
        "one_step": one_step.astype(np.float32),
        "backed_up": backed_up.astype(np.float32),
    }


def pooled_leaves(
    model: LookaheadEvaluator,
    prepared: Prepared,
    batch: TensorBatch,
    logged_BL: Tensor,
    width: int,
    beams: BeamForm = "union",
    rules: Rules | None = None,
) -> Leaves:
    """Leaves of the beams, then the greedy list (where `width` is more than 1: it is the beam by U), the upstream order and the
    logged list where it is full.

    With `rules` the upstream order is followed as far as they allow, and a logged list that breaks them is no leaf.
    """
    mask = batch["mask"]
    L = model.spec.layout.list_length
    found = plans(model, prepared, mask, beams, width=width, rules=rules)
    searched = [found] if width == 1 else [found, search(model, prepared, mask, width=1, to_go=False, rules=rules)]
    upstream = torch.arange(L).expand(len(mask), 1, L)
    if rules is not None:
        upstream = torch.from_numpy(first_lists(rules)).unsqueeze(1)
    known = torch.cat([upstream, logged_BL.clamp(min=0).unsqueeze(1)], 1)
    worth = torch.stack([model.utilities(batch, known[:, i])[:, -1] for i in range(2)], 1)
    no_leaf = (logged_BL < 0).any(1)
    if rules is not None:
        no_leaf |= ~torch.from_numpy(obeyed(rules, logged_BL.numpy()[:, None])[:, 0])
    worth[:, 1].masked_fill_(no_leaf, float("-inf"))
    pool = [*searched, Leaves(known, worth)]
    return Leaves(torch.cat([p.lists for p in pool], 1), torch.cat([p.utility for p in pool], 1))


def plans(
    model: LookaheadEvaluator, prepared: Prepared, mask_BC: Tensor, beams: BeamForm, *, width: int, **rest: Any
) -> Leaves:
    """Leaves of both beams (`union`), or of the beam by U alone (`prefix`)."""
    if beams == "union":
        return union_search(model, prepared, mask_BC, width=width, **rest)
    return search(model, prepared, mask_BC, width=width, to_go=False, **rest)


def keep_best(pool: Leaves, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """The best distinct lists of each request, (B, keep, L) and (B, keep); short of them a leaf fills up, with -inf."""
    lists, utility = pool.lists.numpy(), pool.utility.numpy()
    out = np.repeat(lists[:, :1], keep, axis=1)
    worth = np.full(out.shape[:2], -np.inf, np.float32)
    for b in range(len(lists)):
        order = np.argsort(-np.round(utility[b].astype(np.float64), 6), kind="stable")
        best: dict[bytes, int] = {}
        for p in order:
            if np.isfinite(utility[b, p]):
                best.setdefault(lists[b, p].tobytes(), int(p))
        for slot, p in enumerate(list(best.values())[:keep]):
            out[b, slot], worth[b, slot] = lists[b, p], utility[b, p]
    return out, worth


def best_leaf_through(lists_BKL: np.ndarray, pool: Leaves, C: int) -> np.ndarray:
    """The best pooled leaf through each child of each prefix: (B, K, L, C), NaN where none goes there."""
    leaves, worth = pool.lists.numpy(), pool.utility.numpy().astype(np.float64)
    B, K, L = lists_BKL.shape
    same = np.cumprod(lists_BKL[:, :, None] == leaves[:, None], axis=-1).astype(
        bool
    )  # (B, K, P, L) up to and with slot t
    shares = np.concatenate([np.ones_like(same[..., :1]), same[..., :-1]], axis=-1)  # the prefix before slot t
    out = np.full((B, K, L, C), -np.inf)
    b, k, t = np.ogrid[:B, :K, :L]
    for p in range(leaves.shape[1]):
        item = leaves[:, None, p, :]
        through = np.where(shares[:, :, p], worth[:, p, None, None], -np.inf)
        out[b, k, t, item] = np.maximum(out[b, k, t, item], through)
    return np.where(np.isfinite(out), out, np.nan)
