"""How a decoded image meets the known pixels around its holes.

Images are (H, W, 3) uint8, holes (H, W) bool, True = hidden. `hard` and `feather` change nothing
outside the hole: known pixels stay as they are, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import distance_transform_edt

from utils.data.fill import harmonic

Composite = Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]


def none(decoded: np.ndarray, image: np.ndarray, hole: np.ndarray, width: float) -> np.ndarray:
    """The decoded image as it is."""
    return decoded


def hard(decoded: np.ndarray, image: np.ndarray, hole: np.ndarray, width: float) -> np.ndarray:
    """Known pixels pasted over the decoded image."""
    return np.where(hole[..., None], decoded, image)


def feather(decoded: np.ndarray, image: np.ndarray, hole: np.ndarray, width: float) -> np.ndarray:
    """Known pixels pasted over, and the hole corrected so that no seam shows at its border.

    What the decoder gets wrong around the hole goes on into it as a membrane (Pérez et al. 2003,
    section 2), in full at the first pixel and faded out by a cosine over ``width`` pixels.
    """
    if hole.all() or not hole.any():
        return hard(decoded, image, hole, width)
    error = image.astype(float) - decoded
    depth = distance_transform_edt(hole)[hole]  # pixels from the nearest known one, from 1
    fade = (1 + np.cos(np.pi * np.minimum((depth - 1) / width, 1))) / 2
    correction = fade[:, None] * harmonic(error, hole)
    blended = image.copy()
    blended[hole] = (decoded[hole] + correction).round().clip(0, 255)
    return blended


COMPOSITES: dict[str, Composite] = {"none": none, "hard": hard, "feather": feather}


def composite(
    decoded: np.ndarray, image: np.ndarray, hole: np.ndarray, kind: str, width: float
) -> np.ndarray:
    """Join a decoded image with the known pixels of the given one, (H, W, 3) uint8."""
    return COMPOSITES[kind](decoded, image, hole, width)
