"""Image sets: a folder, a zip or a table.

A set returns the stored bytes of image i, or decodes them to (H, W, 3) uint8 RGB in 0..255.
Zip members are read in memory, never extracted. Errors name the image.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import hashlib
import math
import re
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from fid.files import (
    BROKEN_ZIP,
    ScoreError,
    check_limit,
    composed,
    note,
    read_limited,
    reading,
)
from fid.names import open_zip, zip_names
from fid.pixels import Size, decode_image, resized

SEPARATORS = {";": "semicolons", "\t": "tabs", " ": "spaces"}  # read as one column


class ImageSet(ABC):
    """A list of images that threads can read by index, at their own size or resized."""

    has_names = True  # whether the images can be paired by name
    size: Size | None = None  # resize to this; hashes are still those of the files
    threshold: int | None = None  # for masks: values below are a hole; None: only 0 is
    inverted = False  # for masks: the others are the hole

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
        known = {composed(n): n for n in self.names} | {n: n for n in self.names}  # exact first
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
        with reading(self.path, "not a readable zip", *BROKEN_ZIP):
            return open_zip(self.path)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "archive"}

    def stored_bytes(self, index: int) -> bytes:
        name = self.label(index)
        with (
            reading(name, "cannot be unpacked", *BROKEN_ZIP),
            self.archive.open(self.names[index]) as member,
        ):
            return read_limited(member.read, "file_bytes", f"{name}: unpacked")


class CsvImages(ImageSet):
    """One image per row: 3 side^2 values 0..255 in row-major height, width, channel order."""

    has_names = False

    def __init__(self, path: Path) -> None:
        """Find the rows in one pass; the header's column count gives the images' side."""
        self.spans: list[tuple[int, int]] = []  # first byte and length of each line
        with reading(path):
            check_limit("table_bytes", path.stat().st_size, str(path))
            if not path.is_file():  # reading a pipe would hang
                raise ScoreError(f"{path}: is not a file")
            with open(path, "rb") as file:
                read_row = partial(read_limited, file.readline, "row_bytes", f"{path}: a row")
                start = len(header := read_row())  # a line may never end
                while line := read_row():
                    if line.strip():
                        self.spans.append((start, len(line)))
                    start += len(line)
        super().__init__(path, map(str, range(len(self.spans))))
        self.side, self.skip = _columns_of(header, path)
        if self.skip:
            firsts = [_fields(self.stored_bytes(i))[0] for i in range(len(self))[:3]]
            order = "" if _is_numbered(firsts) else f"; rows are not paired by {', '.join(firsts)}"
            note(f"{path}: its first column is taken for an index{order}")

    def label(self, index: int) -> str:
        return f"{self.path}, row {self.names[index]}"

    def stored_bytes(self, index: int) -> bytes:
        start, length = self.spans[int(self.names[index])]
        with reading(self.path), open(self.path, "rb") as file:
            file.seek(start)
            return file.read(length).strip()

    def decoded(self, index: int) -> np.ndarray:
        found, label = _fields(self.stored_bytes(index))[self.skip :], self.label(index)
        if len(found) != (wanted := 3 * self.side**2):
            raise ScoreError(f"{label}: {len(found):,} columns, the first row has {wanted:,}")
        numbers: list[float] = []
        try:
            numbers.extend(map(float, found))  # an error keeps those before it
        except ValueError:
            reason = f"column {len(numbers)} is {found[len(numbers)][:20]!r}, expected a number"
            raise ScoreError(f"{label}: {reason}") from None
        values = np.array(numbers)
        if not np.all((values >= 0) & (values <= 255) & (values == np.floor(values))):
            raise ScoreError(f"{label}: values must be whole numbers from 0 to 255")
        return values.astype(np.uint8).reshape(self.side, self.side, 3)

    def select(self, selection: Sequence[str | int]) -> ImageSet:
        for row in selection:
            if type(row) is not int or row not in range(len(self)):  # True is an int too
                raise ScoreError(f"{self.path}: no row {row!r}, it has rows 0 to {len(self) - 1}")
        return self.named(map(str, selection))


def _fields(row: bytes) -> list[str]:
    """The values of a row, which may be quoted."""
    text = row.decode("utf-8-sig", "replace").strip()
    if '"' in text:
        with contextlib.suppress(csv.Error):  # an open quote
            return next(csv.reader([text], skipinitialspace=True))
    return text.split(",")


def _columns_of(header: bytes, path: Path) -> tuple[int, int]:
    """The images' side in pixels, and how many columns come before the pixels.

    Raises `ScoreError` if the first row is an image, or if the pixels of none fit the columns.
    """
    if header.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ScoreError(f"{path}: is UTF-16; save it as UTF-8")
    if b"\r" in header.rstrip():  # as Excel for Mac saved
        raise ScoreError(f"{path}: its lines end in CR alone; save it with LF or CR LF")
    names = _fields(header)
    if not _is_header(names):
        raise ScoreError(f"{path}: has no header; its first row would be lost")
    side = math.isqrt(len(names) // 3)
    skip = len(names) - 3 * side**2
    if side == 0 or skip not in (0, 1):
        found = f"{len(names):,} columns, expected 3 x side x side, as 12,288 for 64 x 64 images"
        used = next((what for mark, what in SEPARATORS.items() if mark in names[0]), None)
        advice = f"; separate values by commas, not by {used}" if used and len(names) == 1 else ""
        raise ScoreError(f"{path}: {found}, in its first row{advice}")
    kinds = [re.sub(r"\d+", "0", name) for name in names]
    if skip and kinds.count(kinds[0]) > 1 == kinds.count(kinds[-1]):  # r0, g0, b0, r1, ..., label
        raise ScoreError(f"{path}: its last column, {names[-1]!r}, contains no pixels; remove it")
    return side, skip


def _is_header(names: list[str]) -> bool:
    """Whether a table's first row is a header: mostly words, or consecutive numbers."""
    values = []
    for name in names:
        with contextlib.suppress(ValueError):
            values.append(float(name))
    if len(values) < len(names) / 2:  # an image's row may begin with its name
        return True
    return len(values) > 1 and all(after - before == 1 for before, after in pairwise(values))


def _is_numbered(names: list[str]) -> bool:
    """Whether the names end in consecutive numbers, as 0, 1, 2 or pixel0, pixel1, pixel2."""
    found = [re.search(r"\d{1,9}$", name) for name in names]
    return None not in found and all(int(b[0]) - int(a[0]) == 1 for a, b in pairwise(found))
