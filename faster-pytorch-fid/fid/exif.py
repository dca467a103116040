"""EXIF of an image: which way up it is. Shared with the suite.

Damaged EXIF counts as none, as in every viewer: it changes no pixel.
"""

from __future__ import annotations

import struct
import warnings

from PIL import ExifTags, Image

BROKEN = (  # what Pillow raises on damaged EXIF
    *(SyntaxError, ValueError, TypeError, KeyError, AttributeError, OverflowError, OSError),
    struct.error,
)
TURNS = {  # EXIF orientation: how to turn the stored pixels upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ON_ITS_SIDE = (5, 6, 7, 8)


def exif_of(image: Image.Image) -> Image.Exif:
    """The EXIF of an image, or of its XMP; empty if there is none or it is damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about entries that it skips
        try:
            return image.getexif()
        except BROKEN:
            return Image.Exif()


def is_on_its_side(image: Image.Image) -> bool:
    """Whether the EXIF orientation swaps width and height."""
    return exif_of(image).get(ExifTags.Base.Orientation) in ON_ITS_SIDE


def upright(image: Image.Image) -> Image.Image:
    """A copy turned as the EXIF says. Unlike Pillow's `exif_transpose`, which writes the other
    tags again, it does not fail on tags of a wrong type.
    """
    image.load()
    turn = TURNS.get(exif_of(image).get(ExifTags.Base.Orientation))
    return image.copy() if turn is None else image.transpose(turn)
