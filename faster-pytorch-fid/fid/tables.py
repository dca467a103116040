"""The lab's csv of images: one image a row, 3 side^2 values 0..255."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fid.files import ScoreError, check_limit, limit
from fid.images import ImageSet


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
        try:
            with open(self.path, "rb") as file:
                file.seek(start)
                return file.read(length)
        except OSError as error:
            raise ScoreError(f"{self.path}: {error.strerror}") from None

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


def open_csv(path: Path) -> CsvImages:
    """Index a csv's rows in one pass; the header's column count gives the images' side."""
    spans = []
    try:
        check_limit("table_bytes", path.stat().st_size, str(path))
        with open(path, "rb") as file:
            header = _row(file, path)
            start = len(header)
            while line := _row(file, path):
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


def _row(file: BinaryIO, path: Path) -> bytes:
    """The next line of a table, which may be one without any end."""
    longest = limit("row_bytes")
    row = file.readline(-1 if math.isinf(longest) else int(longest) + 1)
    check_limit("row_bytes", len(row), f"{path}: a row")
    return row
