"""What the evaluator believes whole lists are worth, many lists a request, each request's items embedded once.

The evaluator doesn't change while others learn from it, so its tokens of a request's candidates (its fields, where a token
depends on the slot) are computed at the start and gathered for every list. The price stays L calls a list and member:
those are the values it gives.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from degre_prod.baselines.calls import Calls
from degre_prod.encoding.store import EncodedSet
from degre_prod.models.evaluator import LookaheadEvaluator, agreed
from degre_prod.models.fields import Fields, gather
from degre_prod.models.member import Member
from degre_prod.training.data import to_batch

CHUNK = 256

Known = tuple[Tensor, ...]  # by request: tokens_RCD, or the fields where a token depends on its slot


class Grader:
    """Utilities of full lists of the requests it was made for; the values are those of `LookaheadEvaluator.utilities`."""

    def __init__(self, model: LookaheadEvaluator, encoded: EncodedSet, requests: np.ndarray, calls: Calls) -> None:
        self._model = model
        self._calls = calls
        self._row = np.full(len(encoded), -1)
        self._row[requests] = np.arange(len(requests))
        chunks = [to_batch(encoded, requests[i : i + CHUNK]) for i in range(0, len(requests), CHUNK)]
        with torch.no_grad():
            self._known = [
                tuple(torch.cat(parts) for parts in zip(*(_known(member, c) for c in chunks), strict=True))
                for member in model.each()
            ]

    def price(self, lists: int) -> int:
        """Calls that so many lists cost."""
        return lists * self._model.spec.layout.list_length * self._model.spec.members

    def __call__(self, requests: np.ndarray, lists_BGL: Tensor) -> Tensor:
        """utility_BG in units of Ū: mean − κ·std over the members."""
        B, G, _ = lists_BGL.shape
        self._calls.add(self.price(B * G))
        rows = torch.from_numpy(self._row[requests])
        with torch.no_grad():
            values = torch.stack(
                [
                    _utility(member, tuple(part[rows] for part in known), lists_BGL)
                    for member, known in zip(self._model.each(), self._known, strict=True)
                ]
            )
        return agreed(values, self._model.pessimism)


def _known(member: Member, batch: dict[str, Tensor]) -> Known:
    fields = member.value.fields(batch)
    return tuple(fields) if member.value.slot_field else (member.value.candidate_tokens(fields, 0),)


def _utility(member: Member, known: Known, lists_BGL: Tensor) -> Tensor:
    B, G, L = lists_BGL.shape
    flat = lists_BGL.reshape(B, G * L)
    if member.value.slot_field:
        tokens = member.value.token(Fields(*known).at(flat), torch.arange(L).repeat(G))
    else:
        tokens = gather(known[0], flat)
    logits = member.head(member.value.state.sequence(tokens.view(B * G, L, -1)))
    P = member.head.start(logits, B * G, 1)[:, 0]
    total = logits.new_zeros(B * G)
    for t in range(L):
        m, P = member.head.advance(logits[:, t], P)
        total = total + m @ member.weights_OL[:, t]
    return total.view(B, G)
