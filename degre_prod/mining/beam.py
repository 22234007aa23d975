"""Beam search on the evaluator: two beams, by U and by U + G, their leaves pooled (METHOD §3). Deterministic."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from degre_prod.constraints.mask import feasible_next
from degre_prod.constraints.rules import Rules
from degre_prod.models.evaluator import Beams, LookaheadEvaluator, Prepared
from degre_prod.models.prefix import pick

TIE = 1e-6  # values closer than this are equal; then parent order, then prior rank (the candidates' order)
DEAD = -(1 << 62)


class Leaves(NamedTuple):
    """K full lists of every request: lists_BKL (indices into candidates), utility_BK in units of Ū, -inf where no list."""

    lists: Tensor
    utility: Tensor


def search(
    model: LookaheadEvaluator,
    prepared: Prepared,
    mask_BC: Tensor,
    *,
    width: int,
    to_go: bool,
    start: Beams | None = None,
    prefix_BT: Tensor | None = None,
    rules: Rules | None = None,
) -> Leaves:
    """Beam search of `width` from the empty prefix, or from `start` after `prefix_BT`, to full length.

    `to_go` scores prefixes by U + G, otherwise by U; leaves are ranked by U. Width 1 without to-go is greedy. Requests need
    at least as many candidates as slots; a prefix without a feasible child is dropped (utility -inf). With `rules` (of the
    same requests) only children that `feasible_next` allows.
    """
    B = len(mask_BC)
    L = model.spec.layout.list_length
    beams = start if start is not None else model.start(prepared)
    lists = mask_BC.new_zeros((B, 1, 0), dtype=torch.long) if prefix_BT is None else prefix_BT.unsqueeze(1)
    free = mask_BC.unsqueeze(1).clone()
    free.scatter_(2, lists, False)
    alive = torch.ones(B, 1, dtype=torch.bool, device=mask_BC.device)
    for _ in range(lists.shape[2], L):
        U, score = model.expand(prepared, beams, to_go=to_go)
        feasible = free & alive.unsqueeze(-1)
        if rules is not None:
            feasible &= torch.from_numpy(feasible_next(rules, lists.numpy()))
        parent, item, alive = best_children(U if score is None else score, feasible, width)
        beams = model.advance(prepared, beams, parent, item)
        lists = torch.cat([pick(lists, parent), item.unsqueeze(-1)], dim=-1)
        free = pick(free, parent).scatter(2, item.unsqueeze(-1), False)
    utility = beams.utility.masked_fill(~alive, float("-inf"))
    order = ranking(utility.masked_fill(~alive, 0.0), alive)
    return Leaves(pick(lists, order), utility.gather(1, order))


def best_children(score_BKC: Tensor, feasible_BKC: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best `width` feasible children: parent_BK, item_BK, alive_BK; ties by parent, then candidate order."""
    _, K, C = score_BKC.shape
    keys = _keys(score_BKC.flatten(1), feasible_BKC.flatten(1))
    top = keys.topk(min(width, K * C), dim=1)
    return top.indices // C, top.indices % C, top.values > DEAD


def ranking(score_BK: Tensor, feasible_BK: Tensor) -> Tensor:
    """Indices from best to worst, ties in order."""
    return _keys(score_BK, feasible_BK).argsort(dim=1, descending=True)


def _keys(score_BN: Tensor, feasible_BN: Tensor) -> Tensor:
    """Distinct integers that order like (rounded score, then position): topk and sort need not be stable."""
    N = score_BN.shape[1]
    rounded = (score_BN.double() / TIE).round().long()
    return (rounded * N - torch.arange(N, device=score_BN.device)).masked_fill(~feasible_BN, DEAD)


def values_along(model: LookaheadEvaluator, prepared: Prepared, lists_BKL: Tensor) -> Tensor:
    """One-step values of every child of every prefix of given lists: U([s;v]) as D_BKLC, in units of Ū."""
    steps = []
    beams = model.start(prepared)
    B, K, L = lists_BKL.shape
    parent = torch.zeros(B, K, dtype=torch.long, device=lists_BKL.device)
    for t in range(L):
        U, _ = model.expand(prepared, beams, to_go=False)
        steps.append(U.expand(B, K, -1))
        beams = model.advance(prepared, beams, parent, lists_BKL[:, :, t])
        parent = torch.arange(K, device=lists_BKL.device).expand(B, K)
    return torch.stack(steps, dim=2)


def union_search(
    model: LookaheadEvaluator,
    prepared: Prepared,
    mask_BC: Tensor,
    *,
    width: int,
    start: Beams | None = None,
    prefix_BT: Tensor | None = None,
    rules: Rules | None = None,
) -> Leaves:
    """Leaves of the beam by U and of the beam by U + G, side by side (2K, not deduplicated)."""
    both = [
        search(model, prepared, mask_BC, width=width, to_go=to_go, start=start, prefix_BT=prefix_BT, rules=rules)
        for to_go in (False, True)
    ]
    return Leaves(torch.cat([b.lists for b in both], 1), torch.cat([b.utility for b in both], 1))
