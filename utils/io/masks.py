"""Read hole masks in all common forms: 8, 16 or 32 bits, 0 and 1, fractions, blurred, alpha.

A mask file has 255 where a pixel is known and 0 where it is a hole; in memory a hole is True.
Letters: H height, W width, in pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fid.pixels import holes, mask_values, upright
from PIL import Image

from config.errors import UserError
from utils.io.images import HOLE, KNOWN, MASK_THRESHOLD, read_image
from utils.io.limits import as_user_error
from utils.io.notes import note_once


def load_mask(
    path: Path, threshold: int = MASK_THRESHOLD, *, from_alpha: bool = False
) -> np.ndarray:
    """Read a mask file as a bool array (H, W), True = hole.

    0 and 1 are read as 0 and 255; 16 and 32 bits are scaled by their range. Other values, as from
    blurred or JPEG edges, are a hole below the threshold. Such interpretations are noted once.
    from_alpha: the hole is where the image is transparent. Raises UserError for a mask with colour
    or with invalid values.
    """
    image = read_image(path, str(path))
    if from_alpha:
        if not image.has_transparency_data:
            raise UserError(f"{path}: has no alpha channel, which --masks alpha takes holes from")
        return np.asarray(image.convert("RGBA"))[..., 3] < threshold
    return _hole_of(image, str(path), threshold)


def _hole_of(image: Image.Image, name: str, threshold: int = MASK_THRESHOLD) -> np.ndarray:
    with as_user_error():
        values = mask_values(image, name)
    if values.max(initial=0) == 1:
        note_once("mask 0/1", f"{name}: a mask of 0 and 1, taken as 0 (hole) and 255 (known)")
    elif not ((values == KNOWN) | (values == HOLE)).all():
        text = f"values other than 0 and 255 in masks; below {threshold} is a hole"
        note_once("mask values", f"{name}: {text} (--mask-threshold)")
    return holes(values, threshold)


def as_hole(mask: Image.Image | np.ndarray, image: np.ndarray) -> np.ndarray:
    """Convert a mask to a hole (H, W) bool for an image (H, W, 3) uint8.

    Raises `UserError` for an invalid mask or image, or different sizes.
    """
    if isinstance(mask, Image.Image):
        mask = _hole_of(upright(mask), "mask")
    hole = mask if mask.dtype == bool else holes(mask, MASK_THRESHOLD)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise UserError(f"image: {image.dtype} {image.shape}; needed is uint8 (H, W, 3)")
    if hole.shape != image.shape[:2]:
        raise UserError(f"mask: {hole.shape}, but the image is {image.shape[:2]}")
    return hole
