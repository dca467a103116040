"""What a user may choose about a score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MAX_BOOTSTRAP_SAMPLES = 100_000  # hours, not days
METRICS = ("fid", "kid", "prc", "paired", "bootstrap")


@dataclass(frozen=True)
class Settings:
    """Everything that a score depends on, and where it is computed.

    Attributes:
        gt_path: ground truth; None: the one the predicted folder's manifest names.
        weights: a weight file; None: the one in `weights_dir`, downloaded when missing.
        cache_dir: where reference statistics are kept; None: nowhere.
        legacy: the matrix root of pytorch-fid with its eps, to reproduce its scores.
    """

    predicted_path: str
    gt_path: str | None
    mask_path: str | None
    features: str
    dims: int | None
    weights: str | None
    weights_dir: Path
    device: str
    batch_size: int
    workers: int
    metrics: tuple[str, ...]
    bootstrap_samples: int
    legacy: bool
    seed: int
    cache_dir: Path | None
