"""Features of image sets: threads read while the network computes, over all processes.

Shapes: B batch, H height, W width, d feature size.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from fid import Settings
from fid.features import BACKENDS, Backend, BackendOptions
from fid.files import ScoreError
from fid.images import ImageSet
from fid.inputs import Source
from fid.process import Ranks, place
from fid.statistics import FeatureStatistics, Provenance, load_statistics, save_statistics

Item = TypeVar("Item")
Result = TypeVar("Result")
CPU_PART = 8  # images that a thread computes at once on a CPU


def choose_device(asked: str, ranks: Ranks) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device that exists; each torchrun process its own GPU.

    Raises:
        ScoreError: an unknown name or a GPU that is not there.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "cpu" or (asked == "auto" and gpus == 0):
        return torch.device("cpu")
    kind, _, number = asked.partition(":")
    if asked != "auto" and (kind != "cuda" or (":" in asked and not number.isdigit())):
        raise ScoreError(f"--device {asked}: expected auto, cpu or cuda:N")
    index = int(number or 0)
    if gpus == 0:
        raise ScoreError(f"--device {asked}: {asked} was asked and none is there, use --device cpu")
    if index >= gpus:
        raise ScoreError(
            f"--device {asked}: {asked} was asked and only cuda:0 to cuda:{gpus - 1} are there"
        )
    if ranks.world > 1:
        index = place().local_rank % gpus
    return torch.device("cuda", index)


def default_workers() -> int:
    """Reading threads where the user does not say: one a core, at most four."""
    try:
        return min(4, len(os.sched_getaffinity(0)))
    except AttributeError:  # only Linux has it
        return min(4, os.cpu_count() or 1)


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


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Iterator[Result]:
    """Results of `work`, in the items' order, each by one of several threads, a few ahead.

    No thread waits for another within an operation, as on a busy CPU it would for long, and no
    result depends on the number of threads.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def read_images(images: ImageSet, indices: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Decode images of that shape (H, W, 3): (B, 3, H, W) uint8 in channels-last memory order.

    Raises:
        ScoreError: the first image that cannot be read or has another size.
    """
    found = []
    for index in indices:
        pixels = images.pixels(index)
        if pixels.shape != shape:
            (height, width), (height0, width0) = pixels.shape[:2], shape[:2]
            raise ScoreError(
                f"{images.label(index)}: {width} x {height}, but {images.names[0]} is "
                f"{width0} x {height0}; all images of a set must have one size (see --resize)"
            )
        found.append(pixels)
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2)


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
    on_gpu = device.type == "cuda"
    shape = images.pixels(0).shape
    size = batch_size if on_gpu else min(batch_size, CPU_PART)
    batches = [indices[start : start + size] for start in range(0, len(indices), size)]

    def pixels_of(batch: Sequence[int]) -> Tensor:
        pixels = read_images(images, batch, shape)
        return pixels.pin_memory() if on_gpu else pixels

    @torch.inference_mode()
    def features_of(pixels: Tensor) -> Tensor:
        inputs = backend.prepare(pixels.to(device, non_blocking=True))
        try:
            return network(inputs.contiguous(memory_format=torch.channels_last))
        except torch.cuda.OutOfMemoryError:
            raise ScoreError(
                f"--batch-size {batch_size}: {device} is out of memory, use a smaller one"
            ) from None

    with exact_products():
        if on_gpu:
            found = map(features_of, in_threads(pixels_of, batches, max(1, workers)))
        else:
            threads = torch.get_num_threads()
            found = in_threads(lambda batch: features_of(pixels_of(batch)), batches, threads)
        for features in found:
            statistics.update(features)
    if statistics.count and not torch.isfinite(statistics.mean()).all():
        raise ScoreError(f"{backend.name}: features are not finite, the weights cannot be right")
    return statistics


class Scorer:
    """A feature network on a device that turns sources into statistics, over all ranks."""

    def __init__(self, settings: Settings, ranks: Ranks) -> None:
        self.settings = settings
        self.ranks = ranks
        self.device = ranks.together(lambda: choose_device(settings.device, ranks))[ranks.rank]
        self.backend: Backend
        ranks.on_first(self._build)  # rank 0 goes first: it may have to download the weights
        ranks.together(self._build if ranks.rank > 0 else lambda: None)

    def _build(self) -> None:
        settings = self.settings
        options = BackendOptions(settings.dims, settings.weights, settings.weights_dir)
        self.backend = BACKENDS[settings.features](options)

    @property
    def provenance(self) -> Provenance:
        """What a file of statistics says about the features in it."""
        return {
            "backend": self.backend.name,
            "weights_sha256": self.backend.weights_sha256,
            "resize": self.backend.resize,
        }

    def statistics(self, source: Source, keep_features: bool) -> FeatureStatistics:
        """Statistics of all images (every rank reads its shard), or those of an npz."""
        if isinstance(source, Path):
            return self._load(source).to(self.device)
        total, *parts = self.ranks.together(lambda: self._part(source, keep_features))
        for part in parts:
            total.merge(part)
        return total.to(self.device)

    def reference(self, source: Source, keep_features: bool) -> FeatureStatistics:
        """Statistics of the reference, read from the cache where its images were seen before."""
        folder = self.settings.cache_dir
        if folder is None or isinstance(source, Path):
            return self.statistics(source, keep_features)
        path = self.ranks.on_first(lambda: folder / self._cache_name(source, keep_features))
        cached = self.ranks.on_first(lambda: self._load_cached(path))
        if cached is not None:
            return cached.to(self.device)
        statistics = self.statistics(source, keep_features)
        self.ranks.on_first(lambda: self._save_cached(path, statistics))
        return statistics

    def _part(self, images: ImageSet, keep_features: bool) -> FeatureStatistics:
        """Statistics of this rank's images."""
        settings, indices = self.settings, self.ranks.shard(len(images))
        size, workers = settings.batch_size, settings.workers
        part = extract_statistics(
            self.backend, images, indices, self.device, size, workers, keep_features
        )
        return part.to(torch.device("cpu")) if self.ranks.world > 1 else part

    def _load(self, path: Path) -> FeatureStatistics:
        return load_statistics(path, self.backend.dims, self.provenance)

    def _load_cached(self, path: Path) -> FeatureStatistics | None:
        try:
            return self._load(path) if path.is_file() else None
        except ScoreError:  # a damaged entry is only made again
            return None

    def _save_cached(self, path: Path, statistics: FeatureStatistics) -> None:
        try:
            save_statistics(path, statistics, self.provenance)
        except ScoreError as error:  # a score does not fail for want of a cache
            print(f"note: reference statistics are not cached: {error}", file=sys.stderr)

    def _cache_name(self, images: ImageSet, keep_features: bool) -> str:
        """Content hash of images and network; sets of features that the FID drops say so."""
        parts = [images.sha256(), str(self.backend.dims), *map(str, self.provenance.values())]
        parts += [repr(tuple(self.settings.resize))] if self.settings.resize else []
        if keep_features and len(images) > self.backend.dims:
            parts.append("features")
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:32] + ".npz"
