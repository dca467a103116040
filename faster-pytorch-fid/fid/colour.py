"""Colour profiles: whose values a picture's pixels are. The suite asks here too."""

from __future__ import annotations

import io
import struct

from PIL import ExifTags, Image, ImageCms, PngImagePlugin

PROFILE = "icc_profile"  # Pillow's name of it among what an image comes with
SPACE = slice(16, 20)  # bytes of a profile that name the colour space of the pixels
SRGB_GAMMA = 1 / 2.2  # of a PNG that states a gamma and primaries instead of a profile
SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # white, red, green, blue
CLOSE = 0.01  # in which these may differ
ADOBE_RGB = "R03"  # what cameras write into their EXIF instead of a profile


def profile_of(image: Image.Image) -> bytes | None:
    """The ICC profile of RGB values that an image comes with, which a result may keep.

    None for one larger than readers of a PNG unpack.
    """
    profile = image.info.get(PROFILE)
    is_kept = profile and profile[SPACE] == b"RGB "
    return profile if is_kept and len(profile) <= PngImagePlugin.MAX_TEXT_CHUNK else None


def is_foreign(image: Image.Image) -> bool:
    """Whether an image states colours other than sRGB in a way that its RGB pixels cannot keep."""
    info = image.info
    if info.get(PROFILE):
        return image.mode != "CMYK" and profile_of(image) is None
    if "srgb" in info:
        return False
    stated = info.get("gamma", SRGB_GAMMA), *info.get("chromaticity", SRGB_PRIMARIES)
    srgb = zip(stated, (SRGB_GAMMA, *SRGB_PRIMARIES), strict=True)
    return any(abs(found - wanted) > CLOSE for found, wanted in srgb) or _is_adobe_rgb(image)


def _is_adobe_rgb(image: Image.Image) -> bool:
    """Whether a camera took a picture in its mode Adobe RGB (DCF 2.0)."""
    if "exif" not in image.info:
        return False
    try:
        return image.getexif().get_ifd(ExifTags.IFD.Interop).get(1) == ADOBE_RGB
    except (KeyError, TypeError, ValueError, struct.error):  # none there, or broken
        return False


def is_srgb(image: Image.Image) -> bool:
    """Whether an image's RGB profile, if it has one, is that of sRGB."""
    return describes_srgb(profile_of(image))


def describes_srgb(profile: bytes | None) -> bool:
    """Whether a profile of RGB is that of sRGB by its own description; none is, too."""
    if profile is None:
        return True
    try:
        return "sRGB" in ImageCms.getProfileDescription(io.BytesIO(profile))
    except (ImageCms.PyCMSError, OSError):
        return False


def to_srgb(image: Image.Image) -> Image.Image:
    """An RGB image with its profile's colours as sRGB values; as it is if the profile is broken."""
    if is_srgb(image):
        return image
    profile = io.BytesIO(image.info[PROFILE])
    try:
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"))
    except (ImageCms.PyCMSError, OSError):
        return image
