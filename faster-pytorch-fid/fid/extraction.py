"""Feature extraction: threads decode images while the network computes, sharded over processes.

Shapes: B batch, H height, W width, d feature size.
"""

from __future__ import annotations

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL
import torch
from torch import Tensor

from fid.features import BACKENDS, Backend, BackendOptions
from fid.files import BROKEN_ZIP, ScoreError, note
from fid.images import ImageSet
from fid.inputs import Inputs, Settings, Source
from fid.metrics import frechet_distance
from fid.paired import HoleCrops, with_hole
from fid.process import Pool, Ranks
from fid.statistics import FeatureStatistics, load_statistics, save_statistics

Item = TypeVar("Item")
Result = TypeVar("Result")
CPU_PART = 2  # batch size per CPU thread, small enough for its cache
PIXELS = f"1, Pillow {PIL.__version__}"  # what decodes images; count up where `pixels` changes any


def size_of(source: Source) -> str | None:
    """Width x height of the first image in pixels; None for statistics that do not state it."""
    if isinstance(source, ImageSet):
        return "{1} x {0}".format(*source.pixels(0).shape)
    try:
        with np.load(source, allow_pickle=False) as file:
            found = file["size"]
    except (KeyError, *BROKEN_ZIP):
        return None
    return str(found) if found.dtype.kind == "U" and found.shape == () else None


def choose_device(asked: str, ranks: Ranks) -> torch.device:
    """Resolve `auto`, `cpu`, `cuda` or `cuda:N`; each torchrun process gets its own GPU.

    Raises `ScoreError` for an unknown name or a missing GPU.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if asked == "cpu" or (asked == "auto" and gpus == 0):
        return torch.device("cpu")
    named = re.fullmatch(r"auto|cuda(?::(\d+))?", asked)
    if not named:
        raise ScoreError(f"--device {asked}: expected auto, cpu or cuda:N")
    index = int(named[1] or 0)
    if gpus == 0:
        raise ScoreError(f"--device {asked}: no GPU is available, use --device cpu")
    if index >= gpus:
        raise ScoreError(f"--device {asked}: only cuda:0 to cuda:{gpus - 1} are available")
    return torch.device("cuda", index if ranks.world_size == 1 else ranks.local_rank % gpus)


@contextmanager
def exact_products() -> Iterator[None]:
    """Full float32 precision: TF32 would change scores on a GPU in the second decimal."""
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
    """Yield `work` of each item, in order, computed a few items ahead by a pool of threads.

    Each item runs on one thread, so threads never wait for each other within an operation (slow on
    a busy CPU), and results do not depend on their number.
    """
    waiting: deque[Future[Result]] = deque()
    with Pool(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > threads:
                yield pool.result(waiting.popleft())
        while waiting:
            yield pool.result(waiting.popleft())


def read_images(images: ImageSet, indices: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Decode images of one shape (H, W, 3) to (B, 3, H, W) uint8, channels last in memory.

    Raises `ScoreError` for the first image that cannot be read or has another size.
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
    """Statistics of the network's features over the images, on the CPU or GPU."""
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
    """Computes feature statistics of image sets with one network, distributed over all ranks."""

    def __init__(self, settings: Settings, ranks: Ranks) -> None:
        self.settings = settings
        self.ranks = ranks
        self.device = ranks.together(lambda: choose_device(settings.device, ranks))[ranks.rank]
        self.backend: Backend
        ranks.on_first(self._build)  # rank 0 goes first: it may have to download the weights
        ranks.together(self._build if ranks.rank > 0 else lambda: None)

    def _build(self) -> None:
        settings = self.settings
        if (name := settings.features) not in BACKENDS:
            raise ScoreError(f"--features: invalid choice: {name!r} (choose from {[*BACKENDS]})")
        options = BackendOptions(settings.dims, settings.weights, settings.weights_dir)
        self.backend = BACKENDS[settings.features](options)

    def statistics(self, source: Source, keep_features: bool) -> FeatureStatistics:
        """Statistics of all images (every rank reads its shard), or those of an npz."""
        if isinstance(source, Path):
            return self._load(source).to(self.device)
        settings, indices = self.settings, self.ranks.shard(len(source))
        size, workers = settings.batch_size, settings.workers

        def own_part() -> FeatureStatistics:
            part = extract_statistics(
                self.backend, source, indices, self.device, size, workers, keep_features
            )
            return part.to(torch.device("cpu")) if self.ranks.world_size > 1 else part

        total, *parts = self.ranks.together(own_part)
        for part in parts:
            total.merge(part)
        return total.to(self.device)

    def reference(self, source: Source, keep_features: bool) -> FeatureStatistics:
        """Statistics of the reference, from the cache if its images were scored before."""
        folder = self.settings.cache_dir
        if folder is None or isinstance(source, Path):
            return self.statistics(source, keep_features)
        path = self.ranks.on_first(lambda: folder / self._cache_name(source, keep_features))
        found = self.ranks.on_first(lambda: self._load_cached(path))
        if found is None:
            found = self.statistics(source, keep_features)
            self.ranks.on_first(lambda: self._save_cached(path, found))
        return found.to(self.device)

    def hole_distance(self, inputs: Inputs) -> float:
        """Frechet distance of crops around holes."""
        numbers = self.ranks.on_first(lambda: with_hole(inputs.masks))
        if len(numbers) < 2:
            found = f"{len(numbers)} of the masks have a hole; needed are 2"
            raise ScoreError(f"--metrics hole: {found}")
        both = inputs.predicted, inputs.reference
        crops = (HoleCrops(images, inputs.masks, numbers) for images in both)
        sides = (self.statistics(c, keep_features=False) for c in crops)
        return frechet_distance(*sides, legacy=self.settings.legacy)[0]

    def _load(self, path: Path) -> FeatureStatistics:
        return load_statistics(path, self.backend.dims, self.backend.provenance)

    def _load_cached(self, path: Path) -> FeatureStatistics | None:
        try:
            return self._load(path) if path.is_file() else None
        except (ScoreError, OSError):  # damaged, or in a home of somebody else's: made again
            return None

    def _save_cached(self, path: Path, statistics: FeatureStatistics) -> None:
        try:
            save_statistics(path, statistics, self.backend.provenance)
        except ScoreError as error:  # a score does not fail for want of a cache
            note(f"reference statistics are not cached: {error}")

    def _cache_name(self, images: ImageSet, keep_features: bool) -> str:
        """Hash of files, decoder and network; marked if it includes features that FID drops."""
        backend, resize = self.backend, self.settings.resize
        parts = [images.sha256(), str(backend.dims), *backend.provenance.values(), PIXELS]
        parts += [repr(tuple(resize))] if resize else []
        if keep_features and len(images) > backend.dims:
            parts.append("features")
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:32] + ".npz"
