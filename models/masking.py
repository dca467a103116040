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


def sqrt(r: Tensor) -> Tensor:
    """1 - sqrt(r)."""
    return 1 - r.sqrt()


def constant(r: Tensor) -> Tensor:
    """1 until the end: everything is decided at once, by the last step."""
    return torch.where(r == 1, 0.0, torch.ones_like(r))


MASK_SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    "cosine": cosine,
    "linear": linear,
    "square": square,
    "maskgit_cosine": maskgit_cosine,
    "sqrt": sqrt,
    "constant": constant,
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
    """Hide each token with probability p, drawn as `masking` says, -> (B, N) bool.

    All is drawn on the generator's device, without a look at the numbers.
    """
    p = draw_ratio(batch_size, masking, generator)
    device = generator.device
    return torch.rand(batch_size, num_tokens, generator=generator, device=device) < p


def draw_ratio(batch_size: int, masking: MaskingConfig, generator: torch.Generator) -> Tensor:
    """Shares p to hide, (B, 1), or (1, 1) where the batch has one in common."""
    rows = batch_size if masking.ratio_per == "sample" else 1
    p = torch.rand(rows, 1, generator=generator, device=generator.device)
    if masking.ratio == "schedule":
        p = gamma(masking.mask_schedule, p)
    return p
