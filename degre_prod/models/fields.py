"""Fields of a candidate (item, prior, user, context, and a slot where wanted) and the token pooled from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from degre_prod.encoding.encoder import GROUPS, Layout
from degre_prod.encoding.store import CANDIDATE_ARRAYS

Batch = Mapping[str, Tensor]


class Fields(NamedTuple):
    """Embedded fields of one batch: item_BXD and prior_BXD by candidate or slot, user_BD and context_BD by request."""

    item: Tensor
    prior: Tensor
    user: Tensor
    context: Tensor

    def at(self, index_BX: Tensor) -> Fields:
        """The same fields with candidates gathered by index."""
        return Fields(gather(self.item, index_BX), gather(self.prior, index_BX), self.user, self.context)


def gather(values_BCD: Tensor, index_BX: Tensor) -> Tensor:
    """values_BXD: rows of the candidate axis; negative indices (padding) read candidate 0."""
    index = index_BX.clamp(min=0).unsqueeze(-1).expand(-1, -1, values_BCD.shape[-1])
    return values_BCD.gather(1, index)


def listed(batch: Batch, lists_BX: Tensor) -> Batch:
    """A batch of the candidates at these indices alone: arrays (B, C, …) → (B, X, …), padding (negative) as in `gather`; mask and
    prior rank stay those of all C."""
    return {name: gather(a, lists_BX) if name in CANDIDATE_ARRAYS else a for name, a in batch.items()}


class FieldEmbedding(nn.Module):
    """Each group's numbers and categories to width D: a linear map plus one embedding per categorical column."""

    def __init__(self, layout: Layout, width: int) -> None:
        super().__init__()
        self.linear = nn.ModuleDict({g: nn.Linear(layout.num[g], width) for g in GROUPS})
        self.tables = nn.ModuleDict({g: nn.ModuleList(nn.Embedding(n, width) for n in layout.cat[g]) for g in GROUPS})
        for tables in self.tables.values():
            for table in cast(nn.ModuleList, tables):
                nn.init.normal_(cast(nn.Embedding, table).weight, std=0.1)

    def forward(self, batch: Batch) -> Fields:
        """Batch arrays `item_num` (B, C, F) … `context_cat` (B, F) → Fields."""
        return Fields(*(self._group(g, batch) for g in GROUPS))

    def item_and_prior(self, batch: Batch, then: nn.Linear) -> Tensor:
        """then(item + prior), (B, C, out), of every candidate; with numbers alone it is one linear map and no field is made."""
        groups = ("item", "prior")
        numbers, categories = zip(*(self._parts(g, batch) for g in groups), strict=True)
        first = [cast(nn.Linear, self.linear[g]) for g in groups]
        weight = then.weight @ torch.cat([linear.weight for linear in first], dim=1)
        bias = F.linear(first[0].bias + first[1].bias, then.weight, then.bias)
        out = F.linear(torch.cat(numbers, dim=-1), weight, bias)
        embedded = [e for of_group in categories for e in of_group]
        return out + F.linear(sum(embedded[1:], embedded[0]), then.weight) if embedded else out

    def _group(self, group: str, batch: Batch) -> Tensor:
        numbers, embedded = self._parts(group, batch)
        return sum(embedded, cast(Tensor, self.linear[group](numbers)))

    def _parts(self, group: str, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """A group's numbers, and its categories embedded."""
        tables = cast("Iterable[nn.Module]", self.tables[group])
        return batch[f"{group}_num"], [table(batch[f"{group}_cat"][..., j]) for j, table in enumerate(tables)]


class Token(nn.Module):
    """Self-attention between the fields of one candidate, then pooled to e: the inter-field part of METHOD §2.

    Pooling sees the attended fields side by side and the product item ⊙ user, so that inner products are one layer away.
    With `keep_item` the token is twice as wide: e, and the item's own field beside it.
    """

    def __init__(self, width: int, *, slots: int | None = None, keep_item: bool = False) -> None:
        super().__init__()
        self.keep_item = keep_item
        self.slot = nn.Embedding(slots, width) if slots is not None else None
        fields = 4 + (slots is not None)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.pool1 = nn.Linear((fields + 1) * width, 2 * width)
        self.pool2 = nn.Linear(2 * width, width)

    def forward(self, fields: Fields, slot_X: Tensor | None = None) -> Tensor:
        """e_BXD for X candidates or slots; `slot_X` (X,) is the slot being filled, where the token has a slot field."""
        B, X, D = fields.item.shape
        parts = [fields.item, fields.prior, fields.user.unsqueeze(1), fields.context.unsqueeze(1)]
        if self.slot is not None:
            assert slot_X is not None
            parts.append(self.slot(slot_X).unsqueeze(0))
        n = len(parts)
        x = torch.stack([part.expand(B, X, D) for part in parts], dim=2).view(B * X, n, D)
        # Queries and keys meet in one matrix, as do values and `out`: each field is then its own key and its own value. What a
        # query alone adds to its scores, the softmax takes away again; attention weights sum to 1, so biases of values ride on
        # them; they are the same for every field and join the bias of the pooling.
        (q, k, v), (q_bias, _, v_bias) = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        asked = F.linear(x, k.T @ q * D**-0.5, k.T @ q_bias * D**-0.5)
        scores = torch.bmm(asked, x.transpose(1, 2)).permute(2, 0, 1)
        weights = torch.softmax(scores.contiguous(), dim=0).permute(1, 2, 0)  # of so few, quicker along the first axis
        seen = torch.bmm(weights, x)
        x = torch.addmm(x.view(-1, D), seen.view(-1, D), (self.out.weight @ v).T)
        fields_first, product = self.pool1.weight.split((n * D, D), dim=1)
        bias = self.pool1.bias + fields_first @ (self.out.weight @ v_bias + self.out.bias).repeat(n)
        pooled = F.linear(x.view(B, X, n * D), fields_first, bias)
        e: Tensor = self.pool2(F.gelu(pooled + F.linear(fields.item * fields.user.unsqueeze(1), product)))
        return torch.cat([e, fields.item], dim=-1) if self.keep_item else e
