"""Image grids, comparison strips and animations.

Images are (H, W, 3) uint8, token masks (T, N) bool, True = hidden.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from fid.pixels import PROFILE, to_srgb
from PIL import Image

MASKS_PER_ROW = 10
IMAGES_PER_ROW = 7
GAP = 2  # pixels between tiles
ENLARGED = 2  # scale factor of small images on a page
FRAME_MS, LAST_FRAME_MS = 300, 1500  # durations in an animation
ANIMATION_SIDE = 256  # pixels up to which small images are enlarged


def mask_images(token_masks: np.ndarray) -> np.ndarray:
    """Token masks (T, N) as images (T, h, w, 3) uint8, white known, black hidden."""
    side = math.isqrt(token_masks.shape[1])
    grey = np.where(token_masks, 0, 255).astype(np.uint8)
    return grey.reshape(-1, side, side, 1).repeat(3, -1)


def mask_grid(token_masks: np.ndarray, steps: int) -> np.ndarray:
    """The masks (T, N) after each step, 10 per row; steps not run are black."""
    return tile(mask_images(token_masks), steps, MASKS_PER_ROW)


def image_grid(images: Sequence[np.ndarray], steps: int) -> np.ndarray:
    """The masked input, then the image after each step, 7 per row; steps not run are black."""
    return tile(images, 1 + steps, IMAGES_PER_ROW)


def comparison_strip(
    masked: np.ndarray, inpainted: np.ndarray, truth: np.ndarray | None
) -> np.ndarray:
    """Masked, inpainted and, if known, ground truth, side by side."""
    images = [masked, inpainted, *([] if truth is None else [truth])]
    return tile(images, len(images), len(images))


def comparison(
    masked: Sequence[np.ndarray],
    inpainted: Sequence[np.ndarray],
    truth: Sequence[np.ndarray | None],
) -> dict[str, np.ndarray]:
    """The rows masked, inpainted and, if known, truth, as one enlarged image each."""
    rows = {"masked": masked, "inpainted": inpainted, "truth": truth}
    return {
        name: enlarged(tile(images, len(images), len(images)))
        for name, images in rows.items()
        if all(image is not None for image in images)
    }


def enlarged(image: np.ndarray, factor: int = ENLARGED) -> np.ndarray:
    """Enlarge an image (H, W, 3) by an integer factor, nearest neighbour."""
    return image.repeat(factor, 0).repeat(factor, 1)


def encode_animation(
    images: Sequence[np.ndarray], kind: str, stamp: str, profile: bytes | None = None
) -> bytes:
    """A looping GIF or lossless WebP of the decoding, enlarged if small; the last frame is longer.

    kind: "gif" or "webp". stamp: ASCII text stored in the file (utils/inpainting/outputs.py).
    profile: ICC profile; a WebP embeds it, for a GIF the colours are converted to sRGB.
    """
    factor = max(1, ANIMATION_SIDE // max(images[0].shape[:2]))
    frames = [Image.fromarray(enlarged(image, factor)) for image in images]
    if profile and kind == "gif":
        for frame in frames:
            frame.info[PROFILE] = profile
        frames = [to_srgb(frame) for frame in frames]
    options: dict[str, Any] = {
        "gif": {"optimize": False, "disposal": 1, "comment": stamp.encode()},
        "webp": {"lossless": True, "xmp": stamp.encode(), PROFILE: profile},
    }[kind]
    options["duration"] = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    buffer = io.BytesIO()
    frames[0].save(buffer, format=kind, save_all=True, append_images=frames[1:], loop=0, **options)
    return buffer.getvalue()


def tile(images: Sequence[np.ndarray] | np.ndarray, places: int, per_row: int) -> np.ndarray:
    """Images in a grid with black gaps and black empty places, (height, width, 3) uint8.

    torchvision's make_grid would make every repair start three seconds later.
    """
    height, width, _ = images[0].shape
    rows, columns = -(-places // per_row), min(places, per_row)
    cells = np.zeros((rows * columns, height + GAP, width + GAP, 3), np.uint8)
    cells[: len(images), GAP:, GAP:] = images
    grid = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    grid = grid.reshape(rows * (height + GAP), columns * (width + GAP), 3)
    return np.pad(grid, ((0, GAP), (0, GAP), (0, 0)))
