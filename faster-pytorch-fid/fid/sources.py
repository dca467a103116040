"""Open what holds images: a folder, a zip, or the lab's csv with one image a row."""

from __future__ import annotations

import math
import sys
import unicodedata
from codecs import BOM_UTF8
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fid.files import ScoreError, check_limit, limit
from fid.images import FolderImages, ImageSet, ZipImages, folder_names, zip_names


class CsvImages(ImageSet):
    """One image a row: 3 side^2 values 0..255 in row-major height, width, channel order."""

    def __init__(
        self, path: Path, spans: Sequence[tuple[int, int]], side: int, skip: int = 0
    ) -> None:
        super().__init__(path, [str(row) for row, _ in enumerate(spans)])
        self.spans = list(spans)  # first byte and length of each row
        self.side = side
        self.skip = skip  # columns before the pixels: an index

    def label(self, index: int) -> str:
        return f"{self.path}, row {self.names[index]}"

    def stored_bytes(self, index: int) -> bytes:
        start, length = self.spans[index]
        try:
            with open(self.path, "rb") as file:
                file.seek(start)
                return file.read(length)
        except OSError as error:
            raise ScoreError(f"{self.path}: {error.strerror}") from None

    def pixels(self, index: int) -> np.ndarray:
        fields = self.stored_bytes(index).split(b",")[self.skip :]
        columns = 3 * self.side**2
        if len(fields) != columns:
            raise ScoreError(
                f"{self.label(index)}: {len(fields):,} columns, the first row has {columns:,}"
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


def open_csv(path: Path) -> CsvImages:
    """Index a csv's rows in one pass; the first row's column count gives the images' side."""
    spans = []
    try:
        check_limit("table_bytes", path.stat().st_size, str(path))
        with open(path, "rb") as file:
            header = _row(file, path)
            if not is_header(header):
                raise ScoreError(f"{path}: has no header; its first row would be lost")
            start = len(header)
            while line := _row(file, path):
                if row := line.strip():
                    spans.append((start, len(row)))
                start += len(line)
    except OSError as error:
        raise ScoreError(f"{path}: {error.strerror}") from None
    columns = header.count(b",") + 1
    side = math.isqrt(columns // 3)
    skip = int(side > 0 and columns == 3 * side**2 + 1)
    if skip:
        note = "its first column is taken for an index and left out"
        print(f"note: {path}: {note}", file=sys.stderr)
    if columns - skip != 3 * side**2:
        raise ScoreError(
            f"{path}: {columns:,} columns, expected 3 x side x side, as 12,288 for 64 x 64 images"
        )
    return CsvImages(path, spans, side, skip)


def is_header(row: bytes) -> bool:
    """Whether a table's first row names its columns: words, or numbers that count up by one."""
    try:
        values = np.array(row.removeprefix(BOM_UTF8).split(b","), dtype=np.float64)
    except ValueError:
        return True
    return len(values) > 1 and bool((np.diff(values) == 1).all())


def _row(file: BinaryIO, path: Path) -> bytes:
    """The next line of a table, which may be one without any end."""
    longest = limit("row_bytes")
    row = file.readline(-1 if math.isinf(longest) else int(longest) + 1)
    check_limit("row_bytes", len(row), f"{path}: a row")
    return row


def open_images(
    path: Path, selection: Sequence[str | int] | None = None, recursive: bool = False
) -> ImageSet:
    """Open a folder, a zip or a csv.

    Args:
        selection: the images wanted and their order, file names or (csv) row numbers from 0.
            None: all of them, in natural order.

    Raises:
        ScoreError: nothing there, fewer than two images, or a selected image is missing.
    """
    if not path.exists():
        raise ScoreError(f"{path}: no such file or folder")
    if path.is_dir():
        images: ImageSet = FolderImages(path, folder_names(path, recursive))
    elif not path.is_file():
        raise ScoreError(f"{path}: is neither a file nor a folder")
    elif path.suffix.lower() == ".csv":
        images = open_csv(path)
    elif path.suffix.lower() == ".zip":
        images = ZipImages(path, zip_names(path))
    else:
        raise ScoreError(f"{path}: expected a folder, a .zip, a .csv or an .npz of statistics")
    if selection is not None and len(images) > 0:
        images = select(images, selection)
    if len(images) < 2:
        found = "no images" if len(images) == 0 else "only one image"
        raise ScoreError(f"{path}: {found}; at least two are needed")
    return images


def select(images: ImageSet, selection: Sequence[str | int]) -> ImageSet:
    """The named images in the named order."""
    if isinstance(images, CsvImages):
        rows = range(len(images))
        for row in selection:
            if type(row) is not int or row not in rows:  # True is an int too
                raise ScoreError(f"{images.path}: no row {row!r}, it has rows 0 to {rows[-1]}")
        spans = [images.spans[row] for row in selection]
        chosen = CsvImages(images.path, spans, images.side, images.skip)
        chosen.names = [str(row) for row in selection]
        return chosen
    known = {unicodedata.normalize("NFC", name): name for name in images.names}
    known |= {name: name for name in images.names}  # which may hold both forms of an accent
    chosen = []
    for name in selection:
        text = name if isinstance(name, str) else ""
        found = known.get(text) or known.get(unicodedata.normalize("NFC", text))
        if found is None:
            raise ScoreError(f"{images.path}: no image {name!r}, though the manifest names it")
        chosen.append(found)
    return type(images)(images.path, chosen)
