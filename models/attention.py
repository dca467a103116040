"""Multi-head self-attention, written out (Vaswani et al. 2017, eq. 1; spec section 3).

Shapes: B batch, N tokens, D width, H heads, d = D / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.dropout import Dropout


class MultiHeadSelfAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v over all tokens, (B, N, D) -> (B, N, D).

    One product gives q, k and v, without biases unless `qkv_bias`; dropout falls on the
    probabilities. `fused` hands the same formula to PyTorch's kernel, which does not keep the
    (B, H, N, N) probabilities. With `bias_grid`, the side of the token grid, each head adds a
    learned number to the scores that depends on how far the key lies below and beside the query
    (Liu et al. 2021, eq. 4).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        dropout: float,
        fused: bool = False,
        qkv_bias: bool = False,
        bias_grid: int | None = None,
    ) -> None:
        super().__init__()
        assert dim % num_heads == 0, f"dim {dim} is not divisible by num_heads {num_heads}"
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.fused = fused
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.attn_drop = Dropout(dropout)
        self.relative_bias: nn.Embedding | None = None
        if bias_grid is not None:
            offsets = relative_offsets(bias_grid)
            self.relative_bias = nn.Embedding((2 * bias_grid - 1) ** 2, num_heads)
            self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, H, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, N, d)
        # PyTorch's CPU kernel knows no dropout: its stand-in takes twice the time and memory
        drops_on_cpu = x.device.type == "cpu" and self.training and self.attn_drop.p > 0
        fused = self.fused and not drops_on_cpu
        attended = self._fused(q, k, v) if fused else self._plain(q, k, v)  # (B, H, N, d)
        return self.proj(attended.transpose(1, 2).flatten(2))  # (B, N, D)

    def _plain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # contiguous, or the product would first copy k^T number by number: 5 x its time on a CPU
        q, k, v = (part.contiguous() for part in (q, k, v))
        scores = (q * self.scale) @ k.transpose(-2, -1)  # (B, H, N, N)
        if self.relative_bias is not None:
            scores = scores + self._bias()
        return self.attn_drop(scores.softmax(dim=-1)) @ v

    def _fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dropout = self.attn_drop.p if self.training else 0.0
        bias = None if self.relative_bias is None else self._bias().to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, bias, dropout_p=dropout, scale=self.scale)

    def _bias(self) -> Tensor:
        """What is added to the scores, (H, N, N)."""
        assert self.relative_bias is not None
        return self.relative_bias(self.offsets).permute(2, 0, 1)


def relative_offsets(grid: int) -> Tensor:
    """Number of the offset from each query to each key of a square grid, (N, N) int64.

    Offsets count row by row from (1 - grid, 1 - grid) to (grid - 1, grid - 1).
    """
    places = torch.cartesian_prod(torch.arange(grid), torch.arange(grid))  # (N, 2)
    down, across = (places[None] - places[:, None] + grid - 1).unbind(-1)  # each (N, N)
    return down * (2 * grid - 1) + across
