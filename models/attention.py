"""Multi-head self-attention, written out (Vaswani et al. 2017, eq. 1; spec section 3).

Shapes: B batch, N tokens, D width, H heads, d = D / H.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.dropout import Dropout, draw_margins, growth

SCORES_AT_ONCE = 2**20  # of attention in parts; a processor's cache holds so many
aten = torch.ops.aten  # derivatives that autograd would call


class MultiHeadSelfAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v over all tokens, (B, N, D) -> (B, N, D).

    One product gives q, k and v, without biases unless `qkv_bias`; dropout falls on the
    probabilities. `fused` hands the same formula to PyTorch's kernel, which does not keep the
    (B, H, N, N) probabilities; on a CPU that kernel is slow in bf16 and knows no dropout, so there
    `fused` means `AttentionInParts`. With `bias_grid`, the side of the token grid, each head adds a
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
        return self.proj(self._attend(self.qkv(x)))

    def _attend(self, qkv: Tensor) -> Tensor:
        """Attention of all heads, (B, N, 3 D) -> (B, N, D)."""
        bias = None if self.relative_bias is None else self._bias()  # (H, N, N)
        slow = qkv.device.type == "cpu" and (self._dropout > 0 or qkv.dtype == torch.bfloat16)
        if self.fused and slow and not torch.compiler.is_compiling():
            return AttentionInParts.apply(qkv, bias, self.num_heads, self._dropout)
        attend = self._fused if self.fused else self._plain
        attended = attend(*split_heads(qkv, 3, self.num_heads), bias)  # (B, H, N, d)
        return attended.transpose(1, 2).flatten(2)

    def _plain(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        # contiguous, or the product would first copy k^T number by number: 5 x its time on a CPU
        q, k, v = (part.contiguous() for part in (q, k, v))
        scores = _scaled(q) @ k.transpose(-2, -1)  # (B, H, N, N)
        if bias is not None:
            scores = scores + bias
        return self.attn_drop(scores.softmax(dim=-1)) @ v

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        bias = None if bias is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, bias, dropout_p=self._dropout)

    @property
    def _dropout(self) -> float:
        """Share of the probabilities that is lost at present."""
        return self.attn_drop.p if self.training else 0.0

    def _bias(self) -> Tensor:
        """What is added to the scores, (H, N, N)."""
        assert self.relative_bias is not None
        return self.relative_bias(self.offsets).permute(2, 0, 1)


class AttentionInParts(torch.autograd.Function):
    """The same for a CPU, (B, N, 3 D) -> (B, N, D): a few images at a time.

    So their scores stay in cache. Kept for the way back are the probabilities alone, those that
    were lost with a minus sign.
    """

    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, bias: Tensor | None, num_heads: int, dropout: float
    ) -> Tensor:
        batch, tokens, width = qkv.shape
        q, k, v = split_heads(qkv, 3, num_heads)  # each (B, H, N, d)
        out = qkv.new_empty(batch, tokens, width // 3)
        attended = split_heads(out, 1, num_heads)[0]
        trains = any(ctx.needs_input_grad)
        signed = qkv.new_empty(batch if trains else 0, num_heads, tokens, tokens)  # probabilities
        for part in _parts(batch, num_heads, tokens):
            scores = _scaled(q[part]) @ k[part].contiguous().transpose(-2, -1)  # (b, H, N, N)
            if bias is not None:
                scores += bias
            kept = torch.softmax(scores, -1, out=signed[part] if trains else None)
            if dropout:
                kept = kept.copysign_(draw_margins(kept.shape, dropout)).relu()
            attended[part] = kept @ v[part]
        ctx.save_for_backward(qkv, signed)
        ctx.num_heads, ctx.dropout = num_heads, dropout
        ctx.bias_dtype = None if bias is None else bias.dtype
        return out.mul_(growth(dropout)) if dropout else out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        qkv, signed = ctx.saved_tensors
        d_qkv, d_bias = torch.empty_like(qkv), None
        if ctx.needs_input_grad[1]:
            d_bias = qkv.new_zeros(signed.shape[1:], dtype=ctx.bias_dtype)
        q, k, v = split_heads(qkv, 3, ctx.num_heads)
        dq, dk, dv = split_heads(d_qkv, 3, ctx.num_heads)
        d_attended = split_heads(d_out * growth(ctx.dropout), 1, ctx.num_heads)[0]
        for part in _parts(*signed.shape[:3]):
            toward = d_attended[part].contiguous()  # (b, H, N, d)
            probabilities = kept = signed[part]  # (b, H, N, N)
            d_probabilities = toward @ v[part].contiguous().transpose(-2, -1)
            if ctx.dropout:
                probabilities, kept = kept.abs(), kept.relu()
                d_probabilities = aten.threshold_backward(d_probabilities, kept, 0)
            d_scores = aten._softmax_backward_data(d_probabilities, probabilities, -1, qkv.dtype)
            if d_bias is not None:
                d_bias += d_scores.sum(0)
            dq[part] = d_scores @ _scaled(k[part])
            # the narrow side first, so that no (N, N) matrix is turned around
            dv[part] = (toward.transpose(-2, -1) @ kept).transpose(-2, -1)
            dk[part] = (_scaled(q[part]).transpose(-2, -1) @ d_scores).transpose(-2, -1)
        return d_qkv, d_bias, None, None


def _parts(batch: int, num_heads: int, tokens: int) -> list[slice]:
    """Images whose scores fill `SCORES_AT_ONCE`, at least one, again and again."""
    images = max(1, SCORES_AT_ONCE // (num_heads * tokens * tokens))
    return [slice(start, start + images) for start in range(0, batch, images)]


def split_heads(x: Tensor, parts: int, num_heads: int) -> Tensor:
    """(B, N, parts * D) -> (parts, B, H, N, d), a view."""
    return x.unflatten(-1, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4)


def _scaled(x: Tensor) -> Tensor:
    """x / sqrt(d), (..., d)."""
    return x * x.shape[-1] ** -0.5


def relative_offsets(grid: int) -> Tensor:
    """Number of the offset from each query to each key of a square grid, (N, N) int64.

    Offsets count row by row from (1 - grid, 1 - grid) to (grid - 1, grid - 1).
    """
    places = torch.cartesian_prod(torch.arange(grid), torch.arange(grid))  # (N, 2)
    down, across = (places[None] - places[:, None] + grid - 1).unbind(-1)  # each (N, N)
    return down * (2 * grid - 1) + across
