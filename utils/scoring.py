"""The bundled scorer, used from within: Frechet distance of image tensors already in memory.

The scorer stands alone in `faster-pytorch-fid/`; this is the one place that reaches into it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from config.errors import UserError

SCORER = Path(__file__).resolve().parents[1] / "faster-pytorch-fid"
sys.path.append(str(SCORER))

from feature_stats import FeatureStatistics  # noqa: E402
from features import BACKENDS, BackendOptions  # noqa: E402
from fid_errors import ScoreError  # noqa: E402
from frechet import frechet_distance  # noqa: E402

BATCH = 32
FEATURES = "efficientnet-lite0"  # the only features that need no network


class FeatureDistance:
    """Frechet distance of any images to fixed ones, whose statistics are computed once."""

    def __init__(self, targets: Tensor, device: torch.device) -> None:
        """targets: (n, H, W, 3) uint8."""
        options = BackendOptions(dims=None, weights=None, weights_dir=Path())
        try:
            self.backend, self.device = BACKENDS[FEATURES](options), device
        except ScoreError as error:
            raise UserError(str(error)) from None
        self.network = self.backend.network.to(device, memory_format=torch.channels_last)
        self.targets = self._statistics(targets)

    def __call__(self, images: Tensor) -> float:
        """Distance of images (n, H, W, 3) uint8 to the targets."""
        return frechet_distance(self._statistics(images), self.targets)[0]

    @torch.inference_mode()
    def _statistics(self, images: Tensor) -> FeatureStatistics:
        statistics = FeatureStatistics(self.backend.dims, keep_features=True)
        for batch in images.split(BATCH):
            pixels = batch.permute(0, 3, 1, 2).to(self.device)
            statistics.update(self.network(self.backend.prepare(pixels)))
        return statistics
