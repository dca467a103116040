"""Pictures of any size: holes are repaired in overlapping square windows, from the border inward.

Windows of the model's size, S x S pixels, cover each hole and overlap by half. Those with the most
known pixels are repaired first, and their results count as known for the next, so that neighbours
agree. Only a window's core is kept, which has context on all sides. The borders of holes and the
seams between windows are feathered (utils/data/fill.py). No other pixel is written.

In the middle of a thick hole, windows would see no known pixels. Such holes are repaired last, in a
downscaled picture where they are not thick, and the result is enlarged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
from fid.pixels import Size, resized
from scipy import ndimage

from utils.data.fill import feather

# images (B, S, S, 3) uint8, holes (B, S, S) bool, window numbers from 1 -> decoded (B, S, S, 3)
Decode = Callable[[np.ndarray, np.ndarray, list[int]], np.ndarray]

READY = 0.5  # a window is ready with this share of the known pixels of the best window
THICK = 0.75  # of S: thicker holes are repaired in a downscaled picture
SHRUNK = 0.4  # of S: their thickness in that picture
CORNER = 1.5  # in radii: a disc grown by this factor covers the corners of its bounding box
TOUCHING = np.ones((3, 3))  # 8-connectivity


@dataclass(frozen=True)
class Window:
    """A square of S x S pixels within a picture, and the core of it that is kept."""

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


def repair_in_windows(
    image: np.ndarray,
    hole: np.ndarray,
    side: int,
    decode: Decode,
    width: float,
    shows_rounds: bool = True,
) -> Iterator[np.ndarray]:
    """Yield the picture (H, W, 3) uint8 after every round of windows; the last one is finished.

    side: S. width: pixels over which borders are feathered. Pictures smaller than S are padded by
    reflection and cropped back. A picture without a hole is yielded unchanged. shows_rounds: False
    if only the last picture is used; then rounds in a downscaled picture are not enlarged.
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
        for canvas in _repair_shrunk(known, hole, thick, side, decode, width, shows_rounds):
            yield canvas
        hole = hole & ~thick


def thick_parts(hole: np.ndarray, side: int) -> np.ndarray:
    """Where holes are too thick for windows and thicker than half of the thickest, (H, W) bool.

    Thickness is the diameter of the largest inscribed disc; corners next to it are included.
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
    """Distance of each hole pixel (h, w) to the nearest known or outside pixel."""
    return ndimage.distance_transform_edt(np.pad(hole, 1))[1:-1, 1:-1]


def _repair_shrunk(
    image: np.ndarray,
    hole: np.ndarray,
    thick: np.ndarray,
    side: int,
    decode: Decode,
    width: float,
    shows_rounds: bool,
) -> Iterator[np.ndarray]:
    """Repair thick holes in a downscaled picture and yield the full-size one after each round."""
    factor = ceil(2 * _depth(thick).max() / (SHRUNK * side))
    height, width_of_image = hole.shape
    size = Size(ceil(width_of_image / factor), ceil(height / factor), "box")
    small_hole = resized(255 * hole.astype(np.uint8), size) > 0
    small = resized(image, size)

    def enlarged(repaired: np.ndarray) -> np.ndarray:
        large = resized(repaired, Size(width_of_image, height, "bicubic"))
        joined = feather(large, image, hole, factor * width)
        return np.where(thick[..., None], joined, image)

    rounds = repair_in_windows(small, small_hole, side, decode, width, shows_rounds)
    repaired = next(rounds)
    for following in rounds:  # one behind, as only the end shows which is the last
        yield enlarged(repaired) if shows_rounds else image
        repaired = following
    yield enlarged(repaired)


def _repair_rounds(
    image: np.ndarray, hole: np.ndarray, thin: np.ndarray, side: int, decode: Decode, width: float
) -> Iterator[np.ndarray]:
    """Repair only the thin holes, in windows, and yield the picture after each round."""
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

    Holes close to each other share windows. One that fits into a core gets a single window centred
    on it, for the most context.
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
    """Non-overlapping windows to repair at once, with nearly as many known pixels as the best."""
    known = {w.number: (~remaining[w.view]).mean() for w in waiting}
    best = max(known.values())
    chosen: list[Window] = []
    taken = np.zeros_like(remaining)
    for window in sorted(waiting, key=lambda w: -known[w.number]):  # stable: reading order
        ready = known[window.number] >= READY * best
        if ready and not taken[window.view].any():
            chosen.append(window)
            taken[window.view] = True
            if best == 0:  # nothing is known anywhere: start with one window
                break
    return chosen


def reflect_up(pixels: np.ndarray, side: int) -> np.ndarray:
    """Pad a picture (H, W, ...) by reflection, right and below, to at least ``side`` pixels."""
    missing = [(0, max(0, side - size)) for size in pixels.shape[:2]]
    return np.pad(pixels, missing + [(0, 0)] * (pixels.ndim - 2), mode="symmetric")


def _starts(part: slice, size: int, side: int) -> list[int]:
    """Start positions of windows along one axis whose cores cover a range of hole pixels."""
    first, last = part.start, part.stop
    if last - first <= side - 2 * (side // 8):
        starts = np.array([(first + last - side) // 2])
    else:
        first, last = first - side // 4, last + side // 4 - side
        starts = np.linspace(first, last, -(-(last - first) // (side // 2)) + 1).round()
    return sorted(set(starts.clip(0, size - side).astype(int).tolist()))
