"""Multi-head self-attention, written out (Vaswani et al. 2017, eq. 1).

Shapes: B batch, N tokens, D width, H heads, d = D / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.cpu_kernels import AttentionInParts, Dropout, scaled, split_heads


class MultiHeadSelfAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v over all tokens, (B, N, D) -> (B, N, D).

    One linear layer gives q, k and v, without biases unless `qkv_bias`; dropout is applied to the
    probabilities. `fused` computes the same with PyTorch's kernel, which never stores the
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
        self.fused = fused
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.attn_drop = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)  # (B, N, 3 D)
        return self.proj(self._attend(qkv))  # (B, N, D)

    def _attend(self, qkv: Tensor) -> Tensor:
        """Attention of all heads, (B, N, 3 D) -> (B, N, D)."""
        if self.fused and self._kernel_is_slow(qkv):
            return AttentionInParts.apply(qkv, self.num_heads, self._dropout)  # cpu_kernels.py
        q, k, v = split_heads(qkv, 3, self.num_heads)  # each (B, H, N, d)
        attended = self._fused(q, k, v) if self.fused else self._plain(q, k, v)  # (B, H, N, d)
        return attended.transpose(1, 2).flatten(2)  # (B, N, D)

    def _plain(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # contiguous, or the matmul first copies k^T element by element: 5 x slower on a CPU
        q, k, v = (part.contiguous() for part in (q, k, v))
        scores = scaled(q) @ k.transpose(-2, -1)  # (B, H, N, N)
        probabilities = self.attn_drop(scores.softmax(dim=-1))  # (B, H, N, N)
        return probabilities @ v  # (B, H, N, d)

    def _fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=self._dropout)

    @property
    def _dropout(self) -> float:
        """Dropout rate in the current mode; 0 in eval."""
        return self.attn_drop.p if self.training else 0.0

    def _kernel_is_slow(self, qkv: Tensor) -> bool:
        """On a CPU, PyTorch's kernel is slow in bf16 and has no fast path for dropout."""
        slow = qkv.device.type == "cpu" and (self._dropout > 0 or qkv.dtype == torch.bfloat16)
        return slow and not torch.compiler.is_compiling()
