"""Mask schedules gamma(r) and token masks. Masks are True where a token or pixel is hidden.

Shapes: B batch, N tokens, h x w token grid, p pixels along a token's patch.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from config.errors import one_of
from config.schema import MaskingConfig


def linear(r: Tensor) -> Tensor:
    """1 - r."""
    return 1 - r


def cosine(r: Tensor) -> Tensor:
    """(1 + cos(pi r)) / 2, the report's cosine."""
    return (1 + torch.cos(math.pi * r)) / 2


def square(r: Tensor) -> Tensor:
    """1 - r^2."""
    return 1 - r.square()


def maskgit_cosine(r: Tensor) -> Tensor:
    """cos(pi r / 2), the cosine of MaskGIT section 3.2; exactly 0 at r = 1."""
    return torch.where(r == 1, 0.0, torch.cos(math.pi * r / 2))


MASK_SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": cosine,
    "linear": linear,
    "square": square,
    "maskgit_cosine": maskgit_cosine,
}


def gamma(mask_schedule: str, r: float | Tensor) -> Tensor:
    """Share of tokens that stays hidden at progress r in [0, 1]; gamma(0) = 1, gamma(1) = 0.

    Returns a tensor of r's shape, float64 for a plain number. Raises `UserError` for an unknown
    name. (MaskGIT section 3.2; spec section 4)
    """
    if mask_schedule not in MASK_SCHEDULES:
        raise one_of("mask schedule", mask_schedule, MASK_SCHEDULES)
    if not isinstance(r, Tensor):
        r = torch.tensor(r, dtype=torch.float64)
    return MASK_SCHEDULES[mask_schedule](r)


def token_mask_from_holes(holes: Tensor, grid: int) -> Tensor:
    """Hide a token when any pixel of its patch is a hole, (B, H, W) bool -> (B, N) bool."""
    patches = holes.unflatten(2, (grid, -1)).unflatten(1, (grid, -1))  # (B, h, p, w, p)
    return patches.any(4).any(2).flatten(1)


def draw_token_mask(
    batch_size: int, num_tokens: int, masking: MaskingConfig, generator: torch.Generator
) -> Tensor:
    """Hide each token with probability p, drawn as `masking` says, -> (B, N) bool on the CPU."""
    rows = batch_size if masking.ratio_per == "sample" else 1
    p = torch.rand(rows, 1, generator=generator)
    if masking.ratio == "schedule":
        p = gamma(masking.mask_schedule, p)
    return torch.rand(batch_size, num_tokens, generator=generator) < p
