"""Distributions over lists, one item after another: what the methods share that learn from lists of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from degre_prod.baselines.material import batches, cut
from degre_prod.encoding.store import EncodedSet
from degre_prod.models.decoders import Decoder, GruDecoder, State, repeat
from degre_prod.models.fields import gather
from degre_prod.models.generator import NEVER, Generator
from degre_prod.training.data import TensorBatch


class Drawn(NamedTuple):
    """lists_BGL, and logits_BGLC of every step, used items and padding masked; the logits carry gradient where it is on."""

    lists: Tensor
    logits: Tensor


class Policy(nn.Module, ABC):
    """A distribution over lists."""

    @abstractmethod
    def logits(self, batch: TensorBatch, lists_BGL: Tensor) -> Tensor:
        """logits_BGLC of every step of given lists; used items and padding are masked."""

    @abstractmethod
    def sample(self, batch: TensorBatch, groups: int, length: int, noise: torch.Generator | None) -> Drawn:
        """G lists of each request drawn from the policy; the greedy list where there is no noise."""


class PointerPolicy(Policy):
    """The Online Generator as a policy."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def logits(self, batch: TensorBatch, lists_BGL: Tensor) -> Tensor:
        """See `Policy`."""
        return self.generator.teacher_forced(batch, lists_BGL)

    def sample(self, batch: TensorBatch, groups: int, length: int, noise: torch.Generator | None) -> Drawn:
        """See `Policy`. What depends on a candidate or a request alone is computed once for all its lists."""
        model = self.generator
        z, first, state = model.encode(batch)
        B, C, D = z.shape
        keys = (model.key(z) @ model.query.weight / D**0.5).transpose(1, 2)  # (W_q h)·(W_k z) = h·(W_q' W_k z)
        read = _Reader(model.decoder, z)
        used = ~batch["mask"].unsqueeze(1).expand(B, groups, C)
        h, state = model.decoder.step(first, state)
        h, state = h.repeat_interleave(groups, 0), repeat(state, groups)
        lists: list[Tensor] = []
        logits: list[Tensor] = []
        for t in range(length):
            if t:
                h, state = read(lists[-1], state)
            logits.append((h.view(B, groups, D) @ keys).masked_fill(used, NEVER))
            lists.append(draw(logits[-1], noise))
            used = used.scatter(2, lists[-1].unsqueeze(-1), True)
        return Drawn(torch.stack(lists, dim=-1), torch.stack(logits, dim=2))


class _Reader:
    """A decoder's step on candidates by index. A GRU's half of the gates that reads the item is made once a candidate."""

    def __init__(self, decoder: Decoder, z_BCD: Tensor) -> None:
        self._decoder = decoder
        self._inputs = decoder.cell.input(z_BCD) if isinstance(decoder, GruDecoder) else z_BCD

    def __call__(self, item_BG: Tensor, state: State) -> tuple[Tensor, State]:
        x = gather(self._inputs, item_BG).flatten(0, 1)
        if not isinstance(self._decoder, GruDecoder):
            return self._decoder.step(x, state)
        h = self._decoder.cell(x, *state)
        return h, (h,)


def draw(logits_BGC: Tensor, noise: torch.Generator | None) -> Tensor:
    """One item a row, item_BG: by the logits' softmax with noise, the best one without. Masked items carry `NEVER`."""
    logits = logits_BGC.detach()
    if noise is not None:  # the least of exponential times with rates e^logit (the Gumbel trick)
        times = torch.empty_like(logits).exponential_(generator=noise).clamp(min=1e-30)
        logits = logits - times.log()
    return logits.argmax(-1)


def step_logp(logits_BGLC: Tensor, lists_BGL: Tensor) -> Tensor:
    """log p of every chosen item: (B, G, L)."""
    return F.log_softmax(logits_BGLC, dim=-1).gather(-1, lists_BGL.unsqueeze(-1)).squeeze(-1)


def greedy_lists(policy: Policy, encoded: EncodedSet, length: int) -> np.ndarray:
    """The policy's best item at every step: (R, L)."""
    with torch.inference_mode():
        lists = [policy.sample(batch, 1, length, None).lists[:, 0].numpy() for batch in batches(encoded)]
    return cut(np.concatenate(lists), encoded)
