"""Colour profiles: whose values a picture's pixels are."""

from __future__ import annotations

import io

from PIL import Image, ImageCms

PROFILE = "icc_profile"  # Pillow's name of it among what an image comes with
SPACE = slice(16, 20)  # bytes of a profile that name the colour space of the pixels
SRGB_GAMMA, CLOSE = 1 / 2.2, 0.01  # of a PNG that states a gamma instead of a profile


def profile_of(image: Image.Image) -> bytes | None:
    """The ICC profile of RGB values that an image comes with, which a result may keep."""
    profile = image.info.get(PROFILE)
    return profile if profile and profile[SPACE] == b"RGB " else None


def is_foreign(image: Image.Image) -> bool:
    """Whether an image states colours other than sRGB in a way that its RGB pixels cannot keep."""
    profile, gamma = image.info.get(PROFILE), image.info.get("gamma", SRGB_GAMMA)
    if profile or "srgb" in image.info:
        return bool(profile) and image.mode != "CMYK" and profile_of(image) is None
    return abs(gamma - SRGB_GAMMA) > CLOSE


def is_srgb(image: Image.Image) -> bool:
    """Whether an image's RGB profile, if it has one, is that of sRGB by its own description."""
    profile = profile_of(image)
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
