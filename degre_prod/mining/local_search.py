"""Local search from a mined list: slot by slot the item that makes the whole list worth most (coordinate ascent).

Beams judge prefixes. What a prefix will still earn is learnt from logged continuations (METHOD §2), so a first item that pays
only through a rest that no log shows is dropped early. Here whole lists are compared, and such items come in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from degre_prod.constraints.mask import obeyed
from degre_prod.constraints.rules import Rules
from degre_prod.mining.beam import TIE, Leaves, best_children
from degre_prod.models.evaluator import LookaheadEvaluator, Prepared


def local_search(
    model: LookaheadEvaluator,
    prepared: Prepared,
    mask_BC: Tensor,
    lists_BL: Tensor,
    sweeps: int,
    rules: Rules | None = None,
) -> Leaves:
    """The list of each request after `sweeps` (at least 1) turns over the slots, front to back: lists_B1L (indices into
    candidates), utility_B1 in units of Ū.

    A candidate that stands further back changes places with the item at the slot; one that stands further front is left
    there. Equal values leave a list as it is. With `rules` (of the same requests) only lists that obey them; the given
    ones must.
    """
    B, C = mask_BC.shape
    L = lists_BL.shape[1]
    rows, every = torch.arange(B), torch.arange(C).expand(B, C)
    root = torch.zeros(B, 1, dtype=torch.long)
    for _ in range(sweeps):
        beams = model.start(prepared)
        for t in range(L):
            variants = with_candidate(lists_BL, every, t)
            possible = mask_BC.scatter(1, lists_BL[:, :t], False)
            if rules is not None:
                possible &= torch.from_numpy(obeyed(rules, variants.numpy()))
            worth = model.completed(prepared, beams, variants[:, :, t:])
            _, best, _ = best_children(worth.unsqueeze(1), possible.unsqueeze(1), 1)
            best, current = best[:, 0], lists_BL[:, t]
            best = torch.where(worth[rows, best] > worth[rows, current] + TIE, best, current)
            lists_BL, utility = variants[rows, best], worth[rows, best]
            beams = model.advance(prepared, beams, root, lists_BL[:, t : t + 1])
    return Leaves(lists_BL.unsqueeze(1), utility.unsqueeze(1))


def with_candidate(lists_BL: Tensor, items_BK: Tensor, t: int) -> Tensor:
    """variants_BKL: each list with each of the items at slot t, and where that item stood the one that stood at t."""
    variants = lists_BL.unsqueeze(1).expand(-1, items_BK.shape[1], -1)
    variants = torch.where(variants == items_BK.unsqueeze(-1), lists_BL[:, t, None, None], variants)
    variants[:, :, t] = items_BK
    return variants
