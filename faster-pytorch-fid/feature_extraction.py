"""Features of image sets: worker processes read while the network computes.

Shapes: B batch, H height, W width, d feature size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from feature_stats import FeatureStatistics
from features import Backend
from fid_errors import ScoreError
from fid_images import ImageSet
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class _Pixels(Dataset):
    """Images of one size by index; a bad image comes back as its error, to be raised outside."""

    def __init__(self, images: ImageSet, indices: Sequence[int]) -> None:
        self.images = images
        self.indices = indices
        self.shape = images.pixels(0).shape

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> np.ndarray | ScoreError:
        index = self.indices[item]
        try:
            pixels = self.images.pixels(index)
        except ScoreError as error:
            return error
        if pixels.shape != self.shape:
            (height, width), (height0, width0) = pixels.shape[:2], self.shape[:2]
            return ScoreError(
                f"{self.images.label(index)}: {width} x {height}, but {self.images.names[0]} is "
                f"{width0} x {height0}; all images of a set must have one size"
            )
        return pixels


def _collate(items: list[np.ndarray | ScoreError]) -> Tensor | ScoreError:
    """One uint8 batch (B, H, W, 3), or the first error among the images."""
    for item in items:
        if isinstance(item, ScoreError):
            return item
    return torch.from_numpy(np.stack(items))


def default_workers() -> int:
    """Loading processes where the user does not say: one a core, at most four."""
    try:
        return min(4, len(os.sched_getaffinity(0)))
    except AttributeError:  # only Linux has it
        return min(4, os.cpu_count() or 1)


def batches(
    images: ImageSet, indices: Sequence[int], batch_size: int, workers: int, pinned: bool
) -> Iterator[Tensor]:
    """Read images in worker processes, yield (B, 3, H, W) uint8 in channels-last memory order.

    Raises:
        ScoreError: the first image that cannot be read or has another size.
    """
    loader = DataLoader(
        _Pixels(images, indices),
        batch_size=batch_size,
        num_workers=min(workers, len(indices) // (4 * batch_size)),
        collate_fn=_collate,
        pin_memory=pinned,
    )
    for batch in loader:
        if isinstance(batch, ScoreError):
            raise batch
        yield batch.permute(0, 3, 1, 2)


@contextmanager
def _deaths_told(images: ImageSet) -> Iterator[None]:
    """Turn what PyTorch raises, wherever this process is at work, when one that reads has died."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ScoreError(
            f"{images.path}: a process that reads images died; try --num-workers 0"
        ) from None


@contextmanager
def exact_products() -> Iterator[None]:
    """float32 all through: TF32 would move a GPU's scores in the second decimal."""
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, False
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        ):
            yield
    finally:
        matmul.allow_tf32 = before


def extract_statistics(
    backend: Backend,
    images: ImageSet,
    indices: Sequence[int],
    device: torch.device,
    batch_size: int,
    workers: int,
    keep_features: bool,
) -> FeatureStatistics:
    """Show the images to the network and gather their features' statistics (on the CPU or GPU)."""
    network = backend.network.to(device, memory_format=torch.channels_last)
    statistics = FeatureStatistics(backend.dims, keep_features)
    with torch.inference_mode(), exact_products(), _deaths_told(images):
        for pixels in batches(images, indices, batch_size, workers, device.type == "cuda"):
            pixels = pixels.to(device, non_blocking=True)
            inputs = backend.prepare(pixels).contiguous(memory_format=torch.channels_last)
            try:
                statistics.update(network(inputs))
            except torch.cuda.OutOfMemoryError:
                raise ScoreError(
                    f"--batch-size {batch_size}: {device} is out of memory, use a smaller one"
                ) from None
        if statistics.count and not torch.isfinite(statistics.mean()).all():
            raise ScoreError(
                f"{backend.name}: features are not finite, the weights cannot be right"
            )
    return statistics
