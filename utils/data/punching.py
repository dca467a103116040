"""Holes for the images of a batch, drawn and filled: in processes of their own while a GPU trains.

Both take milliseconds an image on a processor, whose cores would otherwise wait for the GPU. A CPU
that trains does them in line. Workers import this module, which therefore does without torch.
Shapes: B images, H x W pixels.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache

import numpy as np
from threadpoolctl import threadpool_limits

from config.errors import UserError
from utils.data.fill import fill_hole
from utils.data.holes import draw_hole

HOLE_SHARES = (0.05, 0.6)  # of an image, in training and validation
IMAGES_A_PROCESS = 16  # images that a process is given at once

HowPunched = tuple[str, str, int]  # kind of holes, their fill, seed
Punched = tuple[np.ndarray, np.ndarray]  # filled images (B, H, W, 3) uint8, holes (B, H, W) bool


def draw_holes(kind: str, image_ids: Sequence[int], side: int, seed: int) -> np.ndarray:
    """A hole for each image, B of them, of any share that training shows, (B, H, W) bool."""
    holes = np.zeros((len(image_ids), side, side), bool)
    for hole, image_id in zip(holes, image_ids, strict=True):
        hole[:] = draw_hole(kind, side, HOLE_SHARES, seed, image_id)
    return holes


def punch(
    images: np.ndarray, holes: np.ndarray | None, image_ids: np.ndarray, how: HowPunched
) -> Punched:
    """Fill images (B, H, W, 3) uint8.

    A hole is drawn for each image whose number in ``image_ids`` (B,) is not negative; the others
    have theirs in ``holes`` (B, H, W).
    """
    kind, fill, seed = how
    side, drawn = images.shape[1], image_ids >= 0
    holes = np.zeros(images.shape[:3], bool) if holes is None else holes.copy()
    holes[drawn] = draw_holes(kind, image_ids[drawn].tolist(), side, seed)
    pairs = zip(images, holes, strict=True)
    return np.stack([fill_hole(image, hole, fill) for image, hole in pairs]), holes


def begin(
    images: np.ndarray,
    holes: np.ndarray | None,
    image_ids: np.ndarray,
    how: HowPunched,
    *,
    in_processes: bool,
) -> Callable[[], Punched]:
    """Start on the arguments of `punch`; what it returns gives the result, when asked."""
    if not in_processes:
        return lambda: punch(images, holes, image_ids, how)
    parts = [
        slice(start, start + IMAGES_A_PROCESS) for start in range(0, len(images), IMAGES_A_PROCESS)
    ]
    futures = [
        _pool().submit(
            punch, images[part], None if holes is None else holes[part], image_ids[part], how
        )
        for part in parts
    ]

    def result() -> Punched:
        try:
            filled, made = zip(*(future.result() for future in futures), strict=True)
        except BrokenProcessPool:
            raise UserError("a process that fills holes died; is there enough memory?") from None
        return np.concatenate(filled), np.concatenate(made)

    return result


@cache
def _pool() -> ProcessPoolExecutor:
    """A process for every core that this one may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ProcessPoolExecutor(cores, multiprocessing.get_context("spawn"), _one_of_many)


def _one_of_many() -> None:
    """A worker computes in one thread; what Ctrl-C means is for its parent to say."""
    threadpool_limits(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
