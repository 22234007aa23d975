"""A pre-norm layer of self-attention and feed-forward, in two halves between which keys and values can be cached."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

HEADS = 4


class AttentionBlock(nn.Module):
    """Under the set encoder and the causal decoder; who attends to whom is the caller's."""

    def __init__(self, width: int, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.ff1, self.ff2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def project(self, x_BXD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (already scaled), keys and values by head: each (B, H, X, D/H)."""
        B, X, D = x_BXD.shape
        q, k, v = self.qkv(self.norm1(x_BXD)).view(B, X, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        return q / (D // self.heads) ** 0.5, k, v

    def finish(self, x_BXD: Tensor, attended: Tensor) -> Tensor:
        """x_BXD with what was attended, (B, H, X, D/H), and the feed-forward part added."""
        x = x_BXD + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.ff2(F.gelu(self.ff1(self.norm2(x))))
