"""Cumulative regression: the distribution of the prefix count V_t by three heads behind one interface (METHOD §2).

A head reads h_t into a few logits and carries P_{t−1}, the distribution of the count before slot t (t from 1), from slot to
slot: P_0(0) = 1, P_t has a place for 0 … t and none beyond. Increments m_t = E[V_t] − E[V_{t−1}].
    count_markov  r_{t,k} = P(y_t = 1 | l_≤t, x, V_{t−1} = k) = σ(a(h_t) + b(h_t)·log(1+k)) for k < t;
                  P_t(k) = P_{t−1}(k)(1 − r_{t,k}) + P_{t−1}(k−1) r_{t,k−1}; m_t = Σ_k P_{t−1}(k) r_{t,k}
    step          the same with b = 0: steps don't depend on each other
    continuation  P(V_t ≥ k) = Π_{j≤k} σ(f_j(h_t)) for k ≤ t, whatever was before; m_t may be negative
An objective earned once at most has no count above one: r_{t,k≥1} = 0, P(V_t ≥ 2) = 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SURE = -1e-6  # log-probabilities nearer to zero are taken as this: log(1 − p) and its gradient stay finite


class CountHead(nn.Module, ABC):
    """h_…D → logits_…OX and what follows from them; `at_most_one` names the objectives earned once at most."""

    at_most_one: Tensor

    def __init__(self, width: int, at_most_one: tuple[bool, ...], outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.linear = nn.Linear(width, outputs * len(at_most_one))
        self.register_buffer("at_most_one", torch.tensor(at_most_one))
        self.any_at_most_one = any(at_most_one)

    def forward(self, h: Tensor) -> Tensor:
        """logits (…, O, X)."""
        out: Tensor = self.linear(h)
        return out.unflatten(-1, (self.outputs, -1)).transpose(-1, -2)

    def start(self, like: Tensor, B: int, K: int) -> Tensor:
        """P_0 of shape (B, K, O, 1): certainly zero."""
        return like.new_ones(B, K, len(self.at_most_one), 1)

    @abstractmethod
    def increments(self, logits: Tensor, P: Tensor) -> Tensor:
        """m_t (…, O) from logits_…OX of slot t and P_{t−1} (…, O, t); leading axes broadcast."""

    @abstractmethod
    def advance(self, logits: Tensor, P: Tensor) -> tuple[Tensor, Tensor]:
        """The same m_t, and P_t (…, O, t+1)."""

    @abstractmethod
    def loss(self, logits_BLOX: Tensor, feedback_BOL: Tensor, carries_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Sum of cross-entropies and how many there were.

        After a slot that doesn't carry loss the count is not observed, so the slots after it don't either.
        """


class MarkovHead(CountHead):
    """`count_markov`. Loss: cross-entropy of y_t against r_{t,k} at the observed k = V_{t−1}."""

    def __init__(self, width: int, at_most_one: tuple[bool, ...], outputs: int = 2) -> None:
        super().__init__(width, at_most_one, outputs)

    def rates(self, logits: Tensor, counts: int) -> Tensor:
        """r for k = 0 … counts−1: (…, O, counts)."""
        k = torch.arange(counts, device=logits.device)
        r = torch.sigmoid(self._at(logits.unsqueeze(-2), k.to(logits.dtype)))
        if counts == 1 or not self.any_at_most_one:
            return r
        return r.masked_fill(self.at_most_one.unsqueeze(-1) & (k > 0), 0.0)

    def increments(self, logits: Tensor, P: Tensor) -> Tensor:
        """See `CountHead`."""
        return (P * self.rates(logits, P.shape[-1])).sum(-1)

    def advance(self, logits: Tensor, P: Tensor) -> tuple[Tensor, Tensor]:
        """See `CountHead`."""
        earned = P * self.rates(logits, P.shape[-1])
        return earned.sum(-1), F.pad(P - earned, (0, 1)) + F.pad(earned, (1, 0))

    def loss(self, logits_BLOX: Tensor, feedback_BOL: Tensor, carries_BL: Tensor) -> tuple[Tensor, Tensor]:
        """See `CountHead`."""
        y, before, observed = _observed(feedback_BOL, carries_BL)
        counted = observed.unsqueeze(-1) & ~(self.at_most_one & (before > 0))
        losses = F.binary_cross_entropy_with_logits(self._at(logits_BLOX, before), y, reduction="none")
        return (losses * counted).sum(), counted.sum()

    def _at(self, logits: Tensor, count: Tensor) -> Tensor:
        """Logit of r at a count before the slot."""
        return logits[..., 0] + logits[..., 1] * torch.log1p(count)


class StepHead(MarkovHead):
    """`step`: one logit, whatever was earned before."""

    def __init__(self, width: int, at_most_one: tuple[bool, ...]) -> None:
        super().__init__(width, at_most_one, outputs=1)

    def _at(self, logits: Tensor, count: Tensor) -> Tensor:
        return logits[..., 0].expand(torch.broadcast_shapes(logits.shape[:-1], count.shape))


class ContinuationHead(CountHead):
    """`continuation`, the paper's reading. Loss: cross-entropy of 1[V_t ≥ k] for every prefix and k ≤ t."""

    def __init__(self, width: int, at_most_one: tuple[bool, ...], slots: int) -> None:
        super().__init__(width, at_most_one, slots)

    def log_tail(self, logits: Tensor, t: int) -> Tensor:
        """log P(V_t ≥ k) for k = 1 … t: (…, O, t), the impossible ones of an objective earned once too."""
        return F.logsigmoid(logits[..., :t]).cumsum(-1)

    def increments(self, logits: Tensor, P: Tensor) -> Tensor:
        """See `CountHead`."""
        t = P.shape[-1]
        before = (P * torch.arange(t, device=P.device)).sum(-1)
        return self._tail(logits, t).sum(-1) - before

    def advance(self, logits: Tensor, P: Tensor) -> tuple[Tensor, Tensor]:
        """See `CountHead`."""
        tail = self._tail(logits, P.shape[-1])
        return self.increments(logits, P), F.pad(tail, (1, 0), value=1.0) - F.pad(tail, (0, 1))

    def loss(self, logits_BLOX: Tensor, feedback_BOL: Tensor, carries_BL: Tensor) -> tuple[Tensor, Tensor]:
        """See `CountHead`."""
        L = logits_BLOX.shape[1]
        y, before, observed = _observed(feedback_BOL, carries_BL)
        k = torch.arange(1, L + 1, device=y.device)
        reached = ((y + before).unsqueeze(-1) >= k).to(y.dtype)  # (B, L, O, k)
        log_p = self.log_tail(logits_BLOX, L).clamp(max=_SURE)
        losses = -torch.where(reached > 0, log_p, torch.log(-torch.expm1(log_p)))
        possible = (k <= k.unsqueeze(1)).unsqueeze(1) & ~(self.at_most_one.unsqueeze(-1) & (k > 1))  # (L, O, k)
        counted = observed[:, :, None, None] & possible
        return (losses * counted).sum(), counted.sum()

    def _tail(self, logits: Tensor, t: int) -> Tensor:
        tail = self.log_tail(logits, t).exp()
        if t == 1:
            return tail
        k = torch.arange(1, t + 1, device=tail.device)
        return tail.masked_fill(self.at_most_one.unsqueeze(-1) & (k > 1), 0.0)


def make_head(form: str, width: int, slots: int, at_most_one: tuple[bool, ...]) -> CountHead:
    """`count_markov`, `continuation` or `step`."""
    if form == "continuation":
        return ContinuationHead(width, at_most_one, slots)
    return StepHead(width, at_most_one) if form == "step" else MarkovHead(width, at_most_one)


def _observed(feedback_BOL: Tensor, carries_BL: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y_BLO, the count before each slot (B, L, O), and whether both are known (B, L)."""
    y = feedback_BOL.transpose(1, 2)
    seen = y * carries_BL.unsqueeze(-1)
    return y, seen.cumsum(1) - seen, carries_BL.long().cumprod(1).bool()
