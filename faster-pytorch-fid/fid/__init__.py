"""Score generated or repaired images.

`inputs` opens what is compared, `extraction` turns it into `statistics` of `features`, `scoring`
makes the numbers of `frechet`, `metrics` and `paired` from them, `certificate` writes them down.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fid.startup import in_one_line, leave_out_unreadable

leave_out_unreadable()  # before any module imports tqdm, as PyTorch does
in_one_line()

METRICS = ("fid", "kid", "prc", "density", "ids", "hole", "paired", "bootstrap")
MAX_BOOTSTRAP_SAMPLES = 100_000  # hours, not days


class Size(NamedTuple):
    """Width and height in pixels, and the name of Pillow's filter."""

    width: int
    height: int
    filter: str


@dataclass(frozen=True)
class Settings:
    """Everything that a score depends on, and where it is computed.

    Attributes:
        gt_path: ground truth; None: the one the predicted folder's manifest names.
        dims: feature size; None: the network's.
        weights: a weight file; None: the one in `weights_dir`, downloaded when missing.
        weights_dir: None: where torch.hub keeps checkpoints.
        workers: threads that read images for a GPU; a CPU's threads read their own.
        legacy: the matrix root of pytorch-fid with its eps, to reproduce its scores.
        cache_dir: where reference statistics are kept; None: nowhere.
        recursive: read the folders' sub-folders too.
        train_path: images that the network learned from, to see copies; None: not looked for.
        resize: one size to which images are brought; None: they must have one.
    """

    predicted_path: str
    gt_path: str | None = None
    mask_path: str | None = None
    features: str = "inception"
    dims: int | None = None
    weights: str | None = None
    weights_dir: Path | None = None
    device: str = "auto"
    batch_size: int = 16
    workers: int = 0
    metrics: tuple[str, ...] = ("fid",)
    bootstrap_samples: int = 100
    legacy: bool = False
    seed: int = 2020
    cache_dir: Path | None = None
    recursive: bool = False
    train_path: str | None = None
    resize: Size | None = None
