"""Multi-head self-attention, written out (Vaswani et al. 2017, eq. 1; spec section 3).

Shapes: B batch, N tokens, D width, H heads, d = D / H.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class MultiHeadSelfAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v over all tokens, (B, N, D) -> (B, N, D).

    One product gives q, k and v, without biases unless `qkv_bias`; dropout falls on the
    probabilities. `fused` hands the same formula to PyTorch's kernel, which does not keep the
    (B, H, N, N) probabilities.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        dropout: float,
        fused: bool = False,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        assert dim % num_heads == 0, f"dim {dim} is not divisible by num_heads {num_heads}"
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.fused = fused
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.attn_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, H, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, N, d)
        attended = self._fused(q, k, v) if self.fused else self._plain(q, k, v)  # (B, H, N, d)
        return self.proj(attended.transpose(1, 2).flatten(2))  # (B, N, D)

    def _plain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q * self.scale) @ k.transpose(-2, -1)  # (B, H, N, N)
        return self.attn_drop(scores.softmax(dim=-1)) @ v

    def _fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dropout = self.attn_drop.p if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.scale)
