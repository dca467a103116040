"""The bundled scorer as a library: Frechet distance of image tensors in memory."""

from __future__ import annotations

import numpy as np
import torch
from fid.extraction import CPU_PART, exact_products
from fid.features import BACKENDS, BackendOptions
from fid.metrics import frechet_distance
from fid.paired import psnr
from fid.statistics import FeatureStatistics
from torch import Tensor

from config.schema import ScoringConfig
from models.parallel import parallel_map
from utils.io.messages import as_user_error

DEFAULT = ScoringConfig()  # efficientnet-lite0, which works offline
HELD_OUT = ScoringConfig(features="efficientnet-lite2")  # offline too, and never used in training


class FeatureDistance:
    """Frechet distance of any images to fixed ones, whose statistics are computed once."""

    def __init__(
        self, targets: Tensor, device: torch.device, scoring: ScoringConfig = DEFAULT
    ) -> None:
        """targets: (n, H, W, 3) uint8. Raises `UserError` where weights cannot be had."""
        self.device = device
        with as_user_error():
            self.backend = BACKENDS[scoring.features](BackendOptions())
        self.batch_size = scoring.batch_size
        self.network = self.backend.network.to(device, memory_format=torch.channels_last)
        self.targets = self._statistics(targets)

    @property
    def name(self) -> str:
        """What the distance is called: only the FID InceptionV3's is FID."""
        return self.backend.distance

    def __call__(self, images: Tensor) -> float:
        """Distance of images (n, H, W, 3) uint8 to the targets."""
        return frechet_distance(self._statistics(images), self.targets)[0]

    @torch.inference_mode()
    def _statistics(self, images: Tensor) -> FeatureStatistics:
        statistics = FeatureStatistics(self.backend.dims, keep_features=True)
        size = CPU_PART if self.device.type == "cpu" else self.batch_size
        with exact_products():
            for features in parallel_map(self._features, images.split(size), self.device):
                statistics.update(features)
        return statistics

    def _features(self, images: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, d)."""
        pixels = images.permute(0, 3, 1, 2).to(self.device)
        return self.network(self.backend.prepare(pixels))


def hole_psnr(image: np.ndarray, truth: np.ndarray, hole: np.ndarray) -> float | None:
    """PSNR in dB over the pixels of a hole, (H, W, 3) uint8; None where there is no hole."""
    return psnr(image[hole].astype(np.int16) - truth[hole]) if hole.any() else None
