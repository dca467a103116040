"""What each place knows of the picture: pixels that a partly hidden token would throw away.

Shapes: B batch, N tokens on a grid h x w, p pixels along a token's patch, C latent channels,
F = 4 p^2 + C features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from config.schema import TransformerConfig


def known_width(config: TransformerConfig) -> int:
    """Features F of a place: 3 p^2 pixel values, p^2 hole bits, C latents."""
    return 4 * config.patch_size**2 + config.prior_dim


def known_features(
    images: Tensor, holes: Tensor, latents: Tensor, codes: Tensor, config: TransformerConfig
) -> Tensor:
    """The filled patch, its hole bits and its latents at every place, -> (B, N, F) float32.

    images: (B, 3, H, W) normalised and filled. holes: (B, H, W) bool. latents: (B, h, w, C) before
    quantisation. codes: (K, C), whose mean and spread bring the latents to about unit variance.
    """
    pixels = torch.cat([images.float(), holes[:, None].float()], dim=1)
    patches = F.pixel_unshuffle(pixels, config.patch_size)  # (B, 4 p^2, h, w)
    parts = [patches.flatten(2).transpose(1, 2)]
    if config.prior_dim:
        parts.append(((latents - codes.mean(0)) / codes.std()).flatten(1, 2))
    return torch.cat(parts, dim=-1)
