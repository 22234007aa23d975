"""What the generator remembers of the list so far, in two forms behind one interface: `gru` and `attention` (METHOD §5).

start(request) is the state before any item, step reads one input and gives h, from which the pointer asks for the next
item; sequence does the same for known lists at once (teacher forcing). The first input is a projection of the user
state, then the item chosen last; the generator gives both.
"""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from degre_prod.models.attention import AttentionBlock

State = tuple[Tensor, ...]  # each tensor (B, …)
DecoderForm = Literal["gru", "attention"]


class Decoder(Protocol):
    """What both forms offer."""

    def start(self, request_BR: Tensor) -> State:
        """The state before the first input; R = 3 D (user, context, mean candidate)."""
        ...

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """h_BD after reading x_BD, and the state for the next step."""
        ...

    def sequence(self, x_BLD: Tensor, state: State) -> Tensor:
        """h_BLD of L inputs from the state that `start` gave."""
        ...


class GatedCell(nn.Module):
    """A GRU cell (Cho et al. 2014); the gates lie in the order reset, update, new."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input = nn.Linear(width, 3 * width)
        self.hidden = nn.Linear(width, 3 * width)
        self.width = width

    def forward(self, read_BG: Tensor, h_BD: Tensor) -> Tensor:
        """h_BD after reading x_BD, given as read_BG = `input`(x_BD) with G = 3 D: callers make that of many x at once."""
        D = self.width
        (gates_x, new_x), (gates_h, new_h) = (half.split((2 * D, D), dim=-1) for half in (read_BG, self.hidden(h_BD)))
        reset, update = torch.sigmoid(gates_x + gates_h).chunk(2, dim=-1)
        new = torch.tanh(torch.addcmul(new_x, reset, new_h))
        return torch.lerp(new, h_BD, update)


class GruDecoder(nn.Module):
    """State: h alone, at first a projection of the request."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.initial = nn.Linear(3 * width, width)
        self.cell = GatedCell(width)

    def start(self, request_BR: Tensor) -> State:
        return (torch.tanh(self.initial(request_BR)),)

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        h = self.cell(self.cell.input(x_BD), state[0])
        return h, (h,)

    def sequence(self, x_BLD: Tensor, state: State) -> Tensor:
        [h], hidden = state, []
        for read_BG in self.cell.input(x_BLD).unbind(1):
            h = self.cell(read_BG, h)
            hidden.append(h)
        return torch.stack(hidden, dim=1)


class AttentionDecoder(nn.Module):
    """One causal pre-norm layer over the inputs so far, each with its slot; state: their keys and values, (B, H, t, D/H)."""

    def __init__(self, width: int, slots: int) -> None:
        super().__init__()
        self.slot = nn.Embedding(slots, width)
        nn.init.normal_(self.slot.weight, std=0.1)
        self.block = AttentionBlock(width)
        self.norm = nn.LayerNorm(width)

    def start(self, request_BR: Tensor) -> State:
        B, heads = len(request_BR), self.block.heads
        empty = request_BR.new_zeros(B, heads, 0, self.slot.embedding_dim // heads)
        return empty, empty

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        keys, values = state
        x = (x_BD + self.slot.weight[keys.shape[2]]).unsqueeze(1)
        q, k, v = self.block.project(x)
        keys, values = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        attended = torch.softmax(q @ keys.transpose(-1, -2), dim=-1) @ values
        return self.norm(self.block.finish(x, attended)).squeeze(1), (keys, values)

    def sequence(self, x_BLD: Tensor, state: State) -> Tensor:  # noqa: ARG002 - the state that `start` gave is empty
        L = x_BLD.shape[1]
        x = x_BLD + self.slot.weight[:L]
        q, k, v = self.block.project(x)
        later = torch.ones(L, L, dtype=torch.bool, device=x.device).triu(1)
        scores = (q @ k.transpose(-1, -2)).masked_fill(later, float("-inf"))
        return self.norm(self.block.finish(x, torch.softmax(scores, dim=-1) @ v))


def make_decoder(form: DecoderForm, width: int, slots: int) -> Decoder:
    """A decoder of D = `width` for lists of at most `slots` items."""
    return GruDecoder(width) if form == "gru" else AttentionDecoder(width, slots)


def repeat(state: State, times: int) -> State:
    """The state of every request `times` times, one after another."""
    return tuple(s.repeat_interleave(times, 0) for s in state)
