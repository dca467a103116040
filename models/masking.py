"""Masked modelling: schedules gamma(r), masks (True = hidden) and the training loss.

Shapes: B batch, N tokens, h x w token grid, p pixels along a token's patch, K codebook size,
M hidden tokens of the whole batch, F features of a position.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from config.errors import one_of
from config.schema import MaskingConfig
from config.section import MaskSchedule
from models.transformer import BidirectionalTransformer


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
    """1 until the end: the last step reveals everything at once."""
    return torch.where(r == 1, 0.0, torch.ones_like(r))


# each name of the config with the function above that is called so
MASK_SCHEDULES: dict[str, Callable[[Tensor], Tensor]] = {
    name: globals()[name] for name in get_args(MaskSchedule)
}


def gamma(mask_schedule: str, r: float | Tensor) -> Tensor:
    """Share of tokens that stays hidden at progress r in [0, 1]; gamma(0) = 1, gamma(1) = 0.

    Returns a tensor of r's shape, float64 for a plain number. Raises `UserError` for an unknown
    name. (MaskGIT section 3.2)
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
    """Hide each token with its image's probability p (`draw_ratio`), -> (B, N) bool.

    Everything is drawn on the generator's device, without a host sync.
    """
    p = draw_ratio(batch_size, masking, generator)
    device = generator.device
    return torch.rand(batch_size, num_tokens, generator=generator, device=device) < p


def draw_ratio(batch_size: int, masking: MaskingConfig, generator: torch.Generator) -> Tensor:
    """Mask ratios p = r or gamma(r), r ~ U(0, 1): (B, 1), or (1, 1) for one of the whole batch."""
    rows = batch_size if masking.ratio_per == "sample" else 1
    r = torch.rand(rows, 1, generator=generator, device=generator.device)
    return gamma(masking.mask_schedule, r) if masking.ratio == "schedule" else r


def token_loss(
    transformer: BidirectionalTransformer,
    token_ids: Tensor,
    token_mask: Tensor,
    masking: MaskingConfig,
    seen: Tensor | None = None,
    known: Tensor | None = None,
) -> Tensor:
    """Masked visual token modelling: mean cross-entropy of the clean tokens in nats, scalar.

    token_ids: (B, N). token_mask: (B, N) bool. The loss covers all tokens (the report's code) or
    the hidden ones (MaskGIT eq. 1), as `masking.loss_on` says; it is 0 where there are none.
    seen: (B, N) input tokens at known positions, by default the targets `token_ids`.
    known: (B, N, F) of `known_features`, for a transformer with conditioning.
    """
    seen = token_ids if seen is None else seen
    masked_ids = seen.masked_fill(token_mask, transformer.mask_token_id)
    smoothing = masking.label_smoothing
    if masking.loss_on == "hidden" and _hidden_alone_is_cheaper(token_ids.device):
        logits = transformer(masked_ids, token_mask, known)  # (M, K + 1)
        each = _cross_entropy(logits, token_ids[token_mask], smoothing)
        return each.sum() / max(1, len(each))
    each = _cross_entropy(transformer(masked_ids, known=known), token_ids, smoothing)  # (B, N)
    if masking.loss_on == "all":
        return each.mean()
    return (each * token_mask).sum() / token_mask.sum().clamp(min=1)


def _hidden_alone_is_cheaper(device: torch.device) -> bool:
    """Whether to compute logits at hidden positions only; on a GPU counting them costs a sync."""
    return device.type == "cpu"


def _cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of each token in fp32, (..., K + 1) and (...) -> (...)."""
    each = F.cross_entropy(
        logits.flatten(0, -2).float(),
        targets.flatten(),
        reduction="none",
        label_smoothing=smoothing,
    )
    return each.view(targets.shape)
