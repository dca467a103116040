"""Random hole masks, True = hidden, determined by seed and index.

A hole kind is a plain function (rng, size, share) -> mask (size, size), where `share` in 0..1 is
the fraction of the image to hide. `lab` and `brush` hide exactly round(share * size^2) pixels;
`box` is within 1 % of the image.

Training batches are also drawn and filled here, which takes milliseconds per image: in worker
processes when training on a GPU, inline on a CPU. The workers import this module, so it must not
import torch. Shapes: B images, H x W pixels.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from itertools import repeat

import numpy as np
from fid.process import own_ranks
from threadpoolctl import threadpool_limits

from config.errors import UserError, one_of
from utils.io.messages import as_user_error

HoleKind = Callable[[np.random.Generator, int, float], np.ndarray]
HowFilled = tuple[str, str, int]  # kind of holes, their fill, seed
Filled = tuple[np.ndarray, np.ndarray]  # filled images (B, H, W, 3) uint8, holes (B, H, W) bool

SHARE_LIMITS = (0.01, 0.9)  # outside these a hole is no meaningful inpainting task
DEFAULT_SHARE = (0.15, 0.35)  # the lab's holes cover about a quarter
TRAINING_SHARE = (0.05, 0.6)  # of an image, in training and validation
IMAGES_A_TASK = 2  # of a worker process, so that many share even a small batch
BOX_TOLERANCE = 0.01  # of the image
MAX_WALKS, MAX_PINHOLES, MAX_BOXES = 3, 6, 3
BRUSH_WIDTH = (3 / 64, 8 / 64)  # of the image's side


def lab_holes(rng: np.random.Generator, size: int, share: float) -> np.ndarray:
    """Draw ragged random walks of one-pixel steps, with pinholes.

    Walks reflect at the border and leave isolated known pixels inside their area; up to
    MAX_PINHOLES isolated hidden pixels lie elsewhere.
    """
    wanted = _pixels(size, share)
    pinholes = min(int(rng.integers(MAX_PINHOLES + 1)), wanted - 1)
    walks = int(rng.integers(1, MAX_WALKS + 1))
    mask = np.zeros(size * size, dtype=bool)
    for walk in range(walks):
        left = wanted - pinholes - np.count_nonzero(mask)
        _cover(mask, left // (walks - walk), lambda: _walk(rng, size))
    _cover(mask, pinholes, lambda: rng.integers(size * size, size=4 * MAX_PINHOLES))
    return mask.reshape(size, size)


def brush_holes(rng: np.random.Generator, size: int, share: float) -> np.ndarray:
    """Draw curved strokes of a round brush, each with its own width."""
    mask = np.zeros(size * size, dtype=bool)
    _cover(mask, _pixels(size, share), lambda: _stroke(rng, size))
    return mask.reshape(size, size)


def box_holes(rng: np.random.Generator, size: int, share: float) -> np.ndarray:
    """Draw rectangles of aspect ratio 1:2 to 2:1; smaller ones make up for overlaps."""
    wanted = _pixels(size, share)
    mask = np.zeros((size, size), dtype=bool)
    area = wanted / rng.integers(1, MAX_BOXES + 1)
    while (left := wanted - np.count_nonzero(mask)) > BOX_TOLERANCE * size * size:
        height = int(np.clip(round(np.sqrt(min(area, left) * 2 ** rng.uniform(-1, 1))), 1, size))
        width = int(np.clip(round(min(area, left) / height), 1, size))
        top, start = rng.integers(size - height + 1), rng.integers(size - width + 1)
        mask[top : top + height, start : start + width] = True
    return mask


def mixed_holes(rng: np.random.Generator, size: int, share: float) -> np.ndarray:
    """Draw one of the other kinds with equal probability."""
    kinds = (lab_holes, brush_holes, box_holes)
    return kinds[rng.integers(len(kinds))](rng, size, share)


HOLE_KINDS: dict[str, HoleKind] = {
    "lab": lab_holes,
    "brush": brush_holes,
    "box": box_holes,
    "mix": mixed_holes,
}


def draw_hole(
    kind: str, size: int, share_range: tuple[float, float], seed: int, image_index: int
) -> np.ndarray:
    """Return the hole mask (size, size) of one image, True = hidden.

    The share is uniform in `share_range`. A mask depends only on (seed, image_index), not on masks
    drawn before it.
    """
    check_holes(kind, share_range)
    rng = np.random.default_rng([seed, image_index])
    return HOLE_KINDS[kind](rng, size, rng.uniform(*share_range))


def draw_holes(kind: str, image_ids: Sequence[int], side: int, seed: int) -> np.ndarray:
    """One training hole for each image, (B, H, W) bool, with a share from TRAINING_SHARE."""
    holes = np.zeros((len(image_ids), side, side), bool)
    for hole, image_id in zip(holes, image_ids, strict=True):
        hole[:] = draw_hole(kind, side, TRAINING_SHARE, seed, image_id)
    return holes


def check_holes(kind: str, share_range: tuple[float, float]) -> None:
    """Raise UserError for an unknown kind or a share range that cannot be drawn."""
    if kind not in HOLE_KINDS:
        raise one_of("holes", kind, HOLE_KINDS)
    low, high = share_range
    if not SHARE_LIMITS[0] <= low <= high <= SHARE_LIMITS[1]:
        raise UserError(
            f"hole share: {low:g} to {high:g}; allowed are two rising numbers"
            f" from {SHARE_LIMITS[0]:g} to {SHARE_LIMITS[1]:g}"
        )


def filled(images: np.ndarray, holes: np.ndarray, image_ids: np.ndarray, how: HowFilled) -> Filled:
    """Images (B, H, W, 3) uint8 with their holes filled, and the holes.

    A hole is drawn for each image with a non-negative ``image_ids`` (B,); the others use ``holes``
    (B, H, W).
    """
    from utils.data.fill import fill_hole  # SciPy takes a second to import

    kind, fill, seed = how
    side, drawn = images.shape[1], image_ids >= 0
    holes = holes.copy()
    holes[drawn] = draw_holes(kind, image_ids[drawn].tolist(), side, seed)
    pairs = zip(images, holes, strict=True)
    return np.stack([fill_hole(image, hole, fill) for image, hole in pairs]), holes


def begin_filling(
    images: np.ndarray,
    holes: np.ndarray,
    image_ids: np.ndarray,
    how: HowFilled,
    *,
    in_processes: bool,
) -> Callable[[], Filled]:
    """Start computing `filled`; returns a function that waits for the result."""
    if not in_processes:
        return lambda: filled(images, holes, image_ids, how)
    starts = range(0, len(images), IMAGES_A_TASK)
    parts = ([a[i : i + IMAGES_A_TASK] for i in starts] for a in (images, holes, image_ids))
    with _told_of_deaths():
        found = _pool().map(filled, *parts, repeat(how))

    @_told_of_deaths()
    def result() -> Filled:
        filled_images, made = zip(*found, strict=True)
        return np.concatenate(filled_images), np.concatenate(made)

    return result


@contextmanager
def _told_of_deaths() -> Iterator[None]:
    """Turn the death of a worker process, maybe one that was idle, into a `UserError`."""
    try:
        yield
    except BrokenProcessPool:
        raise UserError("a process that fills holes died; is there enough memory?") from None


@cache
def _pool() -> ProcessPoolExecutor:
    """One worker process for each available core, divided among torchrun's processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with as_user_error():
        share = max(1, cores // own_ranks().local_world_size)
    return ProcessPoolExecutor(share, multiprocessing.get_context("spawn"), _one_of_many)


def _one_of_many() -> None:
    """Limit a worker to one thread; its parent handles signals and takes the worker with it."""
    threadpool_limits(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()  # torchrun, timeout and terminals signal the whole group
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Wait for the death of the parent, also by SIGKILL: a worker holds both ends of its queue."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _pixels(size: int, share: float) -> int:
    return max(1, round(share * size * size))


def _cover(mask: np.ndarray, count: int, draw: Callable[[], np.ndarray]) -> None:
    """Hide `count` more pixels of the flat mask: the first new ones along the drawn paths."""
    while count > 0:
        path = draw()
        path = path[~mask[path]]
        _, first = np.unique(path, return_index=True)
        new = path[np.sort(first)[:count]]
        mask[new] = True
        count -= len(new)


def _walk(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return the flat pixel indices of a random walk of size^2 steps to the four neighbours."""
    steps = rng.integers(4, size=size * size)
    sign = 1 - 2 * (steps & 1)
    rows = _reflect(rng.integers(size) + np.cumsum(np.where(steps < 2, sign, 0)), size)
    columns = _reflect(rng.integers(size) + np.cumsum(np.where(steps < 2, 0, sign)), size)
    return rows * size + columns


def _stroke(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return the flat pixel indices under a round brush along a curve, in painting order."""
    radius = size * rng.uniform(*BRUSH_WIDTH) / 2
    steps = int(size * rng.uniform(0.5, 1.5))  # of one pixel each
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.15, size=steps))
    rows = _reflect(np.rint(rng.uniform(0, size) + np.cumsum(np.sin(heading))), size)
    columns = _reflect(np.rint(rng.uniform(0, size) + np.cumsum(np.cos(heading))), size)
    reach = np.arange(-int(radius), int(radius) + 1)
    dy, dx = (a[reach[:, None] ** 2 + reach**2 <= radius**2] for a in np.meshgrid(reach, reach))
    rows, columns = (rows[:, None] + dy).ravel(), (columns[:, None] + dx).ravel()
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    return rows[inside] * size + columns[inside]


def _reflect(places: np.ndarray, size: int) -> np.ndarray:
    """Reflect unbounded coordinates into 0..size - 1, as integers."""
    places = places.astype(np.int64) % (2 * size)
    return np.where(places < size, places, 2 * size - 1 - places)
