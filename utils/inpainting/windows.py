"""Pictures of any size: holes are repaired in overlapping square windows, from the border inward.

Around each hole lie windows of the model's size, S x S pixels, that overlap by half. A window is
repaired when it knows most; what it decided counts as known for those that follow, so neighbours
agree with each other. Only its core is kept, where it saw what lies on all sides. Both a hole's
border and the joins of windows are feathered (composite.py). No other pixel is written.

In the middle of a thick hole windows would know nothing of the picture. Such holes are repaired
last, where the picture is shrunk until they are not thick, and the result is enlarged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from PIL import Image
from scipy import ndimage

from utils.inpainting.composite import feather

# images (B, S, S, 3) uint8, holes (B, S, S) bool, window numbers from 1 -> decoded (B, S, S, 3)
Decode = Callable[[np.ndarray, np.ndarray, list[int]], np.ndarray]

READY = 0.5  # share of the best window's known pixels from which on a window need not wait
THICK = 0.75  # of S: holes thicker than this are repaired in a shrunk picture
SHRUNK = 0.4  # of S: how thick they are there
CORNER = 1.5  # radii of a disc that reach into the corner of a box around it
TOUCHING = np.ones((3, 3))  # pixels that belong together, diagonal ones too


@dataclass(frozen=True)
class Window:
    """A square of S pixels a side within a picture, and the part of it that is kept."""

    number: int  # from 1, in reading order; it keys the window's noise
    view: tuple[slice, slice]
    core: tuple[slice, slice]

    @property
    def core_in_view(self) -> tuple[slice, slice]:
        rows, columns = (
            slice(core.start - view.start, core.stop - view.start)
            for core, view in zip(self.core, self.view, strict=True)
        )
        return rows, columns

    def overlaps(self, other: Window) -> bool:
        pairs = zip(self.view, other.view, strict=True)
        return all(a.start < b.stop and b.start < a.stop for a, b in pairs)


def repair_in_windows(
    image: np.ndarray, hole: np.ndarray, side: int, decode: Decode, width: float
) -> Iterator[np.ndarray]:
    """Yield the picture (H, W, 3) uint8 after every round of windows, the last one whole.

    side: S. width: pixels over which borders are feathered. Pictures below S pixels are
    reflected up to it and cut back. A picture without a hole is yielded as it is.
    """
    if not hole.any():
        yield image.copy()
    canvas, thin, levels = image, hole, []
    while (thick := thick_parts(thin, side)).any():
        thin, levels = thin & ~thick, [thick, *levels]
    for canvas in _repair_rounds(image, hole, thin, side, decode, width):
        yield canvas
    hole = hole & ~thin
    for thick in levels:
        known = canvas
        for canvas in _repair_shrunk(known, hole, thick, side, decode, width):
            yield canvas
        hole = hole & ~thick


def thick_parts(hole: np.ndarray, side: int) -> np.ndarray:
    """Where holes are thicker than windows can repair, and than half of the thickest, (H, W) bool.

    As thick as the largest disc around a place; corners around such discs belong to them.
    """
    thick = np.zeros_like(hole)
    for box in ndimage.find_objects(hole.astype(np.uint8)):  # one, around all holes
        depth = _depth(hole[box])
        radius = max(THICK * side, depth.max()) / 2
        middle = depth > radius
        if middle.any():
            near = ndimage.distance_transform_edt(~middle) < CORNER * radius
            thick[box] = hole[box] & near
    return thick


def _depth(hole: np.ndarray) -> np.ndarray:
    """Pixels from each pixel of a hole (h, w) to the nearest that is known or outside."""
    return ndimage.distance_transform_edt(np.pad(hole, 1))[1:-1, 1:-1]


def _repair_shrunk(
    image: np.ndarray, hole: np.ndarray, thick: np.ndarray, side: int, decode: Decode, width: float
) -> Iterator[np.ndarray]:
    """Repair thick holes where the picture is small, and yield it in full size with each round."""
    factor = ceil(2 * _depth(thick).max() / (SHRUNK * side))
    size = [ceil(pixels / factor) for pixels in hole.shape]
    small_hole = _resized(255 * hole.astype(np.uint8), size, Image.Resampling.BOX) > 0
    small = _resized(image, size, Image.Resampling.BOX)
    for repaired in repair_in_windows(small, small_hole, side, decode, width):
        large = _resized(repaired, hole.shape, Image.Resampling.BICUBIC)
        joined = feather(large, image, hole, factor * width)
        yield np.where(thick[..., None], joined, image)


def _resized(pixels: np.ndarray, size: Sequence[int], how: Image.Resampling) -> np.ndarray:
    """Pixels (H, W, ...) uint8 in another size (h, w)."""
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), how))


def _repair_rounds(
    image: np.ndarray, hole: np.ndarray, thin: np.ndarray, side: int, decode: Decode, width: float
) -> Iterator[np.ndarray]:
    """Repair thin holes in windows, nothing else of the hole, and yield the picture each round."""
    height, width_of_image = hole.shape
    canvas, remaining, wanted = (reflect_up(part, side) for part in (image.copy(), hole, thin))
    waiting = plan_windows(wanted, side)
    while waiting:
        chosen = choose_round(waiting, remaining)
        images = np.stack([canvas[w.view] for w in chosen])
        holes = np.stack([remaining[w.view] for w in chosen])
        decoded = decode(images, holes, [w.number for w in chosen])
        for window, *parts in zip(chosen, decoded, images, holes, strict=True):
            kept = np.zeros((side, side), bool)
            kept[window.core_in_view] = remaining[window.core] & wanted[window.core]
            canvas[window.view][kept] = feather(*parts, width)[kept]
            remaining[window.view][kept] = False
        waiting = [w for w in waiting if (remaining[w.core] & wanted[w.core]).any()]
        yield canvas[:height, :width_of_image].copy()


def plan_windows(hole: np.ndarray, side: int) -> list[Window]:
    """Windows whose cores cover all holes (H, W), H and W at least ``side``, in reading order.

    Holes that lie close together share windows. One that fits into a core gets a single window
    with the hole in its middle, so that it sees as much around it as it can.
    """
    margin = side // 8
    near = ndimage.binary_dilation(hole, TOUCHING, iterations=margin)
    groups, _ = ndimage.label(near, TOUCHING)
    corners: set[tuple[int, int]] = set()
    for box in ndimage.find_objects(groups * hole):
        if box is not None:
            rows, columns = (
                _starts(part, size, side) for part, size in zip(box, hole.shape, strict=True)
            )
            corners |= {(row, column) for row in rows for column in columns}
    windows = []
    for corner in sorted(corners):
        view = tuple(slice(start, start + side) for start in corner)
        core = tuple(
            slice(s.start + margin * (s.start > 0), s.stop - margin * (s.stop < size))
            for s, size in zip(view, hole.shape, strict=True)
        )
        if hole[core].any():
            windows.append(Window(len(windows) + 1, view, core))
    return windows


def choose_round(waiting: list[Window], remaining: np.ndarray) -> list[Window]:
    """Windows to repair at once: those that know nearly as much as the best, none overlapping."""
    known = {w.number: (~remaining[w.view]).mean() for w in waiting}
    best = max(known.values())
    chosen: list[Window] = []
    for window in sorted(waiting, key=lambda w: -known[w.number]):  # stable: reading order
        ready = known[window.number] >= READY * best
        if ready and not any(window.overlaps(other) for other in chosen):
            chosen.append(window)
            if best == 0:  # nothing is known anywhere: begin at one place
                break
    return chosen


def reflect_up(pixels: np.ndarray, side: int) -> np.ndarray:
    """Reflect a picture (H, W, ...) to the right and below until it has ``side`` pixels a side."""
    missing = [(0, max(0, side - size)) for size in pixels.shape[:2]]
    return np.pad(pixels, missing + [(0, 0)] * (pixels.ndim - 2), mode="symmetric")


def _starts(part: slice, size: int, side: int) -> list[int]:
    """Where windows start along one axis so that their cores cover a stretch of hole pixels."""
    first, last = part.start, part.stop
    if last - first <= side - 2 * (side // 8):
        starts = np.array([(first + last - side) // 2])
    else:
        first, last = first - side // 4, last + side // 4 - side
        starts = np.linspace(first, last, -(-(last - first) // (side // 2)) + 1).round()
    return sorted(set(starts.clip(0, size - side).astype(int).tolist()))
