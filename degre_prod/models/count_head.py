"""Cumulative regression by a Markov count (METHOD §2, `count_markov`).

r_{t,k} = P(y_t = 1 | l_≤t, x, V_{t−1} = k) = σ(a(h_t) + b(h_t)·log(1+k)) for k < t (t from 1), P_0(0) = 1,
P_t(k) = P_{t−1}(k)(1 − r_{t,k}) + P_{t−1}(k−1) r_{t,k−1}; increments m_t = E[V_t] − E[V_{t−1}] = Σ_k P_{t−1}(k) r_{t,k}.
An objective earned once at most has r_{t,k≥1} = 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CountHead(nn.Module):
    """h_…D → (a_…O, b_…O) and what follows from them; `at_most_one` names the objectives earned once at most."""

    at_most_one: Tensor

    def __init__(self, width: int, at_most_one: tuple[bool, ...]) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 2 * len(at_most_one))
        self.register_buffer("at_most_one", torch.tensor(at_most_one))

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """a and b, each (…, O)."""
        a, b = self.linear(h).chunk(2, dim=-1)
        return a, b

    def rates(self, a: Tensor, b: Tensor, counts: int) -> Tensor:
        """r for k = 0 … counts−1: (…, O, counts)."""
        k = torch.log1p(torch.arange(counts, device=a.device, dtype=a.dtype))
        r = torch.sigmoid(a.unsqueeze(-1) + b.unsqueeze(-1) * k)
        if counts == 1:
            return r
        once = self.at_most_one.unsqueeze(-1) & (torch.arange(counts, device=a.device) > 0)
        return r.masked_fill(once, 0.0)

    def loss(self, a_BLO: Tensor, b_BLO: Tensor, feedback_BOL: Tensor, carries_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of the cross-entropies of y_t against r at the observed count, and how many there were.

        After a slot that doesn't carry loss the count is not observed, so the slots after it don't either.
        """
        y = feedback_BOL.transpose(1, 2)
        seen = y * carries_BL.unsqueeze(-1)
        before = seen.cumsum(1) - seen
        logits = a_BLO + b_BLO * torch.log1p(before)
        observed = carries_BL.long().cumprod(1).bool()
        counted = observed.unsqueeze(-1) & ~(self.at_most_one & (before > 0))
        losses = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
        return (losses * counted).sum(), counted.sum()


def start_counts(like: Tensor, B: int, K: int, O: int) -> Tensor:
    """P_0 of shape (B, K, O, 1): certainly zero."""
    return like.new_ones(B, K, O, 1)


def increments(P: Tensor, r: Tensor) -> Tensor:
    """m = Σ_k P(k) r_k over the last axis; P and r broadcast."""
    return (P * r).sum(-1)


def next_counts(P: Tensor, r: Tensor) -> Tensor:
    """P_t (…, t+1) from P_{t−1} (…, t) and r_t (…, t)."""
    return F.pad(P * (1 - r), (0, 1)) + F.pad(P * r, (1, 0))


def at_least(P: Tensor) -> Tensor:
    """P(V ≥ k) for k = 1 … t: (…, t)."""
    return P.flip(-1).cumsum(-1).flip(-1)[..., 1:]
