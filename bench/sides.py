"""What repairs are measured against: every side fills the same holes of the same images.

Shapes: n images, B batch, N tokens, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from tqdm import tqdm

from bench.unet import UNet, repaired
from utils.data.datasets import normalise
from utils.data.fill import fill_hole
from utils.inpainting.inpainter import Inpainter
from utils.io.images import HOLE_COLOUR

BATCH = 16
SIDES = ("grey", "biharmonic", "telea", "unet", "ours", "true_tokens")


def side(
    name: str, inpainter: Inpainter, truth: np.ndarray, holes: np.ndarray, unet: UNet | None
) -> np.ndarray | None:
    """Repairs of one side, (n, H, W, 3) uint8, or None where it is not there."""
    masked = np.where(holes[..., None], np.uint8(HOLE_COLOUR), truth)
    if name == "grey":
        return masked
    if name == "biharmonic":
        return _classical(masked, holes, lambda image, hole: fill_hole(image, hole, "biharmonic"))
    if name == "telea":
        telea = _telea()
        return telea and _classical(masked, holes, telea)
    if name == "unet":
        return None if unet is None else repaired(unet, masked, holes, inpainter.config)
    return np.concatenate(list(_decoded(inpainter, truth, masked, holes, name)))


def _classical(
    masked: np.ndarray, holes: np.ndarray, fill: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Fill each hole from its surroundings, (n, H, W, 3) uint8."""
    return np.stack([fill(image, hole) for image, hole in zip(masked, holes, strict=True)])


def _telea() -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    """OpenCV's filling by fast marching (Telea 2004), or None where OpenCV is missing."""
    try:
        import cv2
    except ImportError:
        return None
    return lambda image, hole: cv2.inpaint(image, hole.astype(np.uint8), 3, cv2.INPAINT_TELEA)


def _decoded(
    inpainter: Inpainter, truth: np.ndarray, masked: np.ndarray, holes: np.ndarray, name: str
) -> Iterator[np.ndarray]:
    """Repairs batch by batch; only true_tokens looks at what a hole hides."""
    data = inpainter.config.data
    for start in tqdm(range(0, len(truth), BATCH), name, dynamic_ncols=True):
        part = slice(start, start + BATCH)
        if name == "true_tokens":
            pixels = normalise(truth[part], data.mean, data.std).to(inpainter.device)
            token_ids = inpainter.maskgit.encode(pixels)
        else:
            places = list(range(start, start + len(truth[part])))
            token_ids = inpainter.trace(masked[part], holes[part], places).token_ids[-1]
        yield inpainter.pixels(token_ids, masked[part], holes[part])
