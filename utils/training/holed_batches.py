"""Images of stage 1 as a decoder sees them in a repair: a hole, what is known, and tokens.

Of some images the hidden tokens are drawn by a transformer, as in a repair, so that the decoder
learns to mend what it draws. The others have the true tokens.
Shapes: B batch, N tokens, h x w token grid, H x W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from config.schema import Config
from models.conditioning import known_pixels
from models.maskgit import MaskGIT
from models.vqgan import VQGAN, full_fp32
from utils.data import punching
from utils.data.datasets import normalise
from utils.weights.store import load_transformer, require_tokens_of

ITERATIONS = 3  # in which tokens are drawn: fewer than in a repair, since this is done at each step


class Holed(NamedTuple):
    """What is left of images with holes, and the tokens to decode."""

    holes: Tensor  # (B, H, W) bool
    known: Tensor  # (B, 4, H, W) of `known_pixels`
    token_ids: Tensor  # (B, h, w) int64


class HoledBatches:
    """Draws a hole for every image, fills it, and gives the tokens of some new values."""

    def __init__(self, config: Config, device: torch.device, sampled_share: float) -> None:
        """sampled_share: of the images, whose hidden tokens a transformer draws, if given."""
        self.config, self.device, self.sampled_share = config, device, sampled_share
        self.path = config.tokenizer.training.transformer
        self.transformer = None
        if self.path is not None:
            self.transformer = load_transformer(self.path, config.transformer).to(device)
        self.maskgit: MaskGIT | None = None  # with the encoder that is trained by then

    @torch.no_grad()
    def __call__(
        self,
        vqgan: VQGAN,
        images: Tensor,
        rows: Sequence[int],
        generator: torch.Generator,
    ) -> Holed:
        """Holes and tokens for images (B, 3, H, W) in 0..1.

        All random numbers come from the generator's seed and an image's row (B) in the whole batch.
        """
        seed = generator.initial_seed()
        data = self.config.data
        pixels = (255 * images).round().byte()
        shown = pixels.permute(0, 2, 3, 1).cpu().numpy()
        how = data.hole_kind, self.config.decoding.hole_fill, seed
        on_gpu = self.device.type == "cuda"
        punched = punching.begin(shown, None, np.array(rows), how, in_processes=on_gpu)
        with full_fp32(self.device):
            token_ids = vqgan.encode(normalise(pixels, data.mean, data.std))
        filled, holes = (torch.from_numpy(rows).to(self.device) for rows in punched())
        filled = normalise(filled, data.mean, data.std)
        numbers = torch.tensor(rows, device=self.device)
        uniform = torch.rand(max(rows) + 1, generator=generator).to(self.device)
        drawn = uniform[numbers] < self.sampled_share
        if self.transformer is not None and drawn.any():
            parts = filled[drawn], holes[drawn], numbers[drawn]
            token_ids[drawn] = self._draw(vqgan, *parts, seed)
        side = round(token_ids.shape[1] ** 0.5)
        return Holed(holes, known_pixels(filled, holes), token_ids.unflatten(1, (side, side)))

    def _draw(
        self, vqgan: VQGAN, filled: Tensor, holes: Tensor, image_ids: Tensor, seed: int
    ) -> Tensor:
        """Tokens of repairs, (B, 3, H, W) normalised, (B, H, W) and (B,) -> (B, N)."""
        assert self.transformer is not None
        assert self.path is not None
        if self.maskgit is None:  # a copy, since a MaskGIT freezes its tokenizer
            require_tokens_of(self.path, self.config.tokenizer_weights, vqgan)
            frozen = copy.deepcopy(vqgan)
            schedule = self.config.masking.mask_schedule
            self.maskgit = MaskGIT(frozen, self.transformer, schedule).eval()
        few = {"total_iter": ITERATIONS, "sweet_spot": None}
        settings = self.config.decoding.model_copy(update=few)
        return self.maskgit.inpaint(filled, holes, settings, seed=seed, image_ids=image_ids)
