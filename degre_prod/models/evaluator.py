"""Lookahead Evaluator: how much a list is worth, step by step, and what its prefix will still earn (METHOD §2).

One member, or an ensemble of them behind the same interface. Values are mean − κ·std over the members, κ being the
pessimism: in mining a list must be good in the eyes of all. Beliefs that are reported are means, κ = 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from degre_prod.models.fields import Batch
from degre_prod.models.member import EvaluatorSpec, Member, MemberBeams, MemberPrepared


class Beams(NamedTuple):
    """K prefixes of every request: each member's own state of them, and their utility_BK over all members."""

    members: tuple[MemberBeams, ...]
    utility: Tensor
    length: int


class Prepared(NamedTuple):
    """What depends on the candidates alone, of each member."""

    members: tuple[MemberPrepared, ...]


class LookaheadEvaluator(nn.Module):
    """`spec.members` members with weights of their own; values in units of Ū."""

    def __init__(self, spec: EvaluatorSpec, *, pessimism: float = 0.0) -> None:
        super().__init__()
        self.spec = spec
        self.pessimism = pessimism
        self.members = nn.ModuleList(Member(spec) for _ in range(spec.members))

    def each(self) -> Iterator[Member]:
        """The members."""
        return cast("Iterator[Member]", iter(self.members))

    def increments(self, batch: Batch, lists_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Expected increments m_BLO and the count distribution after the last slot P_BO(L+1): means, whatever κ."""
        steps, counts = zip(*(member.increments(batch, lists_BL) for member in self.each()), strict=True)
        return _mean(steps), _mean(counts)

    def utilities(self, batch: Batch, lists_BL: Tensor) -> Tensor:
        """Utility of every prefix U_BL = Σ_o ω_o Σ_{i≤t} w_{o,i} m_{o,i}."""
        return self._agreed([member.utilities(batch, lists_BL) for member in self.each()])

    def to_go(self, batch: Batch, lists_BL: Tensor) -> Tensor:
        """G_BL: value still to come after each slot under the logging continuation; 0 at the last slot L. A mean."""
        return _mean([member.to_go(batch, lists_BL) for member in self.each()])

    def prepare(self, batch: Batch) -> Prepared:
        """Everything of a batch that no prefix changes."""
        return Prepared(tuple(member.prepare(batch) for member in self.each()))

    def start(self, prepared: Prepared) -> Beams:
        """The empty prefix of every request, K = 1."""
        members = tuple(member.start(p) for member, p in zip(self.each(), prepared.members, strict=True))
        return Beams(members, members[0].utility, 0)

    def expand(self, prepared: Prepared, beams: Beams, *, to_go: bool) -> tuple[Tensor, Tensor | None]:
        """U_BKC of every child of every prefix, and U + G where `to_go` asks for it (None otherwise)."""
        values = [
            member.expand(p, b, to_go=to_go)
            for member, p, b in zip(self.each(), prepared.members, beams.members, strict=True)
        ]
        scores = [score for _, score in values if score is not None]
        return self._agreed([U for U, _ in values]), self._agreed(scores) if to_go else None

    def advance(self, prepared: Prepared, beams: Beams, parent_BK: Tensor, item_BK: Tensor) -> Beams:
        """The chosen children as the new prefixes."""
        members = tuple(
            member.advance(p, b, parent_BK, item_BK)
            for member, p, b in zip(self.each(), prepared.members, beams.members, strict=True)
        )
        return Beams(members, self._agreed([m.utility for m in members]), beams.length + 1)

    def completed(self, prepared: Prepared, beams: Beams, rest_BX: Tensor, items_BK: Tensor) -> Tensor:
        """U_BK, in units of Ū, of full lists: the one prefix of each request that `beams` hold, then its rest (indices into
        candidates) with each of the items in the first place, and where that item stood the one that stood first."""
        members = zip(self.each(), prepared.members, beams.members, strict=True)
        return self._agreed([member.completed(p, b, rest_BX, items_BK) for member, p, b in members])

    def _agreed(self, values: Sequence[Tensor]) -> Tensor:
        return values[0] if len(values) == 1 else agreed(torch.stack(list(values)), self.pessimism)


def agreed(values_M: Tensor, pessimism: float) -> Tensor:
    """mean − κ·std over the M members, (M, …) → (…) (the standard deviation of all there are, not of a sample; of one it is 0)."""
    mean = values_M.mean(0)
    if len(values_M) == 1 or not pessimism:
        return mean
    deviation = (values_M - mean).square().mean(0).sqrt()  # `std` of the first axis is several times slower
    return torch.sub(mean, deviation, alpha=pessimism)


def _mean(values: Sequence[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(list(values)).mean(0)
