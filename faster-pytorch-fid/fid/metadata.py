"""What the metadata of an image say about its pixels: which way up, and in which colour space.

Shared with the suite. Damaged EXIF counts as none, as in every viewer: it changes no pixel.
"""

from __future__ import annotations

import io
import struct
import warnings

from PIL import ExifTags, Image, ImageCms, PngImagePlugin

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
SPACE = slice(16, 20)  # bytes of a profile that name the colour space
SRGB_GAMMA = 1 / 2.2  # for a PNG with gamma and primaries instead of a profile
SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # white, red, green, blue
CLOSE = 0.01  # tolerance for these values
ADOBE_RGB = "R03"  # written by cameras to EXIF instead of a profile


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
    """An image's ICC profile for RGB values, for a result to keep, or None.

    None also for a profile larger than PNG readers decompress.
    """
    profile = image.info.get(PROFILE)
    is_kept = profile and profile[SPACE] == b"RGB "
    return profile if is_kept and len(profile) <= PngImagePlugin.MAX_TEXT_CHUNK else None


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


def is_srgb(image: Image.Image) -> bool:
    """Whether an image's RGB profile is sRGB, or absent."""
    return describes_srgb(profile_of(image))


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
    if is_srgb(image):
        return image
    profile = io.BytesIO(image.info[PROFILE])
    try:
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"))
    except (ImageCms.PyCMSError, OSError):
        return image
