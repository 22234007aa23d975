"""One member of the Lookahead Evaluator: a count network and a value-to-go network of its own (METHOD §2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from degre_prod.encoding.encoder import Layout
from degre_prod.models.count_head import make_head
from degre_prod.models.fields import Batch, FieldEmbedding, Fields, Token, listed
from degre_prod.models.prefix import State, Table, make_prefix_state, pick


@dataclass(frozen=True)
class EvaluatorSpec:
    """What rebuilds an evaluator besides its weights. `weights_OL` is ω_o w_{o,t}; `mean_utility` is Ū of the training log."""

    layout: Layout
    prefix_state: str
    width: int
    layers: int
    at_most_one: tuple[bool, ...]
    weights_OL: tuple[tuple[float, ...], ...]
    mean_utility: float
    head: str = "count_markov"
    members: int = 1


class PrefixNetwork(nn.Module):
    """Fields → tokens → prefix state → h. A member has two, one under the count head and one under the to-go head."""

    def __init__(self, spec: EvaluatorSpec, form: str) -> None:
        super().__init__()
        layout = spec.layout
        attention = form == "attention"
        self.slot_field = attention and not layout.position_free
        self.fields = FieldEmbedding(layout, spec.width)
        self.token = Token(spec.width, slots=layout.list_length if self.slot_field else None, keep_item=not attention)
        self.state = make_prefix_state(
            form, spec.width, layout.list_length, layers=spec.layers, position_free=layout.position_free
        )

    def sequence(self, listed: Fields) -> Tensor:
        """h_BLD along known lists, from the fields of their items in order."""
        slots = torch.arange(listed.item.shape[1], device=listed.item.device)
        return self.state.sequence(self.token(listed, slots))

    def candidate_tokens(self, fields: Fields, t: int) -> Tensor:
        """Tokens of all candidates as if placed at slot t: e_BCD, and the item's field beside e in the additive form."""
        return self.token(fields, torch.full((fields.item.shape[1],), t, device=fields.item.device))

    def table(self, fields: Fields, slots: int) -> Table:
        """What the steps of a search need of the candidates at the first `slots` slots: see `PrefixState.table`."""
        return self.state.table([self.candidate_tokens(fields, t) for t in range(slots if self.slot_field else 1)])


class MemberBeams(NamedTuple):
    """K prefixes of every request: network states, count distribution P_BKOt, utility U_BK in units of Ū."""

    value_state: State
    togo_state: State
    counts: Tensor
    utility: Tensor
    length: int


class MemberPrepared(NamedTuple):
    """What depends on the candidates alone, computed once a request; pool_BD is an unordered summary of them."""

    value: Table
    togo: Table
    pool: Tensor


class Member(nn.Module):
    """Two networks: cumulative regression of the feedback counts, and the value to go of the logging continuation."""

    weights_OL: Tensor

    def __init__(self, spec: EvaluatorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.value = PrefixNetwork(spec, spec.prefix_state)
        self.head = make_head(spec.head, spec.width, spec.layout.list_length, spec.at_most_one)
        # With products its values run away on lists that no log has shown.
        self.togo = PrefixNetwork(spec, "additive" if spec.prefix_state == "products" else spec.prefix_state)
        self.pool = nn.Linear(spec.width, spec.width)
        self.togo_pool = nn.Linear(spec.width, spec.width, bias=False)
        self.togo_hidden = nn.Linear(spec.width, spec.width)
        self.togo_out = nn.Linear(spec.width, 1)
        self.register_buffer("weights_OL", torch.tensor(spec.weights_OL) / spec.mean_utility)

    # -- along known lists (training, rescoring) --------------------------------------------------------------------

    def logits(self, batch: Batch, lists_BL: Tensor | None = None) -> Tensor:
        """logits_BLOX of the count head for every slot of known lists (index into candidates, -1 padding); without them the
        batch holds the listed items alone, in order."""
        fields = self.value.fields(batch if lists_BL is None else listed(batch, lists_BL))
        out: Tensor = self.head(self.value.sequence(fields))
        return out

    def increments(self, batch: Batch, lists_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Expected increments m_BLO and the count distribution after the last slot P_BO(L+1)."""
        logits = self.logits(batch, lists_BL)
        B, L = lists_BL.shape
        P = self.head.start(logits, B, 1)[:, 0]
        steps = []
        for t in range(L):
            m, P = self.head.advance(logits[:, t], P)
            steps.append(m)
        return torch.stack(steps, dim=1), P

    def utilities(self, batch: Batch, lists_BL: Tensor) -> Tensor:
        """Utility of every prefix U_BL = Σ_o ω_o Σ_{i≤t} w_{o,i} m_{o,i}, in units of Ū."""
        m_BLO, _ = self.increments(batch, lists_BL)
        return (m_BLO * self.weights_OL.T[: m_BLO.shape[1]]).sum(-1).cumsum(-1)

    def to_go(self, batch: Batch, lists_BL: Tensor) -> Tensor:
        """G_BL: value still to come after each slot under the logging continuation, in units of Ū; 0 at the last slot L."""
        h = self.togo.sequence(self.togo.fields(listed(batch, lists_BL)))
        G = self._togo_head(h, self.pooled(batch).unsqueeze(1))
        full = torch.arange(1, lists_BL.shape[1] + 1, device=G.device) >= self.spec.layout.list_length
        return G.masked_fill(full, 0.0)

    # -- one step at a time from a cached state (mining) ------------------------------------------------------------

    def prepare(self, batch: Batch) -> MemberPrepared:
        """Everything of a batch that no prefix changes."""
        v, g = self.value.fields(batch), self.togo.fields(batch)
        L = self.spec.layout.list_length
        return MemberPrepared(self.value.table(v, L), self.togo.table(g, L), self.pooled(batch))

    def start(self, prepared: MemberPrepared) -> MemberBeams:
        """The empty prefix of every request, K = 1."""
        zero = prepared.pool.new_zeros(prepared.pool.shape[0], 1)
        value, togo = self.value.state.start(prepared.value), self.togo.state.start(prepared.togo)
        return MemberBeams(value, togo, self.head.start(zero, len(zero), 1), zero, 0)

    def expand(self, prepared: MemberPrepared, beams: MemberBeams, *, to_go: bool) -> tuple[Tensor, Tensor | None]:
        """U_BKC of every child of every prefix, and U + G where `to_go` asks for it (None otherwise)."""
        t = beams.length
        logits = self.head(self.value.state.hidden(beams.value_state, prepared.value, t))
        m = self.head.increments(logits, beams.counts.unsqueeze(2))
        U = beams.utility.unsqueeze(-1) + m @ self.weights_OL[:, t]
        if not to_go:
            return U, None
        if t + 1 >= self.spec.layout.list_length:
            return U, U
        h = self.togo.state.hidden(beams.togo_state, prepared.togo, t)
        return U, U + self._togo_head(h, prepared.pool[:, None, None])

    def advance(self, prepared: MemberPrepared, beams: MemberBeams, parent_BK: Tensor, item_BK: Tensor) -> MemberBeams:
        """The chosen children as the new prefixes."""
        t = beams.length
        h, value_state = self.value.state.advance(beams.value_state, prepared.value, parent_BK, item_BK, t)
        _, togo_state = self.togo.state.advance(beams.togo_state, prepared.togo, parent_BK, item_BK, t)
        m, counts = self.head.advance(self.head(h), pick(beams.counts, parent_BK))
        utility = pick(beams.utility, parent_BK) + m @ self.weights_OL[:, t]
        return MemberBeams(value_state, togo_state, counts, utility, t + 1)

    def completed(self, prepared: MemberPrepared, beams: MemberBeams, rest_BX: Tensor, items_BK: Tensor) -> Tensor:
        """U_BK, in units of Ū, of full lists: the one prefix of each request, then its rest (indices into candidates) with each of
        the items in the first place, and where that item stood the one that stood first."""
        P, U = beams.counts, beams.utility
        along = self.value.state.along(beams.value_state, prepared.value, rest_BX, items_BK, beams.length)
        for x, h in enumerate(along):
            m, P = self.head.advance(self.head(h), P)
            U = U + m @ self.weights_OL[:, beams.length + x]
        return U

    def pooled(self, batch: Batch) -> Tensor:
        """Unordered summary of the candidates: the mean of a gated projection, padding left out. (B, D)"""
        mask = batch["mask"].unsqueeze(1).to(self.pool.weight.dtype)
        gated = F.gelu(self.togo.fields.item_and_prior(batch, self.pool))
        return (mask @ gated).squeeze(1) / mask.sum(-1).clamp(min=1)

    def _togo_head(self, h: Tensor, pool: Tensor) -> Tensor:
        return self.togo_out(F.gelu(self.togo_hidden(h) + self.togo_pool(pool))).squeeze(-1)
