"""How good a tokenizer is: figures of its reconstructions, and a picture of them.

Shapes: n images, H x W pixels, N tokens, K codebook size.
"""

from __future__ import annotations

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor

from config.errors import UserError
from config.schema import Config
from models.quantizer import perplexity
from models.vqgan import VQGAN
from utils.data.datasets import normalise, to_uint8
from utils.device import autocast
from utils.pictures import tile
from utils.scoring import FeatureDistance

BATCHES = {"cpu": 16, "cuda": 256}  # larger ones fall out of a processor's cache
GRID_IMAGES, PER_ROW = 16, 8  # originals over reconstructions, in two double rows


class TokenizerValidation:
    """Scores any VQGAN on the same images; the features of the originals are computed once."""

    def __init__(
        self, images: Tensor, config: Config, device: torch.device, dtype: torch.dtype
    ) -> None:
        """images: (n, 3, H, W) uint8. Raises `UserError` for fewer than two."""
        require_two(images)
        self.inputs, self.config = images, config
        self.device, self.dtype = device, dtype
        self.images = images.permute(0, 2, 3, 1).contiguous()  # (n, H, W, 3), as pictures are
        self.distance = FeatureDistance(self.images, self.device)

    def __call__(self, vqgan: VQGAN) -> dict[str, float]:
        """PSNR in dB, SSIM, Frechet distance, share of codes in use, perplexity."""
        self.outputs, token_ids = self.reconstruct(vqgan)
        self.picture = reconstruction_grid(self.images, self.outputs)
        counts = torch.bincount(token_ids.flatten(), minlength=vqgan.config.codebook_size)
        return {
            "psnr": psnr(self.images, self.outputs),
            "ssim": ssim(self.images, self.outputs),
            "frechet_efficientnet": self.distance(self.outputs),
            "codes_used": (counts > 0).double().mean().item(),
            "perplexity": perplexity(counts.double()).item(),
        }

    @torch.inference_mode()
    def reconstruct(self, vqgan: VQGAN) -> tuple[Tensor, Tensor]:
        """Reconstructions (n, H, W, 3) uint8 and token ids (n, N)."""
        outputs, token_ids = [], []
        mean, std = self.config.data.mean, self.config.data.std
        for batch in self.inputs.split(BATCHES[self.device.type]):
            ids = vqgan.encode(normalise(batch.to(self.device), mean, std))
            with autocast(self.device, self.dtype):
                decoded = vqgan.decode(ids)
            outputs.append(to_uint8(decoded, mean, std).cpu())
            token_ids.append(ids.cpu())
        return torch.cat(outputs), torch.cat(token_ids)


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


def psnr(images: Tensor, outputs: Tensor) -> float:
    """Mean over images of the peak signal-to-noise ratio in dB, (n, H, W, 3) uint8 each."""
    error = (images.float() - outputs.float()).square().mean((1, 2, 3)).clamp(min=1e-6)
    return (10 * (255**2 / error).log10()).mean().item()


def ssim(images: Tensor, outputs: Tensor) -> float:
    """Mean structural similarity (Wang et al. 2004), (n, H, W, 3) uint8 each."""
    pairs = zip(images.numpy(), outputs.numpy(), strict=True)
    return float(np.mean([structural_similarity(a, b, channel_axis=2) for a, b in pairs]))
