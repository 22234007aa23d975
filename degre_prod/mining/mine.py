"""Mine lists for training requests: one task of the worker group, one output file a shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from degre_prod.artefact import written_aside
from degre_prod.config import MiningConfig
from degre_prod.encoding.store import EncodedSet, load_encoded
from degre_prod.errors import TrainingError
from degre_prod.mining.beam import Leaves, search, union_search, values_along
from degre_prod.models.evaluator import LookaheadEvaluator, Prepared
from degre_prod.training.data import TensorBatch, logged_lists, to_batch
from degre_prod.training.group import current_worker
from degre_prod.training.modules import load_evaluator

NONE = -1


def mine(config: dict[str, Any]) -> None:
    """Task: `encoded`, `evaluator` (folders), `folder` (where to work), `mining` (MiningConfig).

    Leaves shard-NNNNN.npz; one that is there already is left alone. Arrays of R requests, values in units of Ū:
    request_R · lists_RKL and utility_RK, the K best lists · logged_RL · label_RL: first item of the re-plan from each
    logged prefix · one_step_RJLC: U([s;v]) along the K lists and the logged one (J = K + 1), NaN where v is used ·
    backed_up_RJLC: best leaf through (s, v), NaN where no pooled leaf goes there. Padding is -1.
    """
    worker = current_worker()
    settings = MiningConfig(**config["mining"])
    folder = Path(config["folder"])
    encoded = load_encoded(Path(config["encoded"]) / "train")
    model = load_evaluator(Path(config["evaluator"]))
    requests = minable_requests(encoded, model.spec.layout.list_length, settings.requests)
    shards = [requests[i : i + settings.shard_size] for i in range(0, len(requests), settings.shard_size)]
    mine_of = worker.share(len(shards))
    for done, index in enumerate(mine_of):
        file = folder / f"shard-{index:05d}.npz"
        if not file.exists():
            chunks = []
            for i in range(0, len(shards[index]), settings.chunk_size):
                worker.progress(
                    folder, done + i / len(shards[index]), len(mine_of), f"{settings.shard_size} requests a shard"
                )
                chunks.append(mine_requests(model, encoded, shards[index][i : i + settings.chunk_size], settings))
            arrays = {name: np.concatenate([c[name] for c in chunks]) for name in chunks[0]}
            with written_aside(file) as aside, aside.open("wb") as stream:
                np.savez(stream, allow_pickle=False, **arrays)
        worker.progress(folder, done + 1, len(mine_of), f"{settings.shard_size} requests a shard")


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
    model: LookaheadEvaluator, encoded: EncodedSet, requests: np.ndarray, settings: MiningConfig
) -> dict[str, np.ndarray]:
    """Arrays of the module's shard for these requests."""
    batch = to_batch(encoded, requests)
    prepared = model.prepare(batch)
    logged_BL, _, _ = logged_lists(encoded, requests, model.spec.layout.list_length, None)
    pool = pooled_leaves(model, prepared, batch, torch.from_numpy(logged_BL), settings.beam_width)
    lists, utility = keep_best(pool, settings.keep)
    visited = np.concatenate([lists, logged_BL[:, None]], axis=1)
    kept = torch.from_numpy(np.maximum(visited, 0))
    one_step = values_along(model, prepared, kept).numpy()
    used = np.cumsum(np.eye(one_step.shape[-1], dtype=np.int8)[kept.numpy()], axis=2)
    used = np.concatenate([np.zeros_like(used[:, :, :1]), used[:, :, :-1]], axis=2).astype(bool)
    one_step[used | ~batch["mask"].numpy()[:, None, None]] = np.nan
    backed_up = best_leaf_through(visited, pool, one_step.shape[-1])
    label, replanned = replan_logged(model, prepared, batch["mask"], logged_BL, settings.replan_width)
    backed_up[:, -1] = np.fmax(backed_up[:, -1], replanned)
    return {
        "request": requests,
        "lists": lists.astype(np.int32),
        "utility": utility.astype(np.float32),
        "logged": logged_BL.astype(np.int32),
        "label": label.astype(np.int32),
        "one_step": one_step.astype(np.float32),
        "backed_up": backed_up.astype(np.float32),
    }


def pooled_leaves(
    model: LookaheadEvaluator, prepared: Prepared, batch: TensorBatch, logged_BL: Tensor, width: int
) -> Leaves:
    """Leaves of both beams, then the greedy list, the upstream order and the logged list where it is full."""
    mask = batch["mask"]
    L = model.spec.layout.list_length
    beams = union_search(model, prepared, mask, width=width)
    greedy = search(model, prepared, mask, width=1, to_go=False)
    upstream = torch.arange(L).expand(len(mask), 1, L)
    known = torch.cat([upstream, logged_BL.clamp(min=0).unsqueeze(1)], 1)
    worth = torch.stack([model.utilities(batch, known[:, i])[:, -1] for i in range(2)], 1)
    worth[:, 1].masked_fill_((logged_BL < 0).any(1), float("-inf"))
    return Leaves(
        torch.cat([beams.lists, greedy.lists, known], 1), torch.cat([beams.utility, greedy.utility, worth], 1)
    )


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


def replan_logged(
    model: LookaheadEvaluator, prepared: Prepared, mask_BC: Tensor, logged_BL: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Re-plan from every logged prefix: label_BL, the first item of the best plan (-1 past the list's end), and the best
    leaf through each first item (B, L, C), NaN where none. The logged next item is never the label (METHOD §4)."""
    B, C = mask_BC.shape
    L = model.spec.layout.list_length
    label = np.full((B, L), NONE)
    backed_up = np.full((B, L, C), np.nan)
    logged = torch.from_numpy(np.maximum(logged_BL, 0))
    beams = model.start(prepared)
    root = torch.zeros(B, 1, dtype=torch.long)
    for t in range(L):
        plans = union_search(model, prepared, mask_BC, width=width, start=beams, prefix_BT=logged[:, :t])
        first, worth = plans.lists[:, :, t].numpy(), plans.utility.numpy().astype(np.float64)
        best = np.round(worth, 6).argmax(1)
        there = np.isfinite(worth.max(1)) & (logged_BL[:, :t] >= 0).all(1)
        label[there, t] = first[there, best[there]]
        out = np.full((B, C), -np.inf)
        for p in range(first.shape[1]):
            rows = np.arange(B)
            out[rows, first[:, p]] = np.maximum(out[rows, first[:, p]], worth[:, p])
        backed_up[:, t] = np.where(np.isfinite(out) & there[:, None], out, np.nan)
        beams = model.advance(prepared, beams, root, logged[:, t : t + 1])
    return label, backed_up
