"""Feature extraction: threads decode images while the network computes, sharded over processes.

Shapes: B batch, H height, W width, d feature size.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from fid.features import Backend
from fid.files import ScoreError
from fid.images import ImageSet
from fid.statistics import FeatureStatistics
from fid.torchrun import meet, place

Item = TypeVar("Item")
Result = TypeVar("Result")
CPU_PART = 2  # batch size per CPU thread, small enough for its cache
PATIENCE = timedelta(days=1)  # timeout while rank 0 reads caches and compares sets alone


@dataclass(frozen=True)
class Ranks:
    """This process's rank and the world size; ranks exchange statistics once."""

    rank: int = 0
    world: int = 1

    @classmethod
    def start(cls) -> Ranks:
        """Join torchrun's processes over Gloo, on CPUs and GPUs alike; one rank without torchrun.

        Raises `ScoreError` for invalid torchrun variables or if the processes cannot connect.
        """
        if place().world_size == 1:
            return cls()
        meet("gloo", PATIENCE)
        return cls(dist.get_rank(), dist.get_world_size())

    def stop(self) -> None:
        """Leave the process group."""
        if self.world > 1:
            dist.destroy_process_group()

    def shard(self, count: int) -> range:
        """This rank's contiguous share of `count` images; shares in rank order keep the order."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def together(self, work: Callable[[], Result]) -> list[Result]:
        """Do `work` on every rank; every rank gets all results, in rank order.

        Raises the first `ScoreError` of any rank on every rank, so that none waits for a dead one.
        """
        outcome: Result | ScoreError
        try:
            outcome = work()
        except ScoreError as error:
            outcome = error
        outcomes = [outcome] * self.world
        if self.world > 1:
            dist.all_gather_object(outcomes, outcome)
        for found in outcomes:
            if isinstance(found, ScoreError):
                raise found
        return outcomes

    def on_first(self, work: Callable[[], Result]) -> Result:
        """Do `work` on rank 0 only; every rank gets its result or its error."""
        return self.together(lambda: work() if self.rank == 0 else None)[0]


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
    return torch.device("cuda", index if ranks.world == 1 else place().local_rank % gpus)


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
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def read_images(images: ImageSet, indices: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Decode images of shape (H, W, 3) to (B, 3, H, W) uint8 in channels-last memory format.

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
