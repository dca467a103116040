"""Image sets (folder, zip or table), their decoded pixels, and masks.

A set returns the stored bytes of image i, or decodes them to (H, W, 3) uint8 RGB in 0..255.
Zip members are read in memory, never extracted. Errors name the image.
"""

from __future__ import annotations

import copy
import hashlib
import io
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fid import FILTERS, Size
from fid.files import BROKEN_ZIP, ScoreError, check_limit, most_bytes, note, of_the_machine
from fid.listing import open_zip, zip_names
from fid.metadata import is_foreign, is_srgb, upright
from fid.names import FORMATS, composed

COLOURED = 48  # channel difference in a mask that JPEG artefacts cannot explain
LARGEST = (1, 255, 2**16 - 1, 2**32 - 1)  # possible values of "known" in a mask


def rgb_pixels(image: Image.Image, name: str) -> np.ndarray:
    """Pixels of an image, (H, W, 3) uint8. Raises `ScoreError` for unsupported pixel types."""
    try:
        return np.asarray(_rgb(image, name))
    except ValueError:
        raise ScoreError(f"{name}: pixels of type {image.mode} are not read; save as RGB") from None


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
            if values is rgb_pixels and (is_foreign(image) or not is_srgb(image)):
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


def _rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert any mode to 8-bit RGB; 16 bits as value / 257, transparency over white."""
    if image.mode == "F":
        raise ScoreError(f"{name}: floating-point pixels; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):  # "I;16" and its byte orders, or "I" for 16 bits in 32
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ScoreError(f"{name}: values beyond 16 bits; save it with 8 or 16 bits a channel")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def mask_values(image: Image.Image, name: str) -> np.ndarray:
    """Values of a mask, (H, W) in 0..255; a mask of only 0 and 1 is returned unscaled.

    Raises:
        ScoreError: a mask with colour, transparency, or values outside the allowed ranges.
    """
    if image.mode.startswith(("F", "I")):  # floating point, 16 or 32 bits
        return _scaled(np.asarray(image).astype(np.float64), name)
    if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
        raise ScoreError(
            f"{name}: a mask must not be transparent; save it as a grey PNG, or repair with "
            "--masks alpha if the pictures' own transparency is the hole"
        )
    pixels = rgb_pixels(image, name)
    if np.ptp(pixels, axis=-1).max(initial=0) > COLOURED:
        raise ScoreError(f"{name}: a mask must be grey, this one has coloured pixels")
    return pixels[..., 0]


def holes(values: np.ndarray, threshold: int) -> np.ndarray:
    """Hole pixels of a mask, bool: values below the threshold, or 0 in a mask of 0 and 1."""
    return values == 0 if values.max(initial=0) == 1 else values < threshold


def _scaled(values: np.ndarray, name: str) -> np.ndarray:
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    if not 0 <= low <= high <= LARGEST[-1]:  # also rejects NaN
        raise ScoreError(
            f"{name}: a mask with values from {low:g} to {high:g}; allowed are 0 (hole) to 1, 255 "
            "or 65535 (known)"
        )
    if ((values == 0) | (values == 1)).all():
        return values
    return values / min(top for top in LARGEST if high <= top) * 255


def resized(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Resize pixels (H, W, 3) uint8; returned unchanged if they already have that size."""
    if pixels.shape[:2] == (size.height, size.width):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(size[:2], FILTERS[size.filter]))


class ImageSet(ABC):
    """A list of images that threads can read by index, at their own size or resized."""

    has_names = True  # whether the images can be paired by name
    size: Size | None = None  # resize to this; hashes are still those of the files
    threshold: int | None = None  # for masks: values below are a hole; None: only 0 is

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self.path = path
        self.names = list(names)

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def stored_bytes(self, index: int) -> bytes:
        """The encoded image, for decoding and hashing."""

    def label(self, index: int) -> str:
        """The image's name in messages."""
        return f"{self.path}/{self.names[index]}"

    def decoded(self, index: int) -> np.ndarray:
        """Image `index` at its stored size, (H, W, 3) uint8."""
        return decode_image(self.stored_bytes(index), self.label(index))

    def pixels(self, index: int) -> np.ndarray:
        """Image `index` at the set's size, (H, W, 3) uint8."""
        found = self.decoded(index)
        return resized(found, self.size) if self.size else found

    def bytes_on_disk(self) -> int:
        """Size of the file, or total size of a folder's images."""
        return self.path.stat().st_size

    def sha256(self) -> str:
        """Hash of the images' bytes in order, independent of container and file names."""
        each = (hashlib.sha256(self.stored_bytes(i)).digest() for i in range(len(self)))
        return hashlib.sha256(b"".join(each)).hexdigest()

    def named(self, names: Iterable[str]) -> ImageSet:
        """A copy of the set with these names, in this order."""
        chosen = copy.copy(self)
        chosen.names = list(names)
        return chosen

    def select(self, selection: Sequence[str | int]) -> ImageSet:
        """The images of these names, in this order; Unicode normalisation may differ."""
        known = {composed(name): name for name in self.names}
        known |= {name: name for name in self.names}  # exact names win over another form
        found = [known.get(str(name)) or known.get(composed(str(name))) for name in selection]
        if None in found:
            name = selection[found.index(None)]
            raise ScoreError(f"{self.path}: no image {name!r}, though the manifest names it")
        return self.named(found)


class FolderImages(ImageSet):
    """The image files of a folder."""

    def stored_bytes(self, index: int) -> bytes:
        path = self.path / self.names[index]
        try:
            check_limit("file_bytes", path.stat().st_size, str(path))
            return path.read_bytes()
        except OSError as error:
            raise ScoreError(f"{self.label(index)}: {error.strerror}") from None

    def bytes_on_disk(self) -> int:
        return sum((self.path / name).stat().st_size for name in set(self.names))


class ZipImages(ImageSet):
    """The image members of a zip at any depth, in natural order."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, ())
        self.names = zip_names(path, self.archive.infolist())

    @cached_property
    def archive(self) -> zipfile.ZipFile:
        """The open zip; `ZipFile` has its own lock, so threads can share it."""
        try:
            return open_zip(self.path)
        except BROKEN_ZIP as error:
            found = of_the_machine(error, self.path) or f"{self.path}: not a readable zip ({error})"
            raise ScoreError(found) from None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "archive"}

    def stored_bytes(self, index: int) -> bytes:
        try:
            with self.archive.open(self.names[index]) as member:
                data = member.read(most_bytes("file_bytes"))
        except BROKEN_ZIP as error:
            name = self.label(index)
            found = of_the_machine(error, name) or f"{name}: cannot be unpacked ({error})"
            raise ScoreError(found) from None
        check_limit("file_bytes", len(data), f"{self.label(index)}: unpacked")
        return data
