"""Faster CPU kernels and batch-invariant results; no new formulas.

Attention in parts and dropout compute the same as models/attention.py and `nn.Dropout`. Padding
limits the shapes of matrix products, since PyTorch prepares and rounds each shape differently.

Shapes: B batch, N tokens, D width, H heads, d = D / H.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SCORES_AT_ONCE = 2**20  # attention scores that fit into a processor's cache
IN_ONE_DRAW = 8  # random numbers of 8 bits
LEVELS = 2**8
HEAD_SIZES = 8  # distinct row counts that a batch may give the head
IMAGES_AT_ONCE = {"cpu": 1, "cpu autocast": 4, "cuda": 64}  # in a forward pass
LARGE = 512  # width from which matrix products, not the overhead of each call, take the time
aten = torch.ops.aten  # the backward kernels that autograd would call


class AttentionInParts(torch.autograd.Function):
    """Attention a few images at a time, so that scores stay in cache, (B, N, 3 D) -> (B, N, D).

    Saves only the probabilities for backward; a minus sign marks the dropped ones.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, num_heads: int, dropout: float) -> Tensor:
        batch, tokens, width = qkv.shape
        q, k, v = split_heads(qkv, 3, num_heads)  # each (B, H, N, d)
        out = qkv.new_empty(batch, tokens, width // 3)
        attended = split_heads(out, 1, num_heads)[0]
        trains = any(ctx.needs_input_grad)
        signed = qkv.new_empty(batch if trains else 0, num_heads, tokens, tokens)  # probabilities
        for part in _parts(batch, num_heads, tokens):
            scores = scaled(q[part]) @ k[part].contiguous().transpose(-2, -1)  # (b, H, N, N)
            kept = torch.softmax(scores, -1, out=signed[part] if trains else None)
            if dropout:
                kept = kept.copysign_(draw_margins(kept.shape, dropout)).relu()
            attended[part] = kept @ v[part]
        ctx.save_for_backward(qkv, signed)
        ctx.num_heads, ctx.dropout = num_heads, dropout
        return out.mul_(dropout_scale(dropout)) if dropout else out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, None]:
        qkv, signed = ctx.saved_tensors
        d_qkv = torch.empty_like(qkv)
        q, k, v = split_heads(qkv, 3, ctx.num_heads)
        dq, dk, dv = split_heads(d_qkv, 3, ctx.num_heads)
        d_attended = split_heads(d_out * dropout_scale(ctx.dropout), 1, ctx.num_heads)[0]
        for part in _parts(*signed.shape[:3]):
            toward = d_attended[part].contiguous()  # (b, H, N, d)
            probabilities = kept = signed[part]  # (b, H, N, N)
            d_probabilities = toward @ v[part].contiguous().transpose(-2, -1)
            if ctx.dropout:
                probabilities, kept = kept.abs(), kept.relu()
                d_probabilities = aten.threshold_backward(d_probabilities, kept, 0)
            d_scores = aten._softmax_backward_data(d_probabilities, probabilities, -1, qkv.dtype)
            dq[part] = d_scores @ scaled(k[part])
            # the narrow operand first, so that no (N, N) matrix is transposed
            dv[part] = (toward.transpose(-2, -1) @ kept).transpose(-2, -1)
            dk[part] = (scaled(q[part]).transpose(-2, -1) @ d_scores).transpose(-2, -1)
        return d_qkv, None, None


def _parts(batch: int, num_heads: int, tokens: int) -> list[slice]:
    """Slices of a batch whose scores fill `SCORES_AT_ONCE`, at least one image each."""
    images = max(1, SCORES_AT_ONCE // (num_heads * tokens * tokens))
    return [slice(start, start + images) for start in range(0, batch, images)]


def split_heads(x: Tensor, parts: int, num_heads: int) -> Tensor:
    """(B, N, parts * D) -> (parts, B, H, N, d), a view."""
    return x.unflatten(-1, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4)


def scaled(x: Tensor) -> Tensor:
    """x / sqrt(d), (..., d)."""
    return x * x.shape[-1] ** -0.5


class Dropout(nn.Dropout):
    """In training, zero each element with probability p and scale the others by 1 / (1 - p).

    On a CPU, PyTorch draws random numbers one by one. Here a faster generator, seeded from
    PyTorch's or that of `dropout_from`, draws eight at once.
    """

    def forward(self, x: Tensor) -> Tensor:
        native = x.device.type != "cpu" or torch.compiler.is_compiling()
        if not self.training or self.p == 0 or native:
            return super().forward(x)
        kept = torch.ge(draw_margins(x.shape, self.p), 0, out=torch.empty_like(x))
        return x * kept.mul_(dropout_scale(self.p))


_of_thread = threading.local()


@contextmanager
def dropout_from(generator: torch.Generator) -> Iterator[None]:
    """Seed this thread's dropout from a generator of its own instead of PyTorch's.

    Threads that share a batch would draw from PyTorch's in the order in which they run.
    """
    _of_thread.generator = generator
    try:
        yield
    finally:
        del _of_thread.generator


def dropout_scale(p: float) -> float:
    """The factor that preserves the mean, 1 / (1 - p); 1 where everything is dropped."""
    return 1 / (1 - p) if p < 1 else 1.0


def draw_margins(shape: torch.Size, p: float) -> Tensor:
    """Random int8 numbers that are negative with probability p in [0, 1].

    Each row, along the last dimension, rounds p up or down to a multiple of 1 / 256 at random,
    such that the mean is p.
    """
    if p > 0.5:  # where the difference below could overflow
        return draw_margins(shape, 1 - p).bitwise_not_()
    own = getattr(_of_thread, "generator", None)
    seed = int(torch.empty((), dtype=torch.int64).random_(generator=own))
    draws = np.random.SFC64(seed).random_raw(-(-shape.numel() // IN_ONE_DRAW))
    bits = torch.from_numpy(draws.view(np.int8))[: shape.numel()].view(shape)
    lost = (
        (p * LEVELS + torch.rand(*shape[:-1], 1, generator=own))
        .floor_()
        .sub_(LEVELS // 2)
        .to(torch.int8)
    )
    return torch.minimum(bits, lost).sub_(lost)


def padded_hidden_positions(token_mask: Tensor) -> Tensor:
    """Hidden positions, padded so that few distinct row counts occur, (B, N) -> (P,), P >= M.

    On a CPU, PyTorch prepares and caches matrix products for each row count: without padding that
    costs hundreds of MB and an eighth of a training step.
    """
    hidden, others = (mask.flatten().nonzero()[:, 0] for mask in (token_mask, ~token_mask))
    step = math.ceil(token_mask.numel() / HEAD_SIZES)
    return torch.cat([hidden, others[: -len(hidden) % step]])


def padded_groups(rows: Tensor, width: int = LARGE) -> list[Tensor]:
    """Split a batch into parts of `IMAGES_AT_ONCE` images, the last one zero-padded.

    width: of the network; on a CPU, only narrow ones under autocast gain from several images.
    Matrix products round differently for different shapes. With one shape for every batch, no
    token depends on how many other images are repaired in the same batch.
    """
    kind = rows.device.type
    if kind == "cpu" and width < LARGE and torch.is_autocast_enabled(kind):
        kind = "cpu autocast"
    size = IMAGES_AT_ONCE.get(kind, 1)
    missing = -len(rows) % size
    if missing:
        rows = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
    return list(rows.split(size))
