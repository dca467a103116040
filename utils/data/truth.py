"""The ground truth of a job: one image file for each masked image, or rows of a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from fid.names import rows_by_name

from config.errors import UserError
from utils.data.pairs import image_files, pair
from utils.io.images import load_rgb
from utils.io.messages import as_user_error, note


class TruthFiles:
    """Ground truth as one image file for each masked image."""

    def __init__(self, source: Path, images: list[Path]) -> None:
        files = image_files(source, "a folder, an image or a .csv")
        self.location = files[0].parent
        self.files = pair(images, files, "ground truths")

    def name(self, index: int) -> str:
        """File name of an image's truth, within the location."""
        return self.files[index].name

    def bytes_on_disk(self) -> int:
        """Total size of the files, by which the scorer recognises them."""
        return sum(path.stat().st_size for path in self.files)

    def pixels(self, index: int) -> np.ndarray:
        """Read the ground truth of an image, uint8 (H, W, 3)."""
        return np.asarray(load_rgb(self.files[index]))


class TruthTable:
    """The lab's `test_gt.csv`: one row of H*W*3 values 0..255 per image."""

    files: Sequence[Path] = ()  # it has no pictures

    def __init__(
        self,
        path: Path,
        images: Sequence[Path],
        masks: Sequence[Path] = (),
        all_masks: Sequence[Path] = (),
    ) -> None:
        """masks: the images' own, out of all there are, which tell which rows have no image."""
        from fid.images import CsvImages  # imported here: few jobs have a table

        self.location = path
        with as_user_error():
            self.rows = CsvImages(path)
        count, surplus = len(images), len(self.rows) - len(images)
        if surplus < 0:
            raise UserError(f"{path}: {len(self.rows)} rows for {count} images")
        self.row_of: Sequence[int] = range(count)
        if surplus:
            places = {mask: place for place, mask in enumerate(all_masks)}
            if len(places) == len(self.rows):
                self.row_of, how = [places[mask] for mask in masks], "each has its mask's row"
            else:
                self.row_of, how = rows_by_name([path.name for path in images], len(self.rows))
            note(f"{path}: {surplus} rows more than images are left out; {how}")

    def name(self, index: int) -> int:
        """The row of an image, counted from 0 after the header."""
        return self.row_of[index]

    def bytes_on_disk(self) -> int:
        """Size of the table."""
        return self.rows.bytes_on_disk()

    def pixels(self, index: int) -> np.ndarray:
        """Read the row of an image, which is square, uint8 (H, W, 3)."""
        with as_user_error():
            return self.rows.decoded(self.row_of[index])


Truth = TruthFiles | TruthTable


def open_truth(
    source: Path | None, images: list[Path], masks: list[Path], all_masks: list[Path]
) -> Truth | None:
    """The ground truth of a job, by position, from a folder, a file or a CSV table."""
    if source is None:
        return None
    if source.suffix.lower() == ".csv":
        return TruthTable(source, images, masks, all_masks)
    return TruthFiles(source, images)
