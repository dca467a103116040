"""The text of a csv of images: the fields of a row, and which columns hold pixels."""

from __future__ import annotations

import csv
import math
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from fid.files import ScoreError

SEPARATORS = {";": "semicolons", "\t": "tabs", " ": "spaces"}  # read as one column


class Columns(NamedTuple):
    """The images' side in pixels, and how many columns come before the pixels."""

    side: int
    skip: int


def fields(row: bytes) -> list[str]:
    """The values of a row, which may be quoted."""
    text = row.decode("utf-8-sig", "replace").strip()
    if '"' in text:
        try:
            return next(csv.reader([text], skipinitialspace=True))
        except csv.Error:  # an open quote
            pass
    return text.split(",")


def columns_of(header: bytes, path: Path) -> Columns:
    """What the header of a table says of its columns.

    Raises `ScoreError` if the first row is an image, or if the pixels of none fit the columns.
    """
    if header.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise ScoreError(f"{path}: is UTF-16; save it as UTF-8")
    names = fields(header)
    if not _is_header(names):
        raise ScoreError(f"{path}: has no header; its first row would be lost")
    side = math.isqrt(len(names) // 3)
    skip = len(names) - 3 * side**2
    if side == 0 or skip not in (0, 1):
        found = f"{len(names):,} columns, expected 3 x side x side, as 12,288 for 64 x 64 images"
        used = next((what for mark, what in SEPARATORS.items() if mark in names[0]), None)
        advice = f"; separate values by commas, not by {used}" if used and len(names) == 1 else ""
        raise ScoreError(f"{path}: {found}, in its first row{advice}")
    if skip and _is_numbered(names[:-1]) and not _is_numbered(names[1:]):
        raise ScoreError(f"{path}: its last column, {names[-1]!r}, holds no pixels; remove it")
    return Columns(side, skip)


def _is_header(names: list[str]) -> bool:
    """Whether a table's first row is a header: mostly words, or consecutive numbers."""
    values = [float(name) for name in names if _is_number(name)]
    if len(values) < len(names) / 2:  # an image's row may begin with its name
        return True
    return len(values) > 1 and all(after - before == 1 for before, after in pairwise(values))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_numbered(names: list[str]) -> bool:
    """Whether the names end in consecutive numbers, as 0, 1, 2 or pixel0, pixel1, pixel2."""
    found = [re.search(r"\d{1,9}$", name) for name in names]
    if None in found:
        return False
    return all(int(b[0]) - int(a[0]) == 1 for a, b in pairwise(found))
