"""Images as inpainting sees them: with a hole, filled, encoded, and what each place still knows.

Holes are drawn for each image and epoch, so no two passes see the same ones.
Shapes: n images, B batch, N tokens, F features, H x W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from config.schema import Config
from models.conditioning import known_features
from models.masking import token_mask_from_holes
from models.vqgan import VQGAN, full_fp32
from utils.data import punching
from utils.data.augment import Views
from utils.data.datasets import normalise

VAL_SEED = 2022  # of the validation holes, whatever the run's seed
AT_ONCE = {"cpu": 16, "cuda": 512}  # images that are encoded together


class Seen(NamedTuple):
    """What is left of images with holes."""

    token_ids: Tensor  # (B, N) int64, of the filled images
    known: Tensor  # (B, N, F) float32
    hidden: Tensor  # (B, N) bool, tokens with a pixel in the hole


class HoledImages:
    """Some images in all their views, with whatever holes they are given."""

    def __init__(
        self, images: Tensor, views: int, vqgan: VQGAN, config: Config, device: torch.device
    ) -> None:
        """images: (n, 3, H, W) uint8. views: of each, as in the token cache."""
        self.views = Views(images, views)
        if device.type == "cuda":
            self.views.keep(device)
        self.vqgan = vqgan.to(device, memory_format=torch.channels_last)
        self.config, self.device, self.side = config, device, images.shape[-1]

    def part(self, rows: np.ndarray) -> HoledImages:
        """Some of the images."""
        few = copy.copy(self)
        few.views = self.views.part(rows)
        return few

    def of_patches(self, token_mask: Tensor) -> Tensor:
        """Holes of whole patches, (B, N) bool -> (B, H, W) bool."""
        patch = self.config.transformer.patch_size
        grid = self.side // patch
        rows = token_mask.unflatten(1, (grid, grid)).repeat_interleave(patch, 1)
        return rows.repeat_interleave(patch, 2)

    def see(
        self, image_ids: Tensor, views: Tensor, drawn: Tensor, seed: int, holes: Tensor | None
    ) -> Callable[[], Seen]:
        """Begin to give views (B,) of images (B,) their holes; the result encodes what is left.

        Holes of the images in ``drawn`` (B,) bool are drawn, the others are ``holes`` (B, H, W).
        """
        images = self.views.pick(image_ids, views).permute(0, 2, 3, 1).numpy()
        punched = punching.begin(
            images,
            None if holes is None else holes.numpy(),
            torch.where(drawn, image_ids, -1).numpy(),
            (self.config.data.hole_kind, self.config.decoding.hole_fill, seed),
            in_processes=self.device.type == "cuda",
        )

        @torch.no_grad()
        def seen() -> Seen:
            size = AT_ONCE[self.device.type]
            parts = zip(*(torch.from_numpy(rows).split(size) for rows in punched()), strict=True)
            encoded = [self._encode(*part) for part in parts]
            return Seen(*(torch.cat(tensors) for tensors in zip(*encoded, strict=True)))

        return seen

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
    all_of_them = torch.ones_like(image_ids, dtype=torch.bool)
    return images.see(image_ids, torch.zeros_like(image_ids), all_of_them, VAL_SEED, None)()
