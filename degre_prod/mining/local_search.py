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
from degre_prod.models.prefix import exchanged


def local_search(
    model: LookaheadEvaluator,
    prepared: Prepared,
    mask_BC: Tensor,
    lists_BL: Tensor,
    sweeps: int,
    rules: Rules | None = None,
    shortlist: int | None = None,
) -> Leaves:
    """The list of each request after `sweeps` (at least 1) turns over the slots, front to back: lists_B1L (indices into
    candidates), utility_B1 in units of Ū.

    A candidate that stands further back changes places with the item at the slot; one that stands further front is left
    there. Equal values leave a list as it is. With `rules` (of the same requests) only lists that obey them; the given
    ones must. With `shortlist` the sweeps after the first try, beside the item at the slot, only the so many candidates that
    the first found best there.
    """
    B, C = mask_BC.shape
    L = lists_BL.shape[1]
    rows, every = torch.arange(B), torch.arange(C).expand(B, C)
    root = torch.zeros(B, 1, dtype=torch.long)
    shortlists: list[Tensor] = []
    for sweep in range(sweeps):
        beams = model.start(prepared)
        for t in range(L):
            front, rest, current = lists_BL[:, :t], lists_BL[:, t:], lists_BL[:, t : t + 1]
            items = every if sweep == 0 or shortlist is None else torch.cat([current, shortlists[t]], 1)
            possible = mask_BC.scatter(1, front, False).gather(1, items)
            if rules is not None:
                fronts = front.unsqueeze(1).expand(-1, items.shape[1], -1)
                possible &= torch.from_numpy(obeyed(rules, torch.cat([fronts, exchanged(rest, items)], 2).numpy()))
            worth = model.completed(prepared, beams, rest, items)
            width = shortlist if shortlist and sweep == 0 else 1
            _, order, _ = best_children(worth.unsqueeze(1), possible.unsqueeze(1), width)
            if shortlist and sweep == 0:
                shortlists.append(order)
            best, stays = order[:, 0], (items == current).long().argmax(1)
            best = torch.where(worth[rows, best] > worth[rows, stays] + TIE, best, stays)
            lists_BL = torch.cat([front, exchanged(rest, items[rows, best].unsqueeze(1))[:, 0]], 1)
            utility = worth[rows, best]
            beams = model.advance(prepared, beams, root, lists_BL[:, t : t + 1])
    return Leaves(lists_BL.unsqueeze(1), utility.unsqueeze(1))
