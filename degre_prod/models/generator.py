"""Online Generator: a bidirectional encoder over candidates and a pointer decoder, one greedy pass (METHOD §5)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from degre_prod.encoding.encoder import Layout
from degre_prod.models.fields import Batch, FieldEmbedding, Token, gather

NEVER = -1e9  # logit of an item that must not be chosen; float32 keeps real logits apart from it


@dataclass(frozen=True)
class GeneratorSpec:
    """What rebuilds a generator besides its weights."""

    layout: Layout
    width: int
    encoder_layers: int


class Generator(nn.Module):
    """No order embedding: the upstream rank enters only as a feature, so permuting candidates permutes the answer."""

    def __init__(self, spec: GeneratorSpec) -> None:
        super().__init__()
        D = spec.width
        self.spec = spec
        self.fields = FieldEmbedding(spec.layout, D)
        self.token = Token(D)
        self.blocks = nn.ModuleList(SetBlock(D) for _ in range(spec.encoder_layers))
        self.norm = nn.LayerNorm(D)
        self.first = nn.Linear(3 * D, D)
        self.initial = nn.Linear(3 * D, D)
        self.cell = GatedCell(D)
        self.query = nn.Linear(D, D, bias=False)
        self.key = nn.Linear(D, D, bias=False)

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """z_BCD, the decoder's first input_BD, and its first state_BD."""
        fields = self.fields(batch)
        z = self.token(fields)
        for block in self.blocks:
            z = block(z, batch["mask"])
        z = self.norm(z)
        mask = batch["mask"].unsqueeze(-1).to(z.dtype)
        mean = (z * mask).sum(1) / mask.sum(1).clamp(min=1)
        request = torch.cat([fields.user, fields.context, mean], dim=-1)
        return z, self.first(request), torch.tanh(self.initial(request))

    def teacher_forced(self, batch: Batch, lists_BKL: Tensor) -> Tensor:
        """logits_BKLC at every step of given lists (indices into candidates; no padding); used items are masked."""
        z, first, state = self.encode(batch)
        B, K, L = lists_BKL.shape
        C, D = z.shape[1:]
        chosen = gather(z, lists_BKL.reshape(B, K * L)).view(B * K, L, D)
        x, h = first.repeat_interleave(K, 0), state.repeat_interleave(K, 0)
        hidden = []
        for t in range(L):
            h = self.cell(x, h)
            hidden.append(h)
            x = chosen[:, t]
        q = self.query(torch.stack(hidden, dim=1)).view(B, K * L, D)
        logits = (q @ self.key(z).transpose(1, 2) / D**0.5).view(B, K, L, C)
        placed = F.one_hot(lists_BKL, C).cumsum(2) - F.one_hot(lists_BKL, C) > 0
        return logits.masked_fill(placed | ~batch["mask"][:, None, None], NEVER)

    def decode(self, batch: Batch, length: int) -> tuple[Tensor, Tensor]:
        """Greedy lists order_BL (indices into candidates) and margins_BL.

        The margin is the chosen logit less the runner-up's (about 1e9 when nothing else was left). Ties: the smaller prior
        rank. Past the last candidate the order repeats used items: callers cut at the number of candidates. float32.
        """
        z, x, h = self.encode(batch)
        keys = self.key(z).transpose(1, 2)
        D = z.shape[-1]
        free = batch["mask"]
        rank = batch["prior_rank"]
        order, margins = [], []
        for _ in range(length):
            h = self.cell(x, h)
            logits = (self.query(h).unsqueeze(1) @ keys).squeeze(1) / D**0.5
            logits = torch.where(free, logits, torch.full_like(logits, NEVER))
            best = logits.max(dim=1, keepdim=True).values
            tied_rank = torch.where(logits >= best, rank, torch.full_like(rank, 1 << 30))
            choice = tied_rank.argmin(dim=1, keepdim=True)
            taken = rank == tied_rank.min(dim=1, keepdim=True).values
            runner_up = torch.where(taken, torch.full_like(logits, 2 * NEVER), logits).max(dim=1, keepdim=True).values
            order.append(choice)
            margins.append(best - runner_up)
            free = free & ~taken
            x = gather(z, choice).squeeze(1)
        return torch.cat(order, dim=1), torch.cat(margins, dim=1)


class GatedCell(nn.Module):
    """A GRU cell (Cho et al. 2014) by slices: nn.GRUCell chunks in a way that the ONNX exporter refuses."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(width, 3 * width)
        self.hidden = nn.Linear(width, 3 * width)
        self.width = width

    def forward(self, x_BD: Tensor, h_BD: Tensor) -> Tensor:
        """h_BD after reading x_BD."""
        D = self.width
        i, h = self.input(x_BD), self.hidden(h_BD)
        reset = torch.sigmoid(i[:, :D] + h[:, :D])
        update = torch.sigmoid(i[:, D : 2 * D] + h[:, D : 2 * D])
        new = torch.tanh(i[:, 2 * D :] + reset * h[:, 2 * D :])
        return new + update * (h_BD - new)


class SetBlock(nn.Module):
    """Pre-norm bidirectional attention over candidates, padding masked."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ff1, self.ff2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor, mask_BC: Tensor) -> Tensor:
        """x_BCD → x_BCD."""
        B, C, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, C, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / (D // self.heads) ** 0.5
        scores = torch.where(mask_BC[:, None, None], scores, torch.full_like(scores, NEVER))
        attended = (torch.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(B, C, D)
        x = x + self.out(attended)
        return x + self.ff2(F.gelu(self.ff1(self.norm2(x))))
