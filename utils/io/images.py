"""Read and write images and hole masks; all errors are one line with the file name.

All modes become 8-bit RGB. A mask file, in any common form (8, 16 or 32 bits, 0 and 1, fractions,
blurred, alpha), has 255 where a pixel is known and 0 where it is a hole; in memory a hole is True.
Letters: H height, W width, in pixels.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from fid.names import FORMATS
from fid.pixels import (
    MASK_THRESHOLD,
    PROFILE,
    as_rgb,
    describes_srgb,
    holes,
    is_foreign,
    mask_values,
    profile_of,
    upright,
)
from PIL import Image, TiffImagePlugin, WebPImagePlugin

from config.errors import StopRequested, UserError
from utils.io.files import atomic
from utils.io.messages import as_user_error, check_limit, limit, note_once, raise_if_machine

PLUGINS = (TiffImagePlugin, WebPImagePlugin)  # importing these two, and with preinit
Image.preinit()  # the other formats, keeps Image.open from importing all of Pillow's, 0.2 s
KNOWN, HOLE = 255, 0  # values of a mask file
HOLE_COLOUR = 128  # grey of painted holes in masked images
ANIMATED = ("GIF", "PNG", "TIFF", "WEBP")  # formats for which further frames are noted
LOSSES = {  # what a conversion loses: text of its note
    "frames": "has several frames or pages; the first is used",
    "alpha": "is partly transparent; it is composited over white",
    "depth": "has 16 bits per channel; 8 are used",
    "dark": "has 16 bits or more but no value above 255, so it becomes nearly black; "
    "if its values are of 8 bits, save it with 8",
    "cmyk": "is in CMYK; it is converted without its colour profile",
    "colours": "declares a colour space other than sRGB, by gamma, primaries, a camera's Adobe RGB "
    "or a profile that an RGB PNG cannot keep; it is left out",
    "profile": "has a colour profile; it is left out, so colours may look different",
}


def load_rgb(source: Path | BinaryIO, name: str | None = None) -> Image.Image:
    """Read one image as 8-bit RGB, turned upright by its EXIF orientation.

    Grey, palette, CMYK and 16-bit images are converted (16 bits as value / 257), transparency is
    composited over white, and only the first frame of an animation is used. An RGB profile is not
    applied but kept (fid/pixels.py). The first file of each kind of loss is noted on stderr.
    `name` is used for the file in messages. Raises UserError if it cannot be read.
    """
    name = name or str(source)
    return to_rgb(read_image(source, name), name)


def note_profile(profile: bytes | None, name: str) -> None:
    """Note the first image whose RGB profile is lost because the output has none."""
    if not describes_srgb(profile):
        _tell("profile", name)


@contextmanager
def opened(source: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """Open an image, reading only its header; `read_image` checks the number of pixels.

    Raises UserError if it cannot be read, also for errors within the block.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # we report these ourselves, once
            with _open(source, name) as image:
                yield image
    except (UserError, StopRequested):
        raise
    except FileNotFoundError:
        is_link = isinstance(source, Path) and source.is_symlink()
        reason = "links to a file that is not there" if is_link else "no such file"
        raise UserError(f"{name}: {reason}") from None
    except IsADirectoryError:
        raise UserError(f"{name}: is a folder, not an image") from None
    except PermissionError:
        raise UserError(f"{name}: no permission to read this file") from None
    except Exception as error:  # decoders raise almost any exception on broken bytes
        raise_if_machine(error, name)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = f"not an image that can be decoded; formats are {', '.join(FORMATS)}"
        raise UserError(f"{name}: cannot be read as an image: {reason}") from error


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of a uint8 array, (H, W) grey or (H, W, 3) RGB."""
    assert image.dtype == np.uint8, f"PNG pixels are uint8, not {image.dtype}"
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def save_png(path: Path, image: np.ndarray) -> None:
    """Write a PNG atomically."""
    with atomic(Path(path)) as temporary:
        temporary.write_bytes(encode_png(image))


def read_image(source: Path | BinaryIO, name: str) -> Image.Image:
    """Decode the first frame in its own mode, upright; raises UserError beyond the pixel limit."""
    with opened(source, name) as image:
        check_limit("pixels", image.width * image.height, f"{name}: {image.width} x {image.height}")
        if _has_deep_colours(image):
            _tell("depth", name)
        turned = upright(image)
        if image.format in ANIMATED and _has_more_frames(image):
            _tell("frames", name)
        return turned


def _open(source: Path | BinaryIO, name: str) -> Image.Image:
    """Read an image's header. Pillow's own limit is four times ours: a comparison has three images,
    and headers of further frames, which it checks alone, must not fill the memory.
    """
    Image.MAX_IMAGE_PIXELS = 2 * limit("pixels")  # it refuses twice as many
    try:
        return Image.open(source, formats=FORMATS)
    except Image.DecompressionBombError as error:  # declared sizes far beyond the limit
        found = int(re.search(r"\d+", str(error))[0])
        check_limit("pixels", found, name)
        raise


def _has_deep_colours(image: Image.Image) -> bool:
    """Whether colours are stored with more than the 8 bits per channel that Pillow reads."""
    if not image.tile or image.mode.startswith("I"):  # grey keeps all of its bits
        return False
    codec, _, _, arguments = image.tile[0]
    raw, *more = arguments if isinstance(arguments, tuple) else (arguments,)
    is_deep_ppm = codec.startswith("ppm") and more and more[0] > 255  # of one bit: no maximum
    return ";16" in str(raw) or bool(is_deep_ppm)


def _has_more_frames(image: Image.Image) -> bool:
    """Whether a decoded image has more frames or pages; seeks to the second one."""
    try:
        image.seek(1)
    except StopRequested:
        raise
    except Exception:  # no second frame, or a broken one
        return False
    return True


def _tell(loss: str, name: str) -> None:
    """Note the first file with this kind of loss in the conversion to RGB."""
    note_once(loss, f"{name} {LOSSES[loss]}")


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert any mode to RGB, keeping an RGB profile.

    Raises UserError for unsupported pixel types.
    """
    if is_foreign(image):
        _tell("colours", name)
    with as_user_error():
        rgb = as_rgb(image, name, lambda loss: _tell(loss, name))
    profile = profile_of(image)
    rgb.info = {PROFILE: profile} if profile else {}
    return rgb


def load_mask(
    path: Path, threshold: int = MASK_THRESHOLD, *, from_alpha: bool = False
) -> np.ndarray:
    """Read a mask file as a bool array (H, W), True = hole.

    0 and 1 are read as 0 and 255; 16 and 32 bits are scaled by their range. Other values, as from
    blurred or JPEG edges, are a hole below the threshold. Such interpretations are noted once.
    from_alpha: the values are the image's alpha. Raises UserError for colour or invalid values.
    """
    image = read_image(path, str(path))
    if not from_alpha:
        return _hole_of(image, str(path), threshold)
    if not image.has_transparency_data:
        raise UserError(f"{path}: has no alpha channel, which --masks alpha takes holes from")
    alpha = np.asarray(image.convert("RGBA"))[..., 3]
    _note_soft_mask(alpha, str(path), threshold)
    return alpha < threshold


def _hole_of(image: Image.Image, name: str, threshold: int = MASK_THRESHOLD) -> np.ndarray:
    with as_user_error():
        values = mask_values(image, name)
        hole = holes(values, threshold, name)
    if values.max(initial=0) == 1:
        note_once("mask 0/1", f"{name}: a mask of 0 and 1; they are read as 0 and 255")
    else:
        _note_soft_mask(values, name, threshold)
    return hole


def _note_soft_mask(values: np.ndarray, name: str, threshold: int) -> None:
    if not ((values == KNOWN) | (values == HOLE)).all():
        text = f"values other than 0 and 255 in masks, split at {threshold}"
        note_once("mask values", f"{name}: {text} (--mask-threshold)")


@as_user_error()
def as_hole(mask: Image.Image | np.ndarray, image: np.ndarray) -> np.ndarray:
    """Convert a mask to a hole (H, W) bool for an image (H, W, 3) uint8.

    Raises `UserError` for an invalid mask or image, or different sizes.
    """
    if isinstance(mask, Image.Image):
        mask = _hole_of(upright(mask), "mask")
    for name, given in (("mask", mask), ("image", image)):
        if not isinstance(given, np.ndarray):
            found = type(given).__name__
            raise UserError(f"{name}: {found}; needed is an image of PIL or an array of NumPy")
    is_whole = mask.dtype.kind in "bui"  # fractions would all be below the threshold
    if not is_whole or mask.min(initial=0) < 0 or mask.max(initial=0) > KNOWN:
        found = f"mask: {mask.dtype} {mask.shape}"
        raise UserError(f"{found}; needed are bools or whole numbers from 0 to {KNOWN} (H, W)")
    hole = mask.copy() if mask.dtype == bool else holes(mask, MASK_THRESHOLD, "mask")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise UserError(f"image: {image.dtype} {image.shape}; needed is uint8 (H, W, 3)")
    if hole.shape != image.shape[:2]:
        raise UserError(f"mask: {hole.shape}, but the image is {image.shape[:2]}")
    return hole
