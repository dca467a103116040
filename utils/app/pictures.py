"""Pictures to paint on: samples, uploads, and what the brush painted, checked before use.

Samples may be handed on: public-domain photographs, and what the model itself draws.
"""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import Any

import numpy as np
from fid.colour import to_srgb

from config.errors import UserError
from utils.data.photos import photo_path
from utils.data.sources import square_crop
from utils.inpainting.inpainter import Inpainter
from utils.io.images import load_rgb
from utils.pictures import embed

MAX_FILE_BYTES = 8_000_000  # of an uploaded picture
MAX_BODY_BYTES = 9_000_000  # of any request
PNG_URL = "data:image/png;base64,"
CROPS = {  # name: photograph of scikit-image (utils/data/photos.py has the terms), box in pixels
    "Chelsea the cat": ("chelsea.png", (70, 0, 370, 300)),
    "astronaut": ("astronaut.png", (110, 0, 360, 250)),
    "coffee cup": ("coffee.png", (90, 0, 490, 400)),
    "rocket": ("rocket.jpg", (200, 110, 517, 427)),
}
DRAWN = 2  # pictures that the model draws itself

Painted = dict[str, Any]  # {"side": pixels, "image": PNG as a data URL, "hole": "0110..."}
Samples = dict[str, np.ndarray]  # name -> uint8 (side, side, 3)


def photographs(side: int) -> Samples:
    return {
        name: square_crop(load_rgb(photo_path(file), file).crop(box), side)
        for name, (file, box) in CROPS.items()
    }


def drawn(inpainter: Inpainter) -> Samples:
    """What the model makes of a picture that is all hole; it comes from the config's seed."""
    side = inpainter.config.data.image_size
    images = np.zeros((DRAWN, side, side, 3), dtype=np.uint8)
    holes = np.ones((DRAWN, side, side), dtype=bool)
    trace = inpainter.decode(images, holes, list(range(DRAWN)), samples=1)
    pixels = inpainter.pixels(trace.token_ids[-1], images, holes)
    return {f"drawn by the model ({i + 1})": one for i, one in enumerate(pixels)}


def read_upload(file: Path, side: int) -> np.ndarray:
    """Cut an uploaded picture to (side, side, 3) uint8, in sRGB as pages show it, and delete it.

    Raises `UserError` for what is no picture, or one of too many pixels.
    """
    try:
        return square_crop(to_srgb(load_rgb(file, file.name)), side)
    finally:
        file.unlink(missing_ok=True)


def as_painted(image: np.ndarray, hole: np.ndarray | None = None) -> Painted:
    """A picture with its hole in the form in which the page keeps it."""
    hole = np.zeros(image.shape[:2], dtype=bool) if hole is None else hole
    marks = "".join("01"[cell] for cell in hole.ravel().astype(int))
    return {"side": len(image), "image": embed(image), "hole": marks}


def read_painted(
    painted: object, side: int, needs_hole: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Picture (side, side, 3) uint8 and hole (side, side) bool; nothing is taken on trust.

    Raises `UserError` when there is no picture, no hole, or when either has another form.
    """
    if not isinstance(painted, dict) or not painted.get("image"):
        raise UserError("There is no picture yet: choose a sample or upload one.")
    image, marks = painted["image"], painted.get("hole")
    if not isinstance(image, str) or not isinstance(marks, str):
        raise UserError("the picture is not in the page's own form")
    pixels = _read_png(image)
    if pixels.shape != (side, side, 3) or len(marks) != side * side or set(marks) - {"0", "1"}:
        raise UserError(f"the picture or its hole is not {side} x {side}: choose a picture again")
    hole = np.frombuffer(marks.encode("ascii"), np.uint8).reshape(side, side) == ord("1")
    if needs_hole and not hole.any():
        raise UserError("There is no hole yet: paint on the picture, or draw a random one.")
    return pixels, hole


def _read_png(url: str) -> np.ndarray:
    try:
        content = base64.b64decode(url.removeprefix(PNG_URL), validate=True)
    except binascii.Error:
        raise UserError("the picture is not in the page's own form") from None
    return np.asarray(load_rgb(io.BytesIO(content), "the picture"))
