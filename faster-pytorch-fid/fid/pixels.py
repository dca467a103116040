"""From the bytes of an image to pixels: which way up, in which colour space, as RGB or as a mask.

Shared with the suite. Pixels are (H, W, 3) uint8 RGB in 0..255. Damaged EXIF counts as none, as in
every viewer: it changes no pixel.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from fid.files import ScoreError, check_limit, note, of_the_machine
from fid.names import FORMATS

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
PROFILE = "icc_profile"  # Pillow's key in `Image.info`
LARGEST_PROFILE = PngImagePlugin.MAX_TEXT_CHUNK  # bytes that PNG readers decompress
PngImagePlugin.MAX_TEXT_CHUNK = 16 * 2**20  # Pillow refuses the whole PNG beyond it
SPACE = slice(16, 20)  # bytes of a profile that name the colour space
SRGB_GAMMA = 1 / 2.2  # for a PNG with gamma and primaries instead of a profile
SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # white, red, green, blue
CLOSE = 0.01  # tolerance for these values
ADOBE_RGB = "R03"  # written by cameras to EXIF instead of a profile
COLOURED = 48  # channel difference in a mask that JPEG artefacts cannot explain
LARGEST = (1, 255, 2**16 - 1, 2**32 - 1)  # possible values of "known" in a mask
MASK_THRESHOLD = 128  # values below are a hole, unless another threshold is stated
FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")


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


def profile_of(image: Image.Image) -> bytes | None:
    """An image's ICC profile for RGB values; None for one larger than PNG readers decompress."""
    profile = image.info.get(PROFILE)
    if not isinstance(profile, bytes) or profile[SPACE] != b"RGB ":  # a TIFF may have a number
        return None
    return profile if len(profile) <= LARGEST_PROFILE else None


def is_foreign(image: Image.Image) -> bool:
    """Whether an image declares a colour space other than sRGB that RGB pixels cannot preserve."""
    info = image.info
    if info.get(PROFILE):
        return image.mode != "CMYK" and profile_of(image) is None
    if "srgb" in info:
        return False
    stated = info.get("gamma", SRGB_GAMMA), *info.get("chromaticity", SRGB_PRIMARIES)
    srgb = zip(stated, (SRGB_GAMMA, *SRGB_PRIMARIES), strict=False)  # damaged chunks have fewer
    return any(abs(found - wanted) > CLOSE for found, wanted in srgb) or _is_adobe_rgb(image)


def _is_adobe_rgb(image: Image.Image) -> bool:
    """Whether EXIF says Adobe RGB, as cameras write it (DCF 2.0)."""
    if "exif" not in image.info:
        return False
    try:
        return exif_of(image).get_ifd(ExifTags.IFD.Interop).get(1) == ADOBE_RGB
    except BROKEN:
        return False


def describes_srgb(profile: bytes | None) -> bool:
    """Whether an RGB profile describes itself as sRGB; True for None."""
    if profile is None:
        return True
    try:
        return "sRGB" in ImageCms.getProfileDescription(io.BytesIO(profile))
    except (ImageCms.PyCMSError, OSError):
        return False


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert an RGB image from its profile to sRGB; unchanged if the profile is broken."""
    if describes_srgb(profile_of(image)):
        return image
    profile = io.BytesIO(image.info[PROFILE])
    try:
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"))
    except (ImageCms.PyCMSError, OSError):
        return image


def as_rgb(
    image: Image.Image, name: str, tell: Callable[[str], None] = lambda loss: None
) -> Image.Image:
    """Convert any mode to 8-bit RGB; 16 bits as value / 257, transparency over white.

    tell: called with what is lost, "depth", "dark" (16 bits without a value above 255), "alpha" or
    "cmyk". Raises `ScoreError` for unsupported pixel types.
    """
    advice = "save it with 8 or 16 bits a channel"
    if image.mode == "F":
        raise ScoreError(f"{name}: floating-point pixels; {advice}")
    try:
        if image.mode.startswith("I"):  # "I;16" and its byte orders, or "I" for 16 bits in 32
            values = np.asarray(image).astype(np.int64)
            if values.min() < 0 or values.max() > 65535:
                raise ScoreError(f"{name}: values beyond 16 bits; {advice}")
            tell("depth" if values.max() > 255 else "dark")
            image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            if image.getextrema()[3][0] < 255:
                tell("alpha")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        elif image.mode == "CMYK":
            tell("cmyk")
        return image.convert("RGB")
    except ValueError:
        raise ScoreError(f"{name}: pixels of type {image.mode} are not read; save as RGB") from None


def rgb_pixels(image: Image.Image, name: str) -> np.ndarray:
    """Pixels of an image, (H, W, 3) uint8. Raises `ScoreError` for unsupported pixel types."""
    return np.asarray(as_rgb(image, name))


def decode_image(
    data: bytes, name: str, values: Callable[[Image.Image, str], np.ndarray] = rgb_pixels
) -> np.ndarray:
    """Decode an image, upright according to its EXIF, to RGB pixels or what ``values`` returns.

    Takes an animation's first frame, reduces 16 bits to 8, and composites transparency over white.
    Raises `ScoreError` for a file that is not an image, broken or too large, or for float pixels.
    """
    Image.MAX_IMAGE_PIXELS = None  # check_limit below applies our own before decoding
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            size = f"{image.width} x {image.height}"
            check_limit("pixels", image.width * image.height, f"{name}: {size}")
            if values is rgb_pixels and (
                is_foreign(image) or not describes_srgb(profile_of(image))
            ):
                text = "declares a colour space other than sRGB; its values are not converted"
                note(f"{name} {text}", once="colours")
            return values(upright(image), name)
    except (ScoreError, MemoryError):
        raise
    except Exception as error:  # decoders raise almost any exception on broken bytes
        if of_the_machine(error):
            raise
        reason = str(error).partition("\n")[0].partition(" <_io")[0]
        raise ScoreError(f"{name}: not a readable image ({reason})") from None


def mask_values(image: Image.Image, name: str) -> np.ndarray:
    """Values of a mask, (H, W) in 0..255; a mask of only 0 and 1 is returned unscaled.

    Raises `ScoreError` for colour, transparency, or values outside the allowed ranges.
    """
    if image.mode.startswith(("F", "I")):  # floating point, 16 or 32 bits
        values = np.asarray(image).astype(np.float64)
        low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
        if not 0 <= low <= high <= LARGEST[-1]:  # also rejects NaN
            found = f"a mask with values from {low:g} to {high:g}"
            raise ScoreError(f"{name}: {found}; allowed are 0 (hole) to 1, 255 or 65535 (known)")
        is_binary = ((values == 0) | (values == 1)).all()
        return values if is_binary else values / min(v for v in LARGEST if high <= v) * 255
    if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
        raise ScoreError(
            f"{name}: a mask must not be transparent; save it as a grey PNG, or repair with "
            "--masks alpha if the pictures' own transparency is the hole"
        )
    pixels = rgb_pixels(image, name)
    if np.ptp(pixels, axis=-1).max(initial=0) > COLOURED:
        raise ScoreError(f"{name}: a mask must be grey, this one has coloured pixels")
    return pixels[..., 0]


def holes(values: np.ndarray, threshold: int, name: str) -> np.ndarray:
    """Hole pixels of a mask, bool: values below the threshold, or 0 in a mask of 0 and 1.

    Raises `ScoreError` for different values that are all dark, as those of a label map.
    """
    low, high = values.min(initial=255), values.max(initial=0)
    if low < high and 1 < high < min(threshold, MASK_THRESHOLD):
        raise ScoreError(f"{name}: values {low:g} to {high:g}, all below {threshold}; known is 255")
    return values == 0 if high == 1 else values < threshold


class Size(NamedTuple):
    """Width and height in pixels, and the name of Pillow's filter."""

    width: int
    height: int
    filter: str = "bicubic"

    @classmethod
    def read(cls, text: str) -> Size:
        """Parse --resize: 64x64, or 64x64:lanczos for a filter other than bicubic."""
        found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})(?::(\w+))?", text)
        if not found or (found[3] or "bicubic") not in FILTERS:
            allowed = f"WIDTHxHEIGHT or WIDTHxHEIGHT:FILTER with one of {', '.join(FILTERS)}"
            raise ArgumentTypeError(f"{text!r} is no {allowed}")
        return cls(int(found[1]), int(found[2]), found[3] or "bicubic")


def resized(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Resize pixels (H, W) or (H, W, 3) uint8; returned unchanged if they have that size."""
    if pixels.shape[:2] == (size.height, size.width):
        return pixels
    chosen = Image.Resampling[size.filter.upper()]
    return np.asarray(Image.fromarray(pixels).resize(size[:2], chosen))
