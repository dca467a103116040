"""Image files in and out: every mode becomes 8-bit RGB, every fault one line with the file's name.

Letters: H height, W width, in pixels.
"""

from __future__ import annotations

import io
import re
import shlex
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from fid.colour import PROFILE, describes_srgb, is_foreign, profile_of
from fid.listing import inner_folder, is_file
from fid.names import EXTENSIONS as IMAGE_SUFFIXES
from fid.names import FORMATS, is_picture, left_out, natural_key
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, WebPImagePlugin

from config.errors import StopRequested, UserError
from utils.io.faults import raise_if_machine
from utils.io.files import atomic
from utils.io.limits import check_limit, limit
from utils.io.notes import note_once

PLUGINS = (TiffImagePlugin, WebPImagePlugin)  # these two, and by
Image.preinit()  # those of the other formats; or Image.open imports all that Pillow has, 0.2 s
KNOWN, HOLE = 255, 0  # values of a mask file
HOLE_COLOUR = 128  # grey that paints a hole in a masked image
MASK_THRESHOLD = 128  # values below are a hole
ANIMATED = ("GIF", "PNG", "TIFF", "WEBP")  # formats whose further frames are worth a word
ORIENTATION_ON_ITS_SIDE = 5  # of EXIF's eight orientations the first
ALPHA_BACKGROUND = (255, 255, 255)  # transparent pixels show white paper
LOSSES = {  # what a conversion leaves out: how a note says it
    "frames": "has several frames or pages; the first is used",
    "alpha": "is transparent in part; white is laid under it",
    "depth": "has 16 bits a channel; 8 are used",
    "dark": "holds no value above 255, though it has 16 bits or more, and so becomes nearly black; "
    "if its values are of 8 bits, save it with 8",
    "cmyk": "is in CMYK; it is converted without its colour profile",
    "colours": "states other colours than sRGB, by gamma, primaries, a camera's Adobe RGB or a "
    "profile that no PNG of RGB keeps; they are left out",
    "profile": "has a colour profile; it is left out, so colours may look different",
}


def load_rgb(source: Path | BinaryIO, name: str | None = None) -> Image.Image:
    """Read one image as 8-bit RGB, turned upright by its EXIF orientation.

    Grey, palette, CMYK and 16-bit images are converted (16 bits by value / 257), transparency is
    laid over white, an animation gives its first frame. A profile of RGB is not applied but goes
    along (fid/colour.py). The first file that loses something is named on stderr. `name` stands
    for the file in messages. Raises UserError for what cannot be read.
    """
    name = name or str(source)
    return to_rgb(read_image(source, name), name)


def tell_of_profile(profile: bytes | None, name: str) -> None:
    """Name the first image whose profile of RGB is lost, as no file or page keeps it."""
    if not describes_srgb(profile):
        _tell("profile", name)


@contextmanager
def opened(source: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """An image of which no more than the header is read; `read_image` looks at its pixels' number.

    Raises UserError for what cannot be read, also within the block.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oversized and odd files are judged here, once
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
    except Exception as error:  # decoders raise nearly every kind of exception on broken bytes
        raise_if_machine(error, name)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = f"not an image that can be decoded; formats are {', '.join(FORMATS)}"
        raise UserError(f"{name}: cannot be read as an image: {reason}") from error


def is_turned(path: Path) -> bool:
    """Say whether reading an image exchanges its width and height, as its EXIF asks."""
    with opened(path, str(path)) as image:
        return image.getexif().get(ExifTags.Base.Orientation, 1) >= ORIENTATION_ON_ITS_SIDE


def encode_png(image: np.ndarray) -> bytes:
    """PNG bytes of a uint8 array, (H, W) grey or (H, W, 3) RGB."""
    assert image.dtype == np.uint8, f"PNG pixels are uint8, not {image.dtype}"
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def save_png(path: Path, image: np.ndarray) -> None:
    """Write a PNG so that `path` is either the old file or the whole new one, never a part."""
    with atomic(Path(path)) as temporary:
        temporary.write_bytes(encode_png(image))


def list_images(folder: Path) -> list[Path]:
    """List the images directly in `folder` in natural order; hidden files are ignored.

    Pictures of formats that are not read are noted on stderr, as what a conversion leaves out.
    Raises UserError if the folder is missing or contains no image.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder")
    try:
        files = [path for path in folder.iterdir() if is_file(path)]
    except PermissionError:
        raise UserError(f"{folder}: no permission to read this folder") from None
    tell_left_out(folder, [path.name for path in files])
    paths = [path for path in files if is_picture(path.name)]
    if not paths:
        advice = f"looked for {', '.join(sorted(IMAGE_SUFFIXES))}"
        if inner := inner_folder(folder):
            folders = f"prepare_data.py images {shlex.quote(str(folder))} --out DIR"
            advice = f"{inner} holds some; name it, or make one folder of all with: {folders}"
        raise UserError(f"{folder}: contains no image; {advice}")
    return sorted(paths, key=lambda path: natural_key(path.name))


def tell_left_out(place: Path, names: Iterable[str]) -> None:
    """Name the first of the files that hold a picture, as they are called, which is not read."""
    if text := left_out(names):
        note_once(str(place), f"{place}: {text}")


def read_image(source: Path | BinaryIO, name: str) -> Image.Image:
    """Decode the first frame in its own mode, upright, unless it has more pixels than the limit."""
    with opened(source, name) as image:
        check_limit("pixels", image.width * image.height, f"{name}: {image.width} x {image.height}")
        if _has_deep_colours(image):
            _tell("depth", name)
        image.load()
        upright = ImageOps.exif_transpose(image)
        if image.format in ANIMATED and _has_more_frames(image):
            _tell("frames", name)
        return upright


def _open(source: Path | BinaryIO, name: str) -> Image.Image:
    """Read an image's header; Pillow's own limit of pixels counts where ours is below it."""
    if Image.MAX_IMAGE_PIXELS and limit("pixels") > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = None
    try:
        return Image.open(source, formats=FORMATS)
    except Image.DecompressionBombError as error:  # declared sizes far beyond the limit
        found = int(re.search(r"\d+", str(error))[0])
        check_limit("pixels", found, name)
        raise


def _has_deep_colours(image: Image.Image) -> bool:
    """Say whether colours are stored with more than the 8 bits that Pillow reads of them."""
    if not image.tile or image.mode.startswith("I"):  # grey is read with all of its bits
        return False
    codec, _, _, arguments = image.tile[0]
    raw, *more = arguments if isinstance(arguments, tuple) else (arguments,)
    return ";16" in str(raw) or (codec.startswith("ppm") and more[0] > 255)


def _has_more_frames(image: Image.Image) -> bool:
    """Say whether a decoded image is an animation or has further pages; moves to the next one."""
    try:
        image.seek(1)
    except StopRequested:
        raise
    except Exception:  # no second frame, or a broken one
        return False
    return True


def _tell(loss: str, name: str) -> None:
    """Name the first file that loses something on the way to RGB; a set of them needs one line."""
    note_once(loss, f"{name} {LOSSES[loss]}")


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert any mode to RGB, a profile of RGB goes along.

    Raises UserError for pixels that are read as none.
    """
    if is_foreign(image):
        _tell("colours", name)
    try:
        rgb, profile = _converted(image, name), profile_of(image)
    except ValueError:
        raise UserError(f"{name}: pixels of type {image.mode} are not read; save as RGB") from None
    rgb.info = {PROFILE: profile} if profile else {}
    return rgb


def _converted(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise UserError(f"{name}: floating-point images are not read; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # "I;16" and its byte orders, or "I" for 16 bits in 32
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(f"{name}: values beyond 16 bits; save it with 8 or 16 bits")
        _tell("depth" if values.max() > 255 else "dark", name)
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            _tell("alpha", name)
        background = Image.new("RGBA", image.size, (*ALPHA_BACKGROUND, 255))
        return Image.alpha_composite(background, image).convert("RGB")
    if image.mode == "CMYK":
        _tell("cmyk", name)
    return image.convert("RGB")
