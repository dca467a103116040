"""Resolve the inputs of a score: paths, the lab's csv, the inpainting manifest, masks."""

from __future__ import annotations

import math
from codecs import BOM_UTF8
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fid import Settings
from fid.files import ScoreError, check_limit, most_bytes, note
from fid.images import FolderImages, ImageSet, ZipImages
from fid.listing import folder_names
from fid.manifest import MANIFEST, column_of, note_other_truth, path_in, read_manifest
from fid.paired import belonging

OF_PAIRS = {"ids", "hole", "paired"}  # metrics that compare each image with its own ground truth
TRUTH_CSV = "test_gt.csv"
SCORER = Path(__file__).resolve().parents[1]
Source = ImageSet | Path  # images, or an .npz of statistics


class CsvImages(ImageSet):
    """One image per row: 3 side^2 values 0..255 in row-major height, width, channel order."""

    has_names = False

    def __init__(self, path: Path) -> None:
        """Find the rows in one pass; the header's column count gives the images' side."""
        self.spans: list[tuple[int, int]] = []  # first byte and length of each row
        try:
            check_limit("table_bytes", path.stat().st_size, str(path))
            if not path.is_file():  # reading a pipe would hang
                raise ScoreError(f"{path}: is not a file")
            with open(path, "rb") as file:
                header = _read_row(file, path)
                start = len(header)
                while line := _read_row(file, path):
                    if row := line.strip():
                        self.spans.append((start, len(row)))
                    start += len(line)
        except OSError as error:
            raise ScoreError(f"{path}: {error.strerror}") from None
        super().__init__(path, map(str, range(len(self.spans))))
        if not _is_header(header):
            raise ScoreError(f"{path}: has no header; its first row would be lost")
        columns = header.count(b",") + 1
        self.side = math.isqrt(columns // 3)
        self.skip = int(self.side > 0 and columns == 3 * self.side**2 + 1)  # an index column
        if self.skip:
            note(f"{path}: its first column is taken for an index")
        if columns - self.skip != 3 * self.side**2:
            expected = "3 x side x side, as 12,288 for 64 x 64 images"
            raise ScoreError(f"{path}: {columns:,} columns, expected {expected}")

    def label(self, index: int) -> str:
        return f"{self.path}, row {self.names[index]}"

    def stored_bytes(self, index: int) -> bytes:
        start, length = self.spans[int(self.names[index])]
        try:
            with open(self.path, "rb") as file:
                file.seek(start)
                return file.read(length)
        except OSError as error:
            raise ScoreError(f"{self.path}: {error.strerror}") from None

    def decoded(self, index: int) -> np.ndarray:
        fields, label = self.stored_bytes(index).split(b",")[self.skip :], self.label(index)
        values = np.empty(3 * self.side**2)
        if len(fields) != len(values):
            raise ScoreError(f"{label}: {len(fields):,} columns, the first row has {len(values):,}")
        for column, field in enumerate(fields):
            try:
                values[column] = float(field)
            except ValueError:
                text = field.decode("utf-8", "replace")[:20]
                found = f"column {column} is {text!r}, expected a number"
                raise ScoreError(f"{label}: {found}") from None
        if not np.all((values >= 0) & (values <= 255) & (values == np.floor(values))):
            raise ScoreError(f"{label}: values must be whole numbers from 0 to 255")
        return values.astype(np.uint8).reshape(self.side, self.side, 3)

    def select(self, selection: Sequence[str | int]) -> ImageSet:
        rows = range(len(self))
        for row in selection:
            if type(row) is not int or row not in rows:  # True is an int too
                raise ScoreError(f"{self.path}: no row {row!r}, it has rows 0 to {rows[-1]}")
        return self.named(map(str, selection))


def _read_row(file: BinaryIO, path: Path) -> bytes:
    """The next line of a table, with a length limit, as a line may never end."""
    row = file.readline(most_bytes("row_bytes"))
    check_limit("row_bytes", len(row), f"{path}: a row")
    return row


def _is_header(row: bytes) -> bool:
    """Whether a table's first row is a header: words, or consecutive numbers."""
    try:
        values = [float(field) for field in row.removeprefix(BOM_UTF8).split(b",")]
    except ValueError:
        return True
    return len(values) > 1 and all(after - before == 1 for before, after in pairwise(values))


def open_images(
    path: Path, selection: Sequence[str | int] | None = None, recursive: bool = False
) -> ImageSet:
    """Open a folder, a zip or a csv.

    selection: which images, in which order, as file names or (csv) row numbers from 0; None: all,
    in natural order. Raises `ScoreError` if the path does not exist, has fewer than two images, or
    lacks a selected image.
    """
    if not path.exists():
        raise ScoreError(f"{path}: no such file or folder")
    if path.is_dir():
        images: ImageSet = FolderImages(path, folder_names(path, recursive))
    elif not path.is_file():
        raise ScoreError(f"{path}: is neither a file nor a folder")
    elif path.suffix.lower() not in (".csv", ".zip"):
        raise ScoreError(f"{path}: expected a folder, a .zip, a .csv or an .npz of statistics")
    else:
        images = (CsvImages if path.suffix.lower() == ".csv" else ZipImages)(path)
    if selection is not None and len(images) > 0:
        images = images.select(selection)
    if len(images) < 2:
        found = "no images" if len(images) == 0 else "only one image"
        raise ScoreError(f"{path}: {found}; at least two are needed")
    return images


def open_source(
    path: Path, settings: Settings, selection: Sequence[str | int] | None = None
) -> Source:
    """Images of a folder, zip or csv at the requested size; for an .npz, its path."""
    if path.suffix.lower() == ".npz" and not path.is_dir():
        if not path.is_file():
            raise ScoreError(f"{path}: no such file or folder")
        return path
    images = open_images(path, selection, settings.recursive)
    images.size = settings.resize
    return images


@dataclass(frozen=True)
class Inputs:
    """The predicted images, their reference, hole masks and the training images.

    paired: image i of one set is known to match image i of the other by name, not just by position.
    """

    predicted: Source
    reference: Source
    masks: ImageSet | None
    train: Source | None
    paired: bool


def resolve_inputs(settings: Settings) -> Inputs:
    """Open the inputs named in the settings or the manifest, else the lab's test_gt.csv.

    Raises `ScoreError` for a path or manifest entry that is invalid.
    """
    folder = Path(settings.predicted_path)
    predicted, manifest = open_predicted(settings)
    masks = None
    if settings.mask_path is not None:
        masks = belonging(predicted, open_images(Path(settings.mask_path)))
    elif manifest and manifest.get("masks"):
        place = path_in(folder, manifest["masks"])
        if settings.gt_path is not None and not place.exists():  # another machine's manifest
            note(f"{folder}/{MANIFEST}: its masks are not here; give --mask-path if needed")
        else:
            masks = open_images(place, column_of(folder, manifest, "mask"))
            masks.threshold = manifest.get("mask_threshold")
    is_stated = settings.gt_path is None and manifest is not None
    if is_stated:
        if not manifest.get("ground_truth"):
            raise ScoreError(f"{folder}/{MANIFEST}: names no ground truth; give --gt-path")
        names = column_of(folder, manifest, "ground_truth")
        reference = open_source(path_in(folder, manifest["ground_truth"]), settings, names)
        note_other_truth(reference, manifest)
    else:
        reference = open_source(Path(settings.gt_path or _lab_truth(folder)), settings)
        if OF_PAIRS.intersection(settings.metrics) or settings.train_path:
            reference = belonging(predicted, reference)
    train = open_source(Path(settings.train_path), settings) if settings.train_path else None
    return Inputs(predicted, reference, masks, train, paired=is_stated)


def open_predicted(settings: Settings) -> tuple[Source, dict[str, Any] | None]:
    """The predicted images (as listed by the manifest, if there is one) and the manifest."""
    folder = Path(settings.predicted_path)
    manifest = read_manifest(folder)
    names = column_of(folder, manifest, "image") if manifest else None
    predicted = open_source(folder, settings, names or None)
    found = len(open_images(folder, None, settings.recursive)) if manifest else 0
    if manifest and found > len(predicted):
        note(f"{found - len(predicted)} images are not in {MANIFEST} and left out")
    return predicted, manifest


def _lab_truth(predicted: Path) -> Path:
    """Find test_gt.csv in one of the folders where the lab keeps it."""
    places = [Path(), predicted, predicted.parent, SCORER, Path("cat_face"), Path("../cat_face")]
    for place in places:
        if (path := place / TRUTH_CSV).is_file():
            note(f"the ground truth is {path}")
            return path
    raise ScoreError(
        f"{predicted}: has no {MANIFEST} that names the ground truth; give --gt-path "
        f"(no {TRUTH_CSV} was found either)"
    )
