"""Training images as inpainting sees them: with a hole, filled before encoding.

Filling takes milliseconds an image on a processor, so all cores share it. Workers import this
module, which therefore does without torch.
Shapes: B images of a chunk, H x W pixels.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from config.errors import UserError
from utils.data.fill import fill_hole
from utils.data.holes import DEFAULT_SHARE, draw_hole

SEED = 2022  # of the holes, whatever the run's seed, so that runs share a cache
VERSION = 1  # of what this module computes; another number makes other caches
FEW = 512  # images that are filled before a pool of processes would have started
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Punched = tuple[np.ndarray, np.ndarray]  # filled images, holes


@dataclass(frozen=True)
class Chunk:
    """Images to punch a hole into, and how."""

    images: np.ndarray  # (B, H, W, 3) uint8
    first: int  # place of the first one in its set
    variant: int  # which of the holes of an image this is
    kind: str
    fill: str


def punch(chunk: Chunk) -> Punched:
    """The chunk's images with their holes filled (B, H, W, 3) uint8, and the holes (B, H, W)."""
    size, seed = chunk.images.shape[1], SEED + chunk.variant
    places = range(chunk.first, chunk.first + len(chunk.images))
    holes = [draw_hole(chunk.kind, size, DEFAULT_SHARE, seed, place) for place in places]
    pairs = zip(chunk.images, holes, strict=True)
    return np.stack([fill_hole(image, hole, chunk.fill) for image, hole in pairs]), np.stack(holes)


class Puncher:
    """Punches many chunks, in order, on all cores."""

    def __init__(self, images: int) -> None:
        """images: how many there are in all; for few no processes are started."""
        self.pool: ProcessPoolExecutor | None = None
        workers = os.cpu_count() or 1
        if images > FEW and workers > 1:
            spawn = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(workers, mp_context=spawn)

    def __enter__(self) -> Puncher:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def __call__(self, chunks: Iterable[Chunk]) -> Iterator[Punched]:
        """Filled images and holes of every chunk, in the chunks' order."""
        if self.pool is None:
            return map(punch, chunks)
        with _environment(ONE_THREAD):  # every core has a process of its own already
            return _told(self.pool.map(punch, chunks))


def _told(results: Iterator[Punched]) -> Iterator[Punched]:
    """The same results; a worker that was killed becomes a line."""
    try:
        yield from results
    except BrokenProcessPool:
        raise UserError("a process that fills holes died; is there enough memory?") from None


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables that processes started within this context inherit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
