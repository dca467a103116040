"""Sets of images to score: a folder, a zip, or the lab's csv.

Every set hands out the stored bytes of image i and decodes bytes to pixels, (H, W, 3) uint8 RGB in
0..255. Zip members are read in memory, never extracted. Errors name the image or the row.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import struct
import warnings
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from fid_errors import ScoreError
from PIL import Image

EXTENSIONS = {".bmp", ".jpg", ".jpeg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
MAX_PIXELS = 50_000_000  # of one decoded image
MAX_MEMBER_BYTES = 256 << 20  # of one unpacked zip member
EIGHT_BIT_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "La", "RGBa"}


def decode_image(data: bytes, name: str, mode: str = "RGB") -> np.ndarray:
    """Pixels of an encoded image, (H, W, 3) uint8, or (H, W) for mode "L".

    Raises:
        ScoreError: not an image, a broken one, too many pixels, or more than 8 bits a channel.
    """
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the cap below is ours
            if image.width * image.height > MAX_PIXELS:
                raise ScoreError(
                    f"{name}: {image.width} x {image.height} is more than {MAX_PIXELS:,} pixels"
                )
            if image.mode not in EIGHT_BIT_MODES:
                raise ScoreError(f"{name}: pixel type {image.mode}, expected 8 bits a channel")
            return np.asarray(image.convert(mode))
    except Image.DecompressionBombError:
        raise ScoreError(f"{name}: more than {MAX_PIXELS:,} pixels") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        reason = str(error).partition("\n")[0].partition(" <_io")[0]
        raise ScoreError(f"{name}: not a readable image ({reason})") from None


class ImageSet(ABC):
    """A list of images that worker processes can read by index."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self.path = path
        self.names = list(names)

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def stored_bytes(self, index: int) -> bytes:
        """The image as it is stored, for reading and for hashing."""

    def label(self, index: int) -> str:
        """How messages name the image."""
        return f"{self.path}/{self.names[index]}"

    def pixels(self, index: int) -> np.ndarray:
        """Image `index`, (H, W, 3) uint8."""
        return decode_image(self.stored_bytes(index), self.label(index))

    def sha256(self) -> str:
        """Hash of the images in their order, whatever holds them and whatever they are called."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(hashlib.sha256(self.stored_bytes(index)).digest())
        return digest.hexdigest()


class FolderImages(ImageSet):
    """The image files directly inside a folder, by name."""

    def stored_bytes(self, index: int) -> bytes:
        try:
            return (self.path / self.names[index]).read_bytes()
        except OSError as error:
            raise ScoreError(f"{self.label(index)}: {error.strerror}") from None


class ZipImages(ImageSet):
    """The image members of a zip at any depth, by name."""

    _archive: tuple[int, zipfile.ZipFile] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "names": self.names}

    def stored_bytes(self, index: int) -> bytes:
        if self._archive is None or self._archive[0] != os.getpid():
            # An open archive has one file position, so processes must not share it.
            self._archive = (os.getpid(), zipfile.ZipFile(self.path))
        try:
            with self._archive[1].open(self.names[index]) as member:
                data = member.read(MAX_MEMBER_BYTES + 1)
        except (
            zipfile.BadZipFile,
            zlib.error,
            RuntimeError,
            NotImplementedError,
            EOFError,
        ) as error:
            raise ScoreError(f"{self.label(index)}: cannot be unpacked ({error})") from None
        if len(data) > MAX_MEMBER_BYTES:
            raise ScoreError(
                f"{self.label(index)}: unpacks to more than {MAX_MEMBER_BYTES:,} bytes"
            )
        return data


class CsvImages(ImageSet):
    """One image a row: 3 side^2 values 0..255 in row-major height, width, channel order."""

    def __init__(self, path: Path, spans: Sequence[tuple[int, int]], side: int) -> None:
        super().__init__(path, [str(row) for row, _ in enumerate(spans)])
        self.spans = list(spans)  # first byte and length of each row
        self.side = side

    def label(self, index: int) -> str:
        return f"{self.path}, row {self.names[index]}"

    def stored_bytes(self, index: int) -> bytes:
        start, length = self.spans[index]
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(length)

    def pixels(self, index: int) -> np.ndarray:
        fields = self.stored_bytes(index).split(b",")
        columns = 3 * self.side**2
        if len(fields) != columns:
            raise ScoreError(
                f"{self.label(index)}: {len(fields):,} columns, the header has {columns:,}"
            )
        try:
            values = np.array(fields).astype(np.float64)
        except ValueError:
            column = next(i for i, field in enumerate(fields) if not _is_number(field))
            text = fields[column].decode("utf-8", "replace")[:20]
            raise ScoreError(
                f"{self.label(index)}: column {column} is {text!r}, expected a number"
            ) from None
        if not np.all((values >= 0) & (values <= 255) & (values == np.floor(values))):
            raise ScoreError(f"{self.label(index)}: values must be whole numbers from 0 to 255")
        return values.astype(np.uint8).reshape(self.side, self.side, 3)


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def open_images(path: Path, selection: Sequence[str | int] | None = None) -> ImageSet:
    """Open a folder, a zip or a csv.

    Args:
        selection: the images wanted and their order, file names or (csv) row numbers from 0.
            None: all of them, sorted by name.

    Raises:
        ScoreError: nothing there, fewer than two images, or a selected image is missing.
    """
    if not path.exists():
        raise ScoreError(f"{path}: no such file or folder")
    if path.is_dir():
        images: ImageSet = FolderImages(path, _folder_names(path))
    elif path.suffix.lower() == ".csv":
        images = _open_csv(path)
    elif path.suffix.lower() == ".zip":
        images = ZipImages(path, _zip_names(path))
    else:
        raise ScoreError(f"{path}: expected a folder, a .zip, a .csv or an .npz of statistics")
    if selection is not None and len(images) > 0:
        images = _select(images, selection)
    if len(images) < 2:
        found = "no images" if len(images) == 0 else "only one image"
        raise ScoreError(f"{path}: {found}; at least two are needed")
    return images


def _folder_names(path: Path) -> list[str]:
    try:
        entries = list(path.iterdir())
    except OSError as error:
        raise ScoreError(f"{path}: {error.strerror}") from None
    return sorted(
        entry.name
        for entry in entries
        if entry.suffix.lower() in EXTENSIONS and not entry.name.startswith(".")
    )


def _zip_names(path: Path) -> list[str]:
    """Names of the image members; a name that points outside the archive is refused."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError) as error:
        raise ScoreError(f"{path}: not a readable zip ({error})") from None
    names = []
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts
        if member.is_dir() or not parts or parts[0] == "__MACOSX" or parts[-1].startswith("._"):
            continue
        if PurePosixPath(parts[-1]).suffix.lower() not in EXTENSIONS:
            continue
        if ".." in parts or parts[0] == "/" or parts[0].endswith(":"):
            raise ScoreError(f"{path}: member {member.filename!r} points outside the archive")
        names.append(member.filename)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ScoreError(f"{path}: two members are called {twice!r}")
    return sorted(names)


def _open_csv(path: Path) -> CsvImages:
    """Index a csv's rows in one pass; the header's column count gives the images' side."""
    spans = []
    try:
        with open(path, "rb") as file:
            header = file.readline()
            start = len(header)
            for line in file:
                if row := line.strip():
                    spans.append((start, len(row)))
                start += len(line)
    except OSError as error:
        raise ScoreError(f"{path}: {error.strerror}") from None
    columns = header.count(b",") + 1
    side = math.isqrt(columns // 3)
    if columns != 3 * side**2:
        raise ScoreError(
            f"{path}: {columns:,} columns, expected 3 x side x side, as 12,288 for 64 x 64 images"
        )
    return CsvImages(path, spans, side)


def _select(images: ImageSet, selection: Sequence[str | int]) -> ImageSet:
    """The named images in the named order."""
    if isinstance(images, CsvImages):
        rows = range(len(images))
        for row in selection:
            if type(row) is not int or row not in rows:  # True is an int too
                raise ScoreError(f"{images.path}: no row {row!r}, it has rows 0 to {rows[-1]}")
        chosen = CsvImages(images.path, [images.spans[row] for row in selection], images.side)
        chosen.names = [str(row) for row in selection]
        return chosen
    known = set(images.names)
    for name in selection:
        if not isinstance(name, str) or name not in known:
            raise ScoreError(f"{images.path}: no image {name!r}, though the manifest names it")
    return type(images)(images.path, selection)
