"""A prior on the logits, interpolated from known neighbours instead of learned from scratch.

The codes of known tokens are averaged with weights that fall with distance; every code is then
scored by a Gaussian around that mean. The transformer shifts the mean and scales the precision,
so training starts from a smooth fill rather than from single-token frequencies.

Shapes: B batch, N tokens, D width, C code channels, K codebook size, M hidden tokens of the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

START_REACH = 0.7  # tokens over which a neighbour's weight falls to 1/e
START_VARIANCE = 0.2  # of the Gaussian, in mean squared lengths of the centred codes
SAME = 1e-4  # tolerance for codes rounded to 16 bits, relative to the norm of all codes together
EMPTY = 1e-4  # total weight at which neighbours count as much as the mean of all codes


class InterpolationPrior(nn.Module):
    """Distance-weighted interpolation of known codes, and logits from it."""

    codes: Tensor  # (K + 1, C), centred, mean squared length 1; the mask id has the zero code

    def __init__(self, num_tokens: int, codebook_size: int, code_dim: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(codebook_size + 1, code_dim))
        self.register_buffer("distance", _grid_distance(num_tokens), persistent=False)
        self.log_reach = nn.Parameter(torch.tensor(math.log(START_REACH)))
        self.log_precision = nn.Parameter(torch.tensor(-math.log(2 * START_VARIANCE)))
        self.to_width = nn.Linear(code_dim + 1, dim)
        self.correction = nn.Linear(dim, code_dim + 1)

    @torch.no_grad()
    def set_codes(self, codes: Tensor, frequency: Tensor) -> None:
        """Copy the tokenizer's codes (K, C), centred and scaled with their frequency (K,)."""
        centred = codes - frequency @ codes
        length = (frequency @ centred.square().sum(1)).sqrt()
        self.codes[:-1] = centred / length

    def has_codes(self, codes: Tensor) -> bool:
        """Whether these codes (K, C) equal its own up to shift and scale."""
        own, others = (c - c.mean(0) for c in (self.codes[:-1], codes))
        return torch.allclose(own / own.norm(), others / others.norm(), atol=SAME)

    def neighbours(self, token_ids: Tensor, mask_token_id: int) -> Tensor:
        """Mean code around each position and its log total weight: (B, N) -> (B, N, C + 1)."""
        weights = (-self.distance * torch.exp(-self.log_reach)).exp()  # (N, N)
        known = (token_ids != mask_token_id).to(weights.dtype)[..., None]  # (B, N, 1)
        total = weights @ known
        mean = weights @ (known * self.codes[token_ids]) / (total + EMPTY)
        return torch.cat([mean, (total + EMPTY).log()], dim=-1)

    def logits(self, features: Tensor, neighbours: Tensor) -> Tensor:
        """Log densities up to a constant: (..., D), (..., C + 1) -> (..., K + 1), in fp32."""
        correction = self.correction(features).float()
        with torch.autocast(features.device.type, enabled=False):
            mean = neighbours[..., :-1].float() + correction[..., :-1]
            precision = (self.log_precision + correction[..., -1:]).exp()
            distance = self.codes.square().sum(1) / 2 - mean @ self.codes.T
            return -2 * precision * distance


def _grid_distance(num_tokens: int) -> Tensor:
    """Euclidean distance between the positions of a square token grid, (N, N)."""
    side = math.isqrt(num_tokens)
    axis = torch.arange(side, device="cpu")  # for `meta` PyTorch would import its compiler
    places = torch.cartesian_prod(axis, axis).float()
    return torch.cdist(places, places)
