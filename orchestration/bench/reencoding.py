"""Mining's other side: the attention evaluator asked without any prefix state, each child of each prefix encoded anew.

The search is the same code; only what the evaluator remembers of a prefix differs: its items and nothing else. What no
prefix changes is computed once a request, as anyone would: the embedded fields and, with `keep="tokens"`, the token
of every candidate at every slot as well.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from degre_prod.models.evaluator import Beams, LookaheadEvaluator, Prepared
from degre_prod.models.fields import Batch, Fields
from degre_prod.models.member import Member, PrefixNetwork
from degre_prod.models.prefix import exchanged, pick

Keep = Literal["fields", "tokens"]


class _Network(NamedTuple):
    """One network's fields, and its tokens_BSCD by slot where they are kept (S is 1 where slots share a token)."""

    fields: Fields
    tokens: Tensor | None


class _Prepared(NamedTuple):
    value: _Network
    togo: _Network
    pool: Tensor


class _Prefixes(NamedTuple):
    """K prefixes of every request by their items, lists_BKt, and their utility_BK."""

    lists: Tensor
    utility: Tensor
    length: int


class ReencodingEvaluator(LookaheadEvaluator):
    """The same weights and values as `model` (one member, κ = 0), without prefix states."""

    def __init__(self, model: LookaheadEvaluator, keep: Keep) -> None:
        super().__init__(model.spec)
        self.load_state_dict(model.state_dict())
        self.eval()
        (self._member,) = self.each()
        self._keep = keep

    def prepare(self, batch: Batch) -> Prepared:
        """Everything of a batch that no prefix changes."""
        member = self._member
        value, togo = (self._network(network, batch) for network in (member.value, member.togo))
        return cast(Prepared, _Prepared(value, togo, member.pooled(batch)))

    def _network(self, network: PrefixNetwork, batch: Batch) -> _Network:
        fields = network.fields(batch)
        if self._keep == "fields":
            return _Network(fields, None)
        slots = self.spec.layout.list_length if network.slot_field else 1
        return _Network(fields, torch.stack([network.candidate_tokens(fields, t) for t in range(slots)], dim=1))

    def start(self, prepared: Prepared) -> Beams:
        """The empty prefix of every request, K = 1."""
        zero = prepared.pool.new_zeros(len(prepared.pool), 1)  # type: ignore[attr-defined]
        return cast(Beams, _Prefixes(zero.new_zeros(len(zero), 1, 0, dtype=torch.long), zero, 0))

    def expand(self, prepared: Prepared, beams: Beams, *, to_go: bool) -> tuple[Tensor, Tensor | None]:
        """U_BKC of every child of every prefix, and U + G where `to_go` asks for it, from the children's items alone."""
        state, prefixes = cast(_Prepared, prepared), cast(_Prefixes, beams)
        B, K, t = prefixes.lists.shape
        C = state.value.fields.item.shape[1]
        items = torch.arange(C).expand(B, K, C).unsqueeze(-1)
        children = torch.cat([prefixes.lists.unsqueeze(2).expand(B, K, C, t), items], dim=-1)
        U = self._utility(state, children.view(B, K * C, t + 1)).view(B, K, C)
        if not to_go:
            return U, None
        if t + 1 >= self.spec.layout.list_length:
            return U, U
        h = _last_hidden(self._member.togo, state.togo, children.view(B, K * C, t + 1))
        return U, U + self._member._togo_head(h, state.pool.unsqueeze(1)).view(B, K, C)

    def advance(self, prepared: Prepared, beams: Beams, parent_BK: Tensor, item_BK: Tensor) -> Beams:
        """The chosen children as the new prefixes."""
        prefixes = cast(_Prefixes, beams)
        lists = torch.cat([pick(prefixes.lists, parent_BK), item_BK.unsqueeze(-1)], dim=-1)
        return cast(Beams, _Prefixes(lists, self._utility(cast(_Prepared, prepared), lists), prefixes.length + 1))

    def completed(self, prepared: Prepared, beams: Beams, rest_BX: Tensor, items_BK: Tensor) -> Tensor:
        """U_BK of full lists, from all their items."""
        prefix = cast(_Prefixes, beams).lists.expand(-1, items_BK.shape[1], -1)
        return self._utility(cast(_Prepared, prepared), torch.cat([prefix, exchanged(rest_BX, items_BK)], dim=-1))

    def _utility(self, state: _Prepared, lists_BNt: Tensor) -> Tensor:
        """U_BN of whole lists, as `Member.utilities` has it."""
        member: Member = self._member
        B, N, t = lists_BNt.shape
        logits = member.head(member.value.state.sequence(_tokens(member.value, state.value, lists_BNt)))
        P = member.head.start(logits, B * N, 1)[:, 0]
        U = logits.new_zeros(B * N)
        for slot in range(t):
            m, P = member.head.advance(logits[:, slot], P)
            U = U + m @ member.weights_OL[:, slot]
        out: Tensor = U.view(B, N)
        return out


def _last_hidden(network: PrefixNetwork, prepared: _Network, lists_BNt: Tensor) -> Tensor:
    """h_BND at the last slot of each list."""
    B, N, _ = lists_BNt.shape
    return network.state.sequence(_tokens(network, prepared, lists_BNt))[:, -1].view(B, N, -1)


def _tokens(network: PrefixNetwork, prepared: _Network, lists_BNt: Tensor) -> Tensor:
    """Tokens of N lists of every request, (B · N, t, D)."""
    B, N, t = lists_BNt.shape
    row = torch.arange(B).view(B, 1, 1)
    slots = torch.arange(t)
    if prepared.tokens is not None:
        return prepared.tokens[row, slots if network.slot_field else 0 * slots, lists_BNt].flatten(0, 1)
    f = prepared.fields
    out: Tensor = network.token(
        Fields(
            f.item[row, lists_BNt].flatten(0, 1),
            f.prior[row, lists_BNt].flatten(0, 1),
            f.user.repeat_interleave(N, 0),
            f.context.repeat_interleave(N, 0),
        ),
        slots,
    )
    return out
