"""Compositing of a decoded image with the known pixels around its holes.

Images are (H, W, 3) uint8, holes (H, W) bool, True = hidden. `hard` and `feather` change nothing
outside the hole: known pixels stay as they are, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import distance_transform_edt

from utils.data.fill import harmonic

SMALL = 2**16  # pixels; smaller pictures are not cropped to the hole, since their sizes recur
Composite = Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]


def none(decoded: np.ndarray, image: np.ndarray, hole: np.ndarray, width: float) -> np.ndarray:
    """The decoded image, unchanged."""
    return decoded


def hard(decoded: np.ndarray, image: np.ndarray, hole: np.ndarray, width: float) -> np.ndarray:
    """Known pixels pasted over the decoded image."""
    return np.where(hole[..., None], decoded, image)


def feather(decoded: np.ndarray, image: np.ndarray, hole: np.ndarray, width: float) -> np.ndarray:
    """Known pixels pasted over, and the hole corrected so that no seam shows at its border.

    The decoder's error around the hole is extended into it as a membrane (Pérez et al. 2003,
    section 2), in full at the first pixel and faded out with a cosine over ``width`` pixels.
    """
    if hole.all() or not hole.any():
        return hard(decoded, image, hole, width)
    box = _around(hole) if hole.size > SMALL else np.s_[:, :]
    error = image[box].astype(float) - decoded[box]
    depth = distance_transform_edt(hole[box])[hole[box]]  # pixels from the nearest known one
    fade = (1 + np.cos(np.pi * np.minimum((depth - 1) / width, 1))) / 2
    correction = fade[:, None] * harmonic(error, hole[box])
    blended = image.copy()
    blended[hole] = (decoded[hole] + correction).round().clip(0, 255)
    return blended


def _around(hole: np.ndarray) -> tuple[slice, slice]:
    """The bounding box of a hole, one pixel wider on all sides."""
    rows, columns = (np.flatnonzero(hole.any(axis)) for axis in (1, 0))
    first = max(rows[0] - 1, 0), max(columns[0] - 1, 0)
    return slice(first[0], rows[-1] + 2), slice(first[1], columns[-1] + 2)


COMPOSITES: dict[str, Composite] = {"none": none, "hard": hard, "feather": feather}


def composite(
    decoded: np.ndarray, image: np.ndarray, hole: np.ndarray, kind: str, width: float
) -> np.ndarray:
    """Join a decoded image with the known pixels of the given one, (H, W, 3) uint8."""
    return COMPOSITES[kind](decoded, image, hole, width)
