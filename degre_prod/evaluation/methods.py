"""The lists each method gives for held-out requests, as indices into the candidates (-1 past a short list)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from degre_prod.bundle import Bundle
from degre_prod.constraints.rules import Rules
from degre_prod.encoding.encoder import Encoded
from degre_prod.encoding.store import CANDIDATE_ARRAYS, REQUEST_ARRAYS, EncodedSet
from degre_prod.mining.beam import union_search
from degre_prod.models.evaluator import LookaheadEvaluator
from degre_prod.models.pointwise import PointwiseScorer
from degre_prod.requests import Id, RecentEvent
from degre_prod.training.data import to_batch

CHUNK = 50
Progress = Callable[[int], object]
Restrict = Callable[[np.ndarray], tuple[np.ndarray, Rules | None]]  # requests → those with a list, and their rules


@dataclass(frozen=True)
class BelievedLists:
    """Lists (R, L) and what the evaluator believes they are worth, (R,) in units of Ū; NaN where it was not asked."""

    lists: np.ndarray
    believed: np.ndarray


def input_order(encoded: EncodedSet, length: int) -> np.ndarray:
    """The upstream order, cut at `length`: (R, L)."""
    count = encoded.arrays["mask"].sum(1)
    return np.where(np.arange(length) < count[:, None], np.arange(length), -1)


def pointwise_sort(
    model: PointwiseScorer, encoded: EncodedSet, length: int, weights_O: Sequence[float], progress: Progress
) -> np.ndarray:
    """Candidates by Σ_o ω_o P(y_o = 1) of their own, best first; ties by prior rank: (R, L)."""
    out, weights = [], torch.tensor(weights_O)
    with torch.inference_mode():
        for requests in _chunks(len(encoded)):
            batch = to_batch(encoded, requests)
            scores = (torch.sigmoid(model(batch)) @ weights).masked_fill(~batch["mask"], float("-inf"))
            order = scores.argsort(dim=1, descending=True, stable=True).numpy()
            out.append(_cut(order, batch["mask"].numpy().sum(1), length))
            progress(len(requests))
    return np.concatenate(out)


def generator_lists(
    bundle: Bundle, encoded: EncodedSet, length: int, progress: Progress, rules: Sequence[Rules | None] | None = None
) -> np.ndarray:
    """What the bundle's ONNX model answers, one request at a time as online, under the rules of each: (R, L)."""
    out = np.full((len(encoded), length), -1)
    for r in range(len(encoded)):
        order = bundle.decode(encoded_request(encoded, r), length, rules[r] if rules else None).order
        out[r, : len(order)] = order
        progress(1)
    return out


def beam_lists(
    model: LookaheadEvaluator,
    encoded: EncodedSet,
    length: int,
    width: int,
    progress: Progress,
    restrict: Restrict | None = None,
) -> BelievedLists:
    """The evaluator's best list by the union of both beams; the upstream order where there are fewer candidates than slots,
    and where `restrict` finds no list that obeys its rules."""
    lists, believed = input_order(encoded, length), np.full(len(encoded), np.nan)
    with torch.inference_mode():
        for requests in _chunks(len(encoded)):
            full = requests[encoded.arrays["mask"][requests].sum(1) >= length]
            full, rules = (full, None) if restrict is None else restrict(full)
            if len(full):
                batch = to_batch(encoded, full)
                leaves = union_search(model, model.prepare(batch), batch["mask"], width=width, rules=rules)
                best = leaves.utility.argmax(1)
                lists[full] = leaves.lists[torch.arange(len(full)), best].numpy()
                believed[full] = leaves.utility.max(1).values.numpy()
            progress(len(requests))
    return BelievedLists(lists, believed)


def believed_utility(model: LookaheadEvaluator, encoded: EncodedSet, lists: np.ndarray) -> np.ndarray:
    """What the evaluator believes given lists are worth, (R,) in units of Ū; NaN for lists that are not full."""
    out = np.full(len(encoded), np.nan)
    with torch.inference_mode():
        for requests in _chunks(len(encoded)):
            full = requests[(lists[requests] >= 0).all(1)]
            if len(full):
                out[full] = model.utilities(to_batch(encoded, full), torch.from_numpy(lists[full]))[:, -1].numpy()
    return out


def last_interacted_first(
    candidate_ids: Sequence[Sequence[Id]], recent_events: Sequence[Sequence[RecentEvent]], length: int
) -> np.ndarray:
    """Candidates by how recently the user touched them, the others in upstream order after them: (R, L)."""
    out = np.full((len(candidate_ids), length), -1)
    for r, (ids, events) in enumerate(zip(candidate_ids, recent_events, strict=True)):
        last = {e.item_id: i for i, e in enumerate(sorted(events, key=lambda e: e.timestamp_us))}
        order = sorted(range(len(ids)), key=lambda c: (-last.get(ids[c], -1), c))
        out[r, : min(length, len(ids))] = order[:length]
    return out


def encoded_request(encoded: EncodedSet, r: int) -> Encoded:
    """One request of a split as `Encoder.encode` gave it, padding cut off."""
    arrays = encoded.arrays
    n = int(arrays["mask"][r].sum())
    out = {f"{name}_CF": np.ascontiguousarray(arrays[name][r, :n]) for name in CANDIDATE_ARRAYS}
    out |= {f"{name}_F": np.ascontiguousarray(arrays[name][r]) for name in REQUEST_ARRAYS}
    out["prior_rank_C"] = np.ascontiguousarray(arrays["prior_rank"][r, :n])
    return out


def _cut(order_RC: np.ndarray, count_R: np.ndarray, length: int) -> np.ndarray:
    out = np.full((len(order_RC), length), -1)
    width = min(length, order_RC.shape[1])
    out[:, :width] = order_RC[:, :width]
    return np.where(np.arange(length) < count_R[:, None], out, -1)


def _chunks(count: int) -> list[np.ndarray]:
    return [np.arange(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
