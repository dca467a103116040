"""Validation metrics of a tokenizer's reconstructions, and a picture of them.

A decoder with conditioning is judged by repairs instead: holes of training's kinds and shares, the
same in every run, and tokens of the transformer that it is trained with, or else the true ones.

Shapes: n images, H x W pixels, N tokens, K codebook size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from config.errors import UserError
from config.schema import Config
from models.parallel import parallel_map
from models.quantizer import perplexity
from models.vqgan import VQGAN, full_fp32
from utils.data.datasets import normalise, to_uint8
from utils.device import Compute, autocast
from utils.io.pictures import tile
from utils.rng import generator_for
from utils.scoring import FeatureDistance

if TYPE_CHECKING:
    from utils.training.holed import Holed

BATCHES = {"cpu": 16, "cuda": 256}  # larger ones fall out of a processor's cache
GRID_IMAGES, PER_ROW = 16, 8  # originals over reconstructions, in two double rows


class TokenizerValidation:
    """Scores any VQGAN on the same images; the features of the originals are computed once."""

    def __init__(
        self, images: Tensor, config: Config, device: torch.device, dtype: torch.dtype
    ) -> None:
        """images: (n, 3, H, W) uint8, at least two."""
        self.inputs, self.config = images, config
        self.device, self.dtype = device, dtype
        self.images = images.permute(0, 2, 3, 1).contiguous()  # (n, H, W, 3), as pictures are
        self.holed: list[Holed] = []  # for a decoder with conditioning
        self.distance = FeatureDistance(self.images, self.device)

    def __call__(self, vqgan: VQGAN) -> dict[str, float]:
        """PSNR in dB, SSIM, Frechet distance, share of codes in use, perplexity.

        Of repairs also the mean absolute error in holes, in grey levels.
        """
        self.outputs, token_ids = self.reconstruct(vqgan)
        self.picture = reconstruction_grid(self.images, self.outputs)
        counts = torch.bincount(token_ids.flatten(), minlength=vqgan.config.codebook_size)
        in_holes = {}
        if self.holed:
            holes = torch.cat([part.holes for part in self.holed]).cpu()
            error = (self.images.float() - self.outputs.float()).abs()
            in_holes["hole_mae"] = error[holes].mean().item()
        return {
            **in_holes,
            "psnr": mean_psnr(self.images, self.outputs),
            "ssim": mean_ssim(self.images, self.outputs),
            "frechet_efficientnet": self.distance(self.outputs),
            "codes_used": (counts > 0).double().mean().item(),
            "perplexity": perplexity(counts.double()).item(),
        }

    @torch.inference_mode()
    def reconstruct(self, vqgan: VQGAN) -> tuple[Tensor, Tensor]:
        """Reconstructions (n, H, W, 3) uint8 and token ids (n, N).

        A decoder with conditioning gives repairs, with known pixels in place.
        """
        mean, std = self.config.data.mean, self.config.data.std
        inputs, originals = (x.split(BATCHES[self.device.type]) for x in (self.inputs, self.images))
        if vqgan.config.conditioned and not self.holed:
            self.holed = self._draw_holes(vqgan, inputs)

        def decoded(number: int) -> tuple[Tensor, Tensor]:
            """Images (b, H, W, 3) and token ids (b, N) of a batch."""
            if vqgan.config.conditioned:
                holes, known, ids = self.holed[number]
            else:
                images = inputs[number].to(self.device)
                known, ids = None, vqgan.encode(normalise(images, mean, std))
            with autocast(self.device, self.dtype):
                pixels = vqgan.decode(ids.flatten(1), known)
            pixels = to_uint8(pixels, mean, std).cpu()
            if known is not None:
                pixels = torch.where(holes[..., None].cpu(), pixels, originals[number])
            return pixels, ids.flatten(1).cpu()

        with full_fp32(self.device):  # outside the threads, since it sets flags of all
            parts = parallel_map(decoded, range(len(inputs)), self.device)
        outputs, token_ids = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        return outputs, token_ids

    def _draw_holes(self, vqgan: VQGAN, inputs: Sequence[Tensor]) -> list[Holed]:
        """Holes and tokens of all images, which stay while a decoder trains."""
        from utils.training.holed import VAL_SEED, HoledBatches  # few runs see pixels

        compute, holed = Compute(self.device, self.dtype), []
        draw = HoledBatches(self.config, compute, sampled_share=1.0)
        for number, images in enumerate(inputs):
            generator, rows = generator_for(VAL_SEED, number), range(len(images))
            holed.append(draw(vqgan, images.to(self.device) / 255, rows, generator))
        return holed


def require_two(images: Tensor) -> None:
    """Raise `UserError` for fewer validation images than a covariance needs."""
    if len(images) < 2:
        raise UserError(f"{len(images)} validation images; the Frechet distance needs 2 or more")


def reconstruction_grid(images: Tensor, outputs: Tensor) -> Tensor:
    """Rows of originals over their reconstructions: (n, H, W, 3) -> (rows, columns, 3) uint8."""
    rows = []
    for originals, made in zip(
        *(x[:GRID_IMAGES].split(PER_ROW) for x in (images, outputs)), strict=True
    ):
        for row in (originals, made):
            rows += [*row.numpy(), *[np.zeros_like(row[0])] * (PER_ROW - len(row))]
    return torch.from_numpy(tile(rows, len(rows), PER_ROW))


def mean_psnr(images: Tensor, outputs: Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB, (n, H, W, 3) uint8 each."""
    error = (images.float() - outputs.float()).square().mean((1, 2, 3)).clamp(min=1e-6)
    return (10 * (255**2 / error).log10()).mean().item()


def mean_ssim(images: Tensor, outputs: Tensor) -> float:
    """Mean structural similarity (Wang et al. 2004), (n, H, W, 3) uint8 each.

    In scikit-image's uniform windows of 7 x 7 pixels; the scorer's are Gaussian, 11 x 11.
    """
    pairs = zip(images.numpy(), outputs.numpy(), strict=True)
    return float(np.mean([structural_similarity(a, b, channel_axis=2) for a, b in pairs]))
