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

BLOCKS = 64  # rectangles that an image may draw; together they cover nearly all of it


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
    """Hide a share p of the tokens, drawn as `masking` says, -> (B, N) bool.

    Random tokens are hidden with probability p each, blocks are cut at ceil(p N) tokens. All is
    drawn on the generator's device, without a look at the numbers.
    """
    p = draw_ratio(batch_size, masking, generator)
    if masking.shape == "blocks":
        return draw_blocks(p.expand(batch_size, 1), num_tokens, generator)
    device = generator.device
    return torch.rand(batch_size, num_tokens, generator=generator, device=device) < p


def draw_ratio(batch_size: int, masking: MaskingConfig, generator: torch.Generator) -> Tensor:
    """Shares p to hide, (B, 1), or (1, 1) where the batch has one in common."""
    rows = batch_size if masking.ratio_per == "sample" else 1
    p = torch.rand(rows, 1, generator=generator, device=generator.device)
    if masking.ratio == "schedule":
        p = gamma(masking.mask_schedule, p)
    return p.clamp(min=masking.min_ratio)


def draw_blocks(p: Tensor, num_tokens: int, generator: torch.Generator) -> Tensor:
    """Hide rectangles, one after the other, until ceil(p N) tokens are hidden, (B, 1) -> (B, N).

    Sides are uniform from 1 to half of the grid's, and places such that a rectangle may reach over
    the border, which hides every token alike. The last rectangle is filled from its top; what no
    rectangle covers is hidden last, in random order. (BEiT, algorithm 1, with other sides)
    """
    batch, side, device = len(p), math.isqrt(num_tokens), generator.device
    edges = torch.rand(4, batch, BLOCKS, 1, generator=generator, device=device)
    height, width = 1 + (edges[:2] * max(1, side // 2)).floor()  # each (B, BLOCKS, 1)
    top = (edges[2] * (side + height - 1)).floor() - (height - 1)
    left = (edges[3] * (side + width - 1)).floor() - (width - 1)
    places = torch.arange(num_tokens, device=device)
    down, across = places // side - top, places % side - left  # (B, BLOCKS, N)
    covered = (down >= 0) & (down < height) & (across >= 0) & (across < width)
    order = torch.arange(BLOCKS, device=device, dtype=torch.int16)[:, None]
    first = torch.where(covered, order, BLOCKS).amin(1)  # (B, N), BLOCKS where none covers
    noise = torch.rand(batch, num_tokens, generator=generator, device=device)
    within = torch.where(first == BLOCKS, noise, places / num_tokens)  # in [0, 1)
    rank = (first + within).argsort(1).argsort(1)  # (B, N): who is hidden first
    return rank < (p * num_tokens).ceil()
