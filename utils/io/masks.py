"""Hole masks as people save them: 8 bits, 0 and 1, 16 or 32 bits, fractions, blurred, alpha.

A mask file has 255 where a pixel is known and 0 where it is a hole; in memory a hole is True.
Letters: H height, W width, in pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from config.errors import UserError
from utils.io.images import HOLE, KNOWN, MASK_THRESHOLD, read_image, to_rgb
from utils.io.notes import tell_once

COLOURED = 48  # difference of channels that JPEG does not make
LARGEST = (1, 255, 2**16 - 1, 2**32 - 1)  # values that stand for known in masks of other types


def load_mask(
    path: Path, threshold: int = MASK_THRESHOLD, *, from_alpha: bool = False
) -> np.ndarray:
    """Read a mask file as a bool array (H, W), True = hole.

    Values 0 and 1 count as 0 and 255, those of 16 and 32 bits by what they hold. Others are split:
    below the threshold is a hole, as at edges that are blurred or stored as JPEG. from_alpha: the
    hole is where the picture is transparent. What had to be decided so is noted once. Raises
    UserError for a mask in colour and for values that are none of a mask.
    """
    image = read_image(path, str(path))
    if from_alpha:
        if not image.has_transparency_data:
            raise UserError(f"{path}: has no alpha channel, which --masks alpha takes holes from")
        return np.asarray(image.convert("RGBA"))[..., 3] < threshold
    is_wide = image.mode.startswith(("F", "I"))  # floating point, 16 or 32 bits
    values = _scaled(image, path) if is_wide else _grey(image, path)
    if values.max(initial=0) == 1:
        tell_once("mask 0/1", f"{path}: a mask of 0 and 1, taken as 0 (hole) and 255 (known)")
        return values == HOLE
    if not ((values == KNOWN) | (values == HOLE)).all():
        text = f"values other than 0 and 255 in masks; below {threshold} is a hole"
        tell_once("mask values", f"{path}: {text} (--mask-threshold)")
    return values < threshold


def as_hole(mask: Image.Image | np.ndarray, image: np.ndarray) -> np.ndarray:
    """A mask as hole (H, W) bool of an image (H, W, 3) uint8; raises `UserError` if it is none."""
    hole = np.asarray(mask.convert("L") if isinstance(mask, Image.Image) else mask)
    hole = hole if hole.dtype == bool else hole < MASK_THRESHOLD
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise UserError(f"image: {image.dtype} {image.shape}; needed is uint8 (H, W, 3)")
    if hole.shape != image.shape[:2]:
        raise UserError(f"mask: {hole.shape}, but the image is {image.shape[:2]}")
    return hole


def _grey(image: Image.Image, path: Path) -> np.ndarray:
    """Values of a mask of 8 bits a channel, uint8 (H, W)."""
    if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
        raise UserError(
            f"{path}: a mask must not be transparent; save it as a grey PNG, or give "
            "--masks alpha if the pictures' own transparency is the hole"
        )
    pixels = np.asarray(to_rgb(image, str(path)))
    if np.ptp(pixels, axis=-1).max(initial=0) > COLOURED:
        raise UserError(f"{path}: a mask must be grey, this one has coloured pixels")
    return pixels[..., 0]


def _scaled(image: Image.Image, path: Path) -> np.ndarray:
    """Values of a mask of 16 or 32 bits or fractions, float64 (H, W) in 0..255; 0 and 1 stay."""
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    if not 0 <= low <= high <= LARGEST[-1]:  # neither is a NaN
        raise UserError(
            f"{path}: a mask with values from {low:g} to {high:g}; allowed are 0 (hole) to 1, 255 "
            "or 65535 (known)"
        )
    if ((values == 0) | (values == 1)).all():
        return values
    return values / min(top for top in LARGEST if high <= top) * KNOWN
