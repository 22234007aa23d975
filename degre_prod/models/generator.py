"""Online Generator: a bidirectional encoder over candidates and a pointer decoder, one greedy pass (METHOD §5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from degre_prod.encoding.encoder import Layout
from degre_prod.models.attention import AttentionBlock
from degre_prod.models.decoders import DecoderForm, State, make_decoder, repeat
from degre_prod.models.fields import Batch, FieldEmbedding, Token, gather

NEVER = -1e9  # logit of an item that must not be chosen; float32 keeps real logits apart from it


@dataclass(frozen=True)
class GeneratorSpec:
    """What rebuilds a generator besides its weights."""

    layout: Layout
    width: int
    encoder_layers: int
    decoder: DecoderForm = "gru"


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
        self.decoder = make_decoder(spec.decoder, D, spec.layout.list_length)
        self.query = nn.Linear(D, D, bias=False)
        self.key = nn.Linear(D, D, bias=False)

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor, State]:
        """z_BCD, the decoder's first input_BD, and its first state."""
        fields = self.fields(batch)
        z = self.token(fields)
        for block in self.blocks:
            z = block(z, batch["mask"])
        z = self.norm(z)
        mask = batch["mask"].unsqueeze(-1).to(z.dtype)
        mean = (z * mask).sum(1) / mask.sum(1).clamp(min=1)
        request = torch.cat([fields.user, fields.context, mean], dim=-1)
        return z, self.first(request), self.decoder.start(request)

    def teacher_forced(self, batch: Batch, lists_BKL: Tensor, feasible_BKLC: Tensor | None = None) -> Tensor:
        """logits_BKLC at every step of given lists (indices into candidates; no padding); used items are masked, and what
        `feasible_BKLC` (bool) does not allow."""
        z, first, state = self.encode(batch)
        B, K, L = lists_BKL.shape
        C, D = z.shape[1:]
        before = gather(z, lists_BKL[:, :, :-1].reshape(B, K * (L - 1))).view(B * K, L - 1, D)
        x = torch.cat([first.repeat_interleave(K, 0).unsqueeze(1), before], dim=1)
        q = self.query(self.decoder.sequence(x, repeat(state, K))).view(B, K * L, D)
        logits = (q @ self.key(z).transpose(1, 2) / D**0.5).view(B, K, L, C)
        placed = F.one_hot(lists_BKL, C).cumsum(2) - F.one_hot(lists_BKL, C) > 0
        never = placed | ~batch["mask"][:, None, None]
        return logits.masked_fill(never if feasible_BKLC is None else never | ~feasible_BKLC, NEVER)

    def decode(
        self, batch: Batch, length: int, feasible: Callable[[Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Greedy lists order_BL (indices into candidates) and margins_BL.

        The margin is the chosen logit less the runner-up's (about 1e9 when nothing else was left). Ties: the smaller prior
        rank. Past the last candidate the order repeats used items: callers cut at the number of candidates. float32. The
        attention decoder knows `list_length` slots, no more. `feasible` says after order_BT which candidates may come next,
        mask_BC; one must.
        """
        z, x, state = self.encode(batch)
        keys = self.key(z).transpose(1, 2)
        D = z.shape[-1]
        free = batch["mask"]
        rank = batch["prior_rank"]
        order, margins = [rank[:, :0]], []
        for _ in range(length):
            h, state = self.decoder.step(x, state)
            logits = (self.query(h).unsqueeze(1) @ keys).squeeze(1) / D**0.5
            may = free if feasible is None else free & feasible(torch.cat(order, dim=1))
            logits = torch.where(may, logits, torch.full_like(logits, NEVER))
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


class SetBlock(AttentionBlock):
    """Pre-norm bidirectional attention over candidates, padding masked."""

    def forward(self, x_BCD: Tensor, mask_BC: Tensor) -> Tensor:
        """x_BCD → x_BCD."""
        q, k, v = self.project(x_BCD)
        scores = q @ k.transpose(-1, -2)
        scores = torch.where(mask_BC[:, None, None], scores, torch.full_like(scores, NEVER))
        return self.finish(x_BCD, torch.softmax(scores, dim=-1) @ v)
