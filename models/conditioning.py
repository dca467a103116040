"""Conditioning on the known pixels of partly hidden tokens, which masking would discard.

Shapes: B batch, N tokens on a grid h x w, p pixels along a token's patch, C latent channels,
F = 4 p^2 + C features, D decoder channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.schema import TransformerConfig


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
