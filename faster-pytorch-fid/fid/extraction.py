"""Features of image sets: worker processes read while the network computes, over all ranks.

Shapes: B batch, H height, W width, d feature size.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, _utils

from fid.features import Backend
from fid.files import ScoreError
from fid.images import ImageSet
from fid.statistics import FeatureStatistics
from fid.torchrun import place

Result = TypeVar("Result")
CPU_PART = 8  # images that a thread computes at once on a CPU
PATIENCE = timedelta(days=1)  # with rank 0, which reads caches and compares sets alone

# PyTorch answers SIGCHLD with an error wherever this process is at work, even where none can be
# raised, as in a destructor. Who waits for a batch looks every few seconds whether readers live.
_utils.signal_handling._SIGCHLD_handler_set = True


@dataclass(frozen=True)
class Ranks:
    """This process's number and how many there are."""

    rank: int = 0
    world: int = 1

    @classmethod
    def start(cls) -> Ranks:
        """Join the processes torchrun started; alone without it.

        gloo carries the little that is exchanged (statistics, once), for CPUs and GPUs alike.

        Raises:
            ScoreError: variables that torchrun does not set so, or processes that do not meet.
        """
        try:
            if place().world_size == 1:
                return cls()
        except ValueError as error:
            raise ScoreError(str(error)) from None
        try:
            dist.init_process_group("gloo", timeout=PATIENCE)
        except (ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise ScoreError(
                f"the processes of torchrun do not meet at MASTER_ADDR, MASTER_PORT: {reason}; "
                "without torchrun, unset WORLD_SIZE"
            ) from None
        return cls(dist.get_rank(), dist.get_world_size())

    def stop(self) -> None:
        """Leave the group."""
        if self.world > 1:
            dist.destroy_process_group()

    def shard(self, count: int) -> range:
        """This rank's part of `count` images: a run, so that parts in rank order keep the order."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def together(self, work: Callable[[], Result]) -> list[Result]:
        """Do `work` on every rank; every rank gets all results, in rank order.

        Raises:
            ScoreError: on every rank, the first rank's error, so that none waits for a dead one.
        """
        outcome: Result | ScoreError
        try:
            outcome = work()
        except ScoreError as error:
            outcome = error
        outcomes = [outcome]
        if self.world > 1:
            outcomes = [outcome] * self.world
            dist.all_gather_object(outcomes, outcome)
        for found in outcomes:
            if isinstance(found, ScoreError):
                raise found
        return outcomes

    def on_first(self, work: Callable[[], Result]) -> Result:
        """Do `work` on rank 0 only; every rank gets its result or its error."""
        return self.together(lambda: work() if self.rank == 0 else None)[0]


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
    """Turn what PyTorch raises when a process that reads has died."""
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


def in_threads(
    features_of: Callable[[Tensor], Tensor], batches: Iterable[Tensor], threads: int
) -> Iterator[Tensor]:
    """Features of parts of batches, in order, each computed by one of several threads.

    No thread waits for another within an operation, as on a busy CPU it would for long, and no
    feature depends on the number of threads.
    """
    waiting: deque[Future[Tensor]] = deque()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for part in (part for batch in batches for part in batch.split(CPU_PART)):
            waiting.append(pool.submit(features_of, part))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


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

    @torch.inference_mode()
    def features_of(pixels: Tensor) -> Tensor:
        inputs = backend.prepare(pixels.to(device, non_blocking=True))
        try:
            return network(inputs.contiguous(memory_format=torch.channels_last))
        except torch.cuda.OutOfMemoryError:
            raise ScoreError(
                f"--batch-size {batch_size}: {device} is out of memory, use a smaller one"
            ) from None

    with exact_products(), _deaths_told(images):
        read = batches(images, indices, batch_size, workers, pinned=on_gpu)
        found = (
            map(features_of, read)
            if on_gpu
            else in_threads(features_of, read, torch.get_num_threads())
        )
        for features in found:
            statistics.update(features)
        if statistics.count and not torch.isfinite(statistics.mean()).all():
            raise ScoreError(
                f"{backend.name}: features are not finite, the weights cannot be right"
            )
    return statistics
