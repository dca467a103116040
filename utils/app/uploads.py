"""What visitors hand in, checked before use: picture files, and what the brush painted."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import Any

import numpy as np

from config.errors import UserError
from utils.data.sources import square_crop
from utils.io.colour import to_srgb
from utils.io.images import load_rgb
from utils.pictures import embed

MAX_FILE_BYTES = 8_000_000  # of an uploaded picture
MAX_BODY_BYTES = 9_000_000  # of any request
PNG_URL = "data:image/png;base64,"

Painted = dict[str, Any]  # {"side": pixels, "image": PNG as a data URL, "hole": "0110..."}


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
