"""The state of a list's prefix, in three forms behind one interface: `additive`, `products`, `attention` (METHOD §2).

sequence(tokens_BLD) gives h for every slot of known lists at once (training). table, start, hidden, advance give the same
values one step at a time from a cached state (mining): `table` what no prefix changes, `hidden` the h of every candidate as
the next item of every prefix, `advance` the state after choosing one. along: the same along one rest of a list with many
candidates in its first place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = tuple[Tensor, ...]  # each tensor (B, K, …)
Table = tuple[Tensor, ...]  # of the candidates, and by slot where that matters


class PrefixState(Protocol):
    """What every form offers."""

    def sequence(self, tokens_BLD: Tensor) -> Tensor:
        """h_BLD; h at slot t depends on tokens ≤ t alone."""
        ...

    def table(self, tokens_LBCD: Sequence[Tensor]) -> Table:
        """All that the steps below need of the candidates, from their tokens by slot or the same for all slots."""
        ...

    def start(self, table: Table) -> State:
        """The state of the empty prefix, K = 1."""
        ...

    def hidden(self, state: State, table: Table, t: int) -> Tensor:
        """h_BKCD of each candidate placed at slot t (from 0) after each prefix."""
        ...

    def advance(self, state: State, table: Table, parent_BK: Tensor, items_BK: Tensor, t: int) -> tuple[Tensor, State]:
        """h_BKD and the state of K prefixes, each a parent's prefix with one more item (an index into C) at slot t."""
        ...

    def along(self, state: State, table: Table, rest_BX: Tensor, items_BK: Tensor, t: int) -> Iterator[Tensor]:
        """h_BKD at the slots t, t+1, …, one after another, of the rests `exchanged` makes, after the one prefix of each request. No
        item that the rest has further back may be there twice."""
        ...


def pick(values_BK: Tensor, parent_BK: Tensor) -> Tensor:
    """Rows of axis 1 by parent index; trailing axes follow."""
    index = parent_BK.view(*parent_BK.shape, *(1,) * (values_BK.dim() - 2))
    return values_BK.gather(1, index.expand(*parent_BK.shape, *values_BK.shape[2:]))


def exchanged(rest_BX: Tensor, items_BK: Tensor) -> Tensor:
    """rests_BKX: a rest with each of the items in its first place, and where that item stood the one that stood first."""
    rests = rest_BX.unsqueeze(1).expand(-1, items_BK.shape[1], -1)
    rests = torch.where(rests == items_BK.unsqueeze(-1), rest_BX[:, 0, None, None], rests)
    rests[:, :, 0] = items_BK
    return rests


def rows(table_BCD: Tensor, items_BK: Tensor) -> Tensor:
    """(B, K, D): as `fields.gather` of indices without padding, but copied by whole rows, which is several times faster."""
    B, C, D = table_BCD.shape
    first = torch.arange(0, B * C, C, device=items_BK.device).unsqueeze(1)
    return F.embedding(items_BK + first, table_BCD.reshape(B * C, D))


class AdditiveState(nn.Module):
    """Two unnormalised sums over the prefix, and what each multiplies (METHOD §2). Tokens are (e, x) side by side, x being
    the item's own field.

    S_t = Σ_{w<t} A·gelu(B(e_w + pos_w)); R_t = Σ_{w<t} tanh(B1 x_w) ⊙ tanh(B2 x_w);
    h = gelu(W1 S + W2 e_v + pos_t + (W3 S) ⊙ (W4 e_v) + (W5 R) ⊙ (W6 x_v)). R is there for effects of one item's features on
    another's, such as a hook that lifts what resembles it: third-order products that S, a mixture of all fields, learns far
    too slowly. tanh bounds what one item adds, so that values do not run away on lists unlike the logged ones. Without
    `products` there is no R.
    """

    def __init__(self, width: int, slots: int, *, position_free: bool, products: bool) -> None:
        super().__init__()
        self.width, self.products = width, products
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, width, bias=False)
        self.w1 = nn.Linear(width, width, bias=False)
        self.w2 = nn.Linear(width, width)
        self.w3 = nn.Linear(width, width, bias=False)
        self.w4 = nn.Linear(width, width, bias=False)
        if products:
            self.b1 = nn.Linear(width, 2 * width)
            self.b2 = nn.Linear(width, 2 * width)
            self.w5 = nn.Linear(2 * width, width, bias=False)
            self.w6 = nn.Linear(width, width)
            for factor in (self.b1, self.b2, self.w5, self.w6):  # products of small numbers would hardly move
                nn.init.normal_(factor.weight, std=factor.in_features**-0.5)
        rows = 1 if position_free else slots
        self.past = nn.Parameter(torch.randn(rows, width) * 0.02)
        self.target = nn.Parameter(torch.randn(rows, width) * 0.02)
        self.position_free = position_free

    def _slot(self, table: Tensor, t: int) -> Tensor:
        return table[0] if self.position_free else table[t]

    def _slots(self, table: Tensor, length: int) -> Tensor:
        return table.expand(length, -1) if self.position_free else table[:length]

    def _added(self, tokens: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """What one item adds to R (nothing without products) and to S."""
        e, x = tokens.split(self.width, dim=-1)
        more = torch.tanh(self.b1(x)) * torch.tanh(self.b2(x)) if self.products else x[..., :0]
        return more, self.outer(F.gelu(self.inner(e + past)))

    def sequence(self, tokens_BLD: Tensor) -> Tensor:
        L = tokens_BLD.shape[1]
        before = tokens_BLD.new_ones(L, L).tril(-1)  # sums over the slots before each; cumsum has a slow gradient
        R, S = (before @ added for added in self._added(tokens_BLD, self._slots(self.past, L)))
        e, x = tokens_BLD.split(self.width, dim=-1)
        pre = self.w1(S) + self.w2(e) + self._slots(self.target, L) + self.w3(S) * self.w4(e)
        return F.gelu(pre + self.w5(R) * self.w6(x) if self.products else pre)

    def table(self, tokens_LBCD: Sequence[Tensor]) -> Table:
        """What each candidate adds to W1 S, W3 S and W5 R at each slot, (L or 1, B, C, 3D), and its W2 e, W4 e, W6 x (B, C, 3D).

        S and R are sums, and what is made of them first is linear: so no step of a search has a product of matrices.
        """
        [tokens] = tokens_LBCD
        e, x = tokens.split(self.width, dim=-1)
        R, S = self._added(tokens, self.past[:, None, None])
        adds, own = [self.w1(S), self.w3(S)], [self.w2(e), self.w4(e)]
        if self.products:
            adds.append(self.w5(R).expand_as(adds[0]))
            own.append(self.w6(x))
        return torch.cat(adds, -1), torch.cat(own, -1)

    def start(self, table: Table) -> State:
        _, own = table
        return (own.new_zeros(own.shape[0], 1, own.shape[2]),)

    def hidden(self, state: State, table: Table, t: int) -> Tensor:
        [sums], (_, own) = state, table
        return self._next(sums.unsqueeze(2), own.unsqueeze(1), t)

    def advance(self, state: State, table: Table, parent_BK: Tensor, items_BK: Tensor, t: int) -> tuple[Tensor, State]:
        [sums], (_, own) = state, table
        sums = pick(sums, parent_BK)
        return self._next(sums, rows(own, items_BK), t), (sums + self._adds(table, items_BK, t),)

    def along(self, state: State, table: Table, rest_BX: Tensor, items_BK: Tensor, t: int) -> Iterator[Tensor]:
        """See `PrefixState`. After slot t the rests have all items in common but one, so sums are parted into `common` and what
        the first item adds, and the one of the K rests (if any) whose exchanged item comes now is put right by itself."""
        [common], (_, own) = state, table
        yield self._next(common, rows(own, items_BK), t)
        adds = self._adds(table, items_BK, t)  # (B, K, 3D)
        first, own_first = rest_BX[:, :1], rows(own, rest_BX[:, :1])
        for x in range(1, rest_BX.shape[1]):
            here = rest_BX[:, x : x + 1]
            own_here = rows(own, here)
            h = F.gelu(self._more(self._pre(common, own_here, t + x), adds, own_here))
            comes = items_BK == here
            k = comes.long().argmax(1, keepdim=True)
            moved = comes.gather(1, k).unsqueeze(-1)
            instead = self._next(common + pick(adds, k), own_first, t + x)
            yield h.scatter_(1, k.unsqueeze(-1).expand_as(instead), torch.where(moved, instead, pick(h, k)))
            if x + 1 < rest_BX.shape[1]:
                added = self._adds(table, here, t + x)
                common = common + added
                more = (self._adds(table, first, t + x) - added) * moved
                adds.scatter_add_(1, k.unsqueeze(-1).expand_as(more), more)

    def _next(self, sums: Tensor, own: Tensor, t: int) -> Tensor:
        """h at slot t from W1 S | W3 S | W5 R and W2 e | W4 e | W6 x, with leading axes that broadcast."""
        return F.gelu(self._pre(sums, own, t))

    def _pre(self, sums: Tensor, own: Tensor, t: int) -> Tensor:
        """What `_next` is the gelu of."""
        own2 = own[..., : self.width]
        return self._more(self._slot(self.target, t) + own2, sums, own)

    def _more(self, pre: Tensor, sums: Tensor, own: Tensor) -> Tensor:
        """`pre` with W1 S + W3 S ⊙ W4 e + W5 R ⊙ W6 x added."""
        S1, S3, *R5 = sums.split(self.width, -1)
        _, own4, *own6 = own.split(self.width, -1)
        pre = torch.addcmul(S1 + pre, S3, own4)
        return torch.addcmul(pre, R5[0], own6[0]) if self.products else pre

    def _adds(self, table: Table, items_BK: Tensor, t: int) -> Tensor:
        return rows(self._slot(table[0], t), items_BK)


class AttentionState(nn.Module):
    """Causal pre-norm Transformer over slots; keys and values of a prefix are cached, for survivors only."""

    def __init__(self, width: int, *, layers: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def _layers(self) -> Iterator[_Block]:
        return cast("Iterator[_Block]", iter(self.blocks))

    def sequence(self, tokens_BLD: Tensor) -> Tensor:
        L = tokens_BLD.shape[1]
        causal = torch.ones(L, L, dtype=torch.bool, device=tokens_BLD.device).tril()
        x = tokens_BLD
        for block in self._layers():
            q, k, v = block.project(x)
            scores = (q @ k.transpose(-1, -2)).masked_fill(~causal, float("-inf"))
            x = block.finish(x, torch.softmax(scores, -1) @ v)
        return self.norm(x)

    def table(self, tokens_LBCD: Sequence[Tensor]) -> Table:
        """The tokens."""
        return tuple(tokens_LBCD)

    def start(self, table: Table) -> State:
        B, _, D = table[0].shape
        empty = table[0].new_zeros(B, 1, self.heads, 0, D // self.heads)
        return (empty,) * (2 * len(self.blocks))

    def hidden(self, state: State, table: Table, t: int) -> Tensor:
        K = state[0].shape[1]
        x = _at(table, t).unsqueeze(1).expand(-1, K, -1, -1)
        for i, block in enumerate(self._layers()):
            x, _, _ = block.step(x, state[2 * i], state[2 * i + 1])
        return self.norm(x)

    def advance(self, state: State, table: Table, parent_BK: Tensor, items_BK: Tensor, t: int) -> tuple[Tensor, State]:
        return self._step(tuple(pick(part, parent_BK) for part in state), rows(_at(table, t), items_BK))

    def along(self, state: State, table: Table, rest_BX: Tensor, items_BK: Tensor, t: int) -> Iterator[Tensor]:
        state = tuple(part.expand(-1, items_BK.shape[1], -1, -1, -1) for part in state)
        for x, items in enumerate(exchanged(rest_BX, items_BK).unbind(2)):
            h, state = self._step(state, rows(_at(table, t + x), items))
            yield h

    def _step(self, state: State, tokens_BKD: Tensor) -> tuple[Tensor, State]:
        """h_BKD of one more item after each prefix, and the states with it."""
        x = tokens_BKD.unsqueeze(2)
        grown: list[Tensor] = []
        for i, block in enumerate(self._layers()):
            keys, values = state[2 * i : 2 * i + 2]
            x, k, v = block.step(x, keys, values)
            grown += [torch.cat([keys, k], dim=3), torch.cat([values, v], dim=3)]
        return self.norm(x).squeeze(2), tuple(grown)


def _at(table: Table, t: int) -> Tensor:
    """The tokens at slot t."""
    return table[t if len(table) > 1 else 0]


class _Block(nn.Module):
    """Pre-norm attention and feed-forward; `step` attends from single candidates to a cached prefix and themselves."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ff1, self.ff2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (already scaled), k, v with the head axis before the token axis: (…, H, X, D/H)."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        return q / q.shape[-1] ** 0.5, k, v

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.out(attended.transpose(-2, -3).flatten(-2))
        return x + self.ff2(F.gelu(self.ff1(self.norm2(x))))

    def step(self, x_BKCD: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_BKCD, and the k and v (B, K, H, C, D/H) of the candidates; keys and values (B, K, H, t, D/H)."""
        q, k, v = self.project(x_BKCD)
        prefix = q @ keys.transpose(-1, -2)  # (B, K, H, C, t)
        own = (q * k).sum(-1, keepdim=True)
        weights = torch.softmax(torch.cat([prefix, own], -1), -1)
        attended = weights[..., :-1] @ values + weights[..., -1:] * v
        return self.finish(x_BKCD, attended), k, v


def make_prefix_state(form: str, width: int, slots: int, *, layers: int, position_free: bool) -> PrefixState:
    """`additive`, `products` (additive with R) or `attention`; the attention form reads the slot from its tokens."""
    if form == "attention":
        return AttentionState(width, layers=layers)
    return AdditiveState(width, slots, position_free=position_free, products=form == "products")
