"""Open a folder, a zip or a csv as a set of images."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from fid_errors import ScoreError
from fid_images import BROKEN_ARCHIVE, EXTENSIONS, CsvImages, FolderImages, ImageSet, ZipImages
from fid_limits import check_limit, limit


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
    elif not path.is_file():
        raise ScoreError(f"{path}: is neither a file nor a folder")
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
    return sorted(entry.name for entry in entries if _is_image(entry))


def _is_image(entry: Path) -> bool:
    """An image's name on a file or a broken link, which is an error to be told; no pipe."""
    named = entry.suffix.lower() in EXTENSIONS and not entry.name.startswith(".")
    return named and (entry.is_file() or not entry.exists())


def _zip_names(path: Path) -> list[str]:
    """Names of the image members; a name that points outside the archive is refused."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except BROKEN_ARCHIVE as error:
        raise ScoreError(f"{path}: not a readable zip ({error})") from None
    check_limit("members", len(members), str(path))
    check_limit("archive_bytes", sum(member.file_size for member in members), str(path))
    names = []
    for member in members:
        parts = PurePosixPath(member.filename.replace("\\", "/")).parts
        if not parts or member.is_dir() or parts[0] == "__MACOSX" or parts[-1].startswith("._"):
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
