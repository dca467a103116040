"""What the networks see besides tokens: known pixels, and what known neighbours suggest.

Masking would discard the known pixels of partly hidden tokens: `known_features` shows them to the
transformer, `KnownPixels` to the decoder.

Shapes: B batch, N tokens on a grid h x w, p pixels along a token's patch, C channels of latents and
codes, F = 4 p^2 + C features, D width or decoder channels, K codebook size.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.schema import TransformerConfig

START_REACH = 0.7  # tokens over which a neighbour's weight falls to 1/e
START_VARIANCE = 0.2  # of the Gaussian, in mean squared lengths of the centred codes
SAME = 1e-4  # tolerance for codes rounded to 16 bits, relative to the norm of all codes together
EMPTY = 1e-4  # total weight at which neighbours count as much as the mean of all codes


def known_width(config: TransformerConfig) -> int:
    """Number of features F per position: 3 p^2 pixel values, p^2 hole bits, C latents."""
    return 4 * config.patch_size**2 + config.prior_dim


def known_pixels(images: Tensor, holes: Tensor) -> Tensor:
    """Normalised, filled images (B, 3, H, W) and their holes (B, H, W) bool -> (B, 4, H, W)."""
    return torch.cat([images.float(), holes[:, None].float()], dim=1)


def known_features(
    images: Tensor, holes: Tensor, latents: Tensor, codes: Tensor, config: TransformerConfig
) -> Tensor:
    """The filled patch, its hole bits and its latents at every position, -> (B, N, F) float32.

    images: (B, 3, H, W) normalised and filled. holes: (B, H, W) bool. latents: (B, h, w, C) before
    quantisation. codes: (K, C); their mean and std normalise the latents to about unit variance.
    """
    patches = F.pixel_unshuffle(known_pixels(images, holes), config.patch_size)  # (B, 4 p^2, h, w)
    parts = [patches.flatten(2).transpose(1, 2)]
    if config.prior_dim:
        parts.append(((latents - codes.mean(0)) / codes.std()).flatten(1, 2))
    return torch.cat(parts, dim=-1)


class KnownPixels(nn.Module):
    """Injects the known pixels into a decoder at one of its scales; zero-initialised.

    (B, 4, H, W) of `known_pixels` -> (B, D, H / factor, W / factor), added to its features.
    """

    def __init__(self, factor: int, width: int) -> None:
        super().__init__()
        self.factor = factor
        self.first = nn.Conv2d(4 * factor**2, width, 3, padding=1)
        self.last = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, known: Tensor) -> Tensor:
        return self.last(F.silu(self.first(F.pixel_unshuffle(known, self.factor))))


class InterpolationPrior(nn.Module):
    """A prior on the logits, interpolated from known neighbours instead of learned from scratch.

    The codes of known tokens are averaged with weights that fall with distance; every code is then
    scored by a Gaussian around that mean. The transformer shifts the mean and scales the precision,
    so training starts from a smooth fill rather than from single-token frequencies.
    """

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
