"""Images as inpainting sees them: with a hole, filled, encoded, and what each place still knows.

Holes are drawn for each image and epoch, so no two passes see the same ones.
Shapes: n images, B batch, N tokens, F features, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from config.schema import Config
from models.conditioning import known_features
from models.masking import token_mask_from_holes
from models.vqgan import VQGAN, full_fp32
from utils.data.augment import Views
from utils.data.datasets import normalise
from utils.data.fill import fill_hole
from utils.data.holes import draw_hole

HOLE_SHARES = (0.05, 0.6)  # of an image, in training and validation
VAL_SEED = 2022  # of the validation holes, whatever the run's seed
AT_ONCE = 16  # images that are encoded together


class Seen(NamedTuple):
    """What is left of images with holes."""

    token_ids: Tensor  # (B, N) int64, of the filled images
    known: Tensor  # (B, N, F) float32
    hidden: Tensor  # (B, N) bool, tokens with a pixel in the hole


def draw_holes(kind: str, image_ids: Sequence[int], side: int, seed: int) -> Tensor:
    """A hole for each image, B of them, of any share that training shows, (B, H, W) bool."""
    holes = np.zeros((len(image_ids), side, side), bool)
    for hole, image_id in zip(holes, image_ids, strict=True):
        hole[:] = draw_hole(kind, side, HOLE_SHARES, seed, image_id)
    return torch.from_numpy(holes)


class HoledImages:
    """Some images in all their views, with whatever holes they are given."""

    def __init__(
        self, images: Tensor, views: int, vqgan: VQGAN, config: Config, device: torch.device
    ) -> None:
        """images: (n, 3, H, W) uint8. views: of each, as in the token cache."""
        self.views = Views(images, views)
        self.vqgan = vqgan.to(device, memory_format=torch.channels_last)
        self.config, self.device, self.side = config, device, images.shape[-1]

    def part(self, rows: np.ndarray) -> HoledImages:
        """Some of the images."""
        few = HoledImages(
            self.views.images[rows], self.views.count, self.vqgan, self.config, self.device
        )
        few.views.numbers = self.views.numbers[rows]
        return few

    def draw(self, image_ids: Tensor, seed: int) -> Tensor:
        """A hole for each image (B,) by the config's kind, (B, H, W) bool."""
        return draw_holes(self.config.data.hole_kind, image_ids.tolist(), self.side, seed)

    def of_patches(self, token_mask: Tensor) -> Tensor:
        """Holes of whole patches, (B, N) bool -> (B, H, W) bool."""
        patch = self.config.transformer.patch_size
        grid = self.side // patch
        rows = token_mask.unflatten(1, (grid, grid)).repeat_interleave(patch, 1)
        return rows.repeat_interleave(patch, 2)

    @torch.no_grad()
    def see(self, image_ids: Tensor, views: Tensor, holes: Tensor) -> Seen:
        """Fill and encode views (B,) of images (B,) that miss what holes (B, H, W) hide."""
        images = self.views.pick(image_ids, views).permute(0, 2, 3, 1).numpy()
        pairs, fill = zip(images, holes.numpy(), strict=True), self.config.decoding.hole_fill
        filled = np.stack([fill_hole(*pair, fill) for pair in pairs])
        parts = zip(torch.from_numpy(filled).split(AT_ONCE), holes.split(AT_ONCE), strict=True)
        seen = [self._encode(*part) for part in parts]
        return Seen(*(torch.cat(tensors) for tensors in zip(*seen, strict=True)))

    def _encode(self, filled: Tensor, holes: Tensor) -> Seen:
        """What is seen of a few filled images, (B, H, W, 3) and (B, H, W)."""
        data, network = self.config.data, self.config.transformer
        filled, holes = filled.to(self.device), holes.to(self.device)
        pixels, codebook = normalise(filled, data.mean, data.std), self.vqgan.codebook
        with full_fp32(self.device):
            latents = self.vqgan.latents(pixels)
            token_ids = codebook.nearest(latents).flatten(1)
        known = known_features(pixels, holes, latents, codebook.vectors(), network)
        return Seen(token_ids, known, token_mask_from_holes(holes, latents.shape[1]))


def validation_views(images: HoledImages) -> Seen:
    """All images as they are, each with a hole that is the same in every run."""
    image_ids = torch.arange(len(images.views))
    holes = images.draw(image_ids, VAL_SEED)
    return images.see(image_ids, torch.zeros_like(image_ids), holes)
