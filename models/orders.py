"""Orders in which tokens are revealed.

An order takes the confidence that every token had when it was chosen and returns a ranking (B, N)
and the candidates (B, N) that may stay hidden; the lowest ranks do, as many as the rule says. A new
order is one function here and its name in `OrderName` (config/decoding.py).

Shapes: B batch, N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import get_args

import torch
from torch import Tensor

from config.decoding import OrderName
from models.rules import Step

# confidence (B, N) float64, noise temperature, hidden (B, N) -> ranking (B, N), candidates (B, N)
Order = Callable[[Tensor, float, Tensor, Step], tuple[Tensor, Tensor]]


def confidence(
    confidence: Tensor, temperature: float, hidden: Tensor, step: Step
) -> tuple[Tensor, Tensor]:
    """The most confident first, after Gumbel noise (MaskGIT section 3.2)."""
    return confidence + temperature * step.confidence_noise(), hidden


def random(
    confidence: Tensor, temperature: float, hidden: Tensor, step: Step
) -> tuple[Tensor, Tensor]:
    """In a random order for each image, independent of the model."""
    return step.order_noise(), hidden


def halton(
    confidence: Tensor, temperature: float, hidden: Tensor, step: Step
) -> tuple[Tensor, Tensor]:
    """Spread over the hole by a low-discrepancy sequence (Besnier et al. 2025)."""
    side = math.isqrt(hidden.shape[1])
    assert side**2 == hidden.shape[1], f"{hidden.shape[1]} tokens are no square grid"
    rank = torch.empty(side**2, dtype=torch.float64)
    rank[list(halton_places(side))] = -torch.arange(side**2, dtype=torch.float64)
    return rank.to(hidden.device).expand(hidden.shape), hidden


def revise(
    confidence: Tensor, temperature: float, hidden: Tensor, step: Step
) -> tuple[Tensor, Tensor]:
    """The most confident first, earlier choices included (Ghazvininejad et al. 2019).

    Ranks all tokens hidden at the start, each by the confidence it was last chosen with plus this
    step's noise. Tokens that fall below newer ones are hidden and predicted again.
    """
    return confidence + temperature * step.confidence_noise(), step.token_mask


# each name of the config with the function above that is called so
ORDERS: dict[str, Order] = {name: globals()[name] for name in get_args(OrderName)}


def still_hidden(ranking: Tensor, candidates: Tensor, count: Tensor) -> Tensor:
    """The ``count`` lowest candidates of each image, ties to the first, -> (B, N) bool.

    ranking: (B, N). candidates: (B, N) bool; nothing else is ever hidden. count: (B,).
    """
    order = ranking.masked_fill(~candidates, torch.inf).argsort(dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return (rank < count[:, None]) & candidates


@cache
def halton_places(side: int) -> tuple[int, ...]:
    """Positions of a side x side grid in the order the Halton sequence first visits them.

    Point i = 1, 2, ... lies in the row of its radical inverse to base 3 and the column of that to
    base 2 (Halton 1960), in integers, so that no position depends on rounding.
    """
    digits_2 = (2 * side - 1).bit_length()  # every cell of half a token's width is visited once
    digits_3 = next(n for n in range(side + 1) if 3**n >= 2 * side)
    points = 2**digits_2 * 3**digits_3
    visited = (
        _radical_inverse(i, 3, side, points) * side + _radical_inverse(i, 2, side, points)
        for i in range(1, points + 1)
    )
    return tuple(dict.fromkeys(visited))


def _radical_inverse(number: int, base: int, side: int, limit: int) -> int:
    """floor(side * v), v the radical inverse of the number, for numbers up to limit."""
    mirrored, scale = 0, 1
    while scale <= limit:
        number, digit = divmod(number, base)
        mirrored, scale = mirrored * base + digit, scale * base
    return mirrored * side // scale
