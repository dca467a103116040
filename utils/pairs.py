"""Which files of an inpainting job belong together: images, masks and ground truth."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from config.errors import UserError
from utils.images import list_images, load_rgb

IMAGES, MASKS, TRUTH, TRUTH_CSV = "masked_image", "mask64", "test", "test_gt.csv"
NAMES_SHOWN = 3  # offending names in an error line

ReadTruth = Callable[[int], np.ndarray]  # place in the job -> uint8 (H, W, 3)


def pair(images: list[Path], others: list[Path], what: str) -> list[Path]:
    """Return the file of `others` that belongs to each image.

    Two single files belong together. Otherwise the number at the end of the name decides, if
    both sides have the same numbers, each once; else the name without its suffix must be equal.
    """
    if len(images) == len(others) == 1:
        return others
    for key in (_trailing_number, _stem):
        by_key = {key(path): path for path in others}
        wanted = [key(path) for path in images]
        unique = len(by_key) == len(others) and len(set(wanted)) == len(wanted)
        if unique and None not in by_key and set(wanted) == set(by_key):
            return [by_key[name] for name in wanted]
    raise _no_pairs(images, others, what)


def _no_pairs(images: list[Path], others: list[Path], what: str) -> UserError:
    """Build the error that names the first files without a partner."""
    both = images + others
    numbered = all(_trailing_number(path) is not None for path in both)
    key = _trailing_number if numbered else _stem
    left, right = ({key(path) for path in side} for side in (images, others))
    alone = [path.name for path in both if key(path) not in left & right]
    if alone:
        shown = ", ".join(alone[:NAMES_SHOWN]) + (", ..." if len(alone) > NAMES_SHOWN else "")
        reason = f"without a partner: {shown}"
    else:
        reason = "several share a number or a name"
    return UserError(
        f"{len(images)} images in {images[0].parent} and {len(others)} {what} in"
        f" {others[0].parent} do not pair by the number at the end or by name; {reason}"
    )


def prepared_parts(folder: Path) -> tuple[Path, Path, Path | None]:
    """Find images, masks and ground truth in a prepared folder."""
    if not folder.exists():
        raise UserError(f"{folder}: no such folder")
    if folder.is_file():
        raise UserError(f"{folder}: is one image; name its mask as well")
    for part in (IMAGES, MASKS):
        if not (folder / part).is_dir():
            raise UserError(
                f"{folder}: has no {part}/; name a folder with {IMAGES}/ and {MASKS}/,"
                " or images and masks one by one"
            )
    truth = next((folder / t for t in (TRUTH, TRUTH_CSV) if (folder / t).exists()), None)
    return folder / IMAGES, folder / MASKS, truth


def image_files(path: Path) -> list[Path]:
    """One file, or the images of a folder."""
    return [path] if path.is_file() else list_images(path)


def open_truth(source: Path | None, images: list[Path]) -> ReadTruth | None:
    """Choose how to read the ground truth of an image by its place in the job."""
    if source is None:
        return None
    if source.suffix.lower() == ".csv":
        table = TruthTable(source)
        if len(table) != len(images):
            raise UserError(f"{source}: {len(table)} rows for {len(images)} images")
        return lambda i: table.row(i, np.asarray(load_rgb(images[i])).shape)
    files = pair(images, image_files(source), "ground truths")

    def read(i: int) -> np.ndarray:
        truth = np.asarray(load_rgb(files[i]))
        check_same_size(images[i], np.asarray(load_rgb(images[i])), files[i], truth)
        return truth

    return read


class TruthTable:
    """The lab's `test_gt.csv`: a header, then a row of H*W*3 values 0..255 an image, HWC order.

    Only the places of the rows in the file are kept in memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.starts: list[int] = []
        try:
            with open(path, "rb") as file:
                place = len(file.readline())
                for line in file:
                    if line.strip():
                        self.starts.append(place)
                    place += len(line)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None

    def __len__(self) -> int:
        return len(self.starts)

    def row(self, index: int, shape: tuple[int, ...]) -> np.ndarray:
        """Return row `index`, counted from 0 after the header, as uint8 of `shape`."""
        with open(self.path, "rb") as file:
            file.seek(self.starts[index])
            cells = file.readline().split(b",")
        where = f"{self.path}: row {index + 1}"
        if len(cells) != np.prod(shape):
            raise UserError(f"{where}: {len(cells)} values, not {' x '.join(map(str, shape))}")
        try:
            values = np.array(cells, dtype=np.float64)
        except ValueError:
            raise UserError(f"{where}: holds something other than numbers") from None
        if not ((values >= 0) & (values <= 255) & (values == values.round())).all():
            raise UserError(f"{where}: allowed are whole numbers from 0 to 255")
        return values.astype(np.uint8).reshape(shape)


def _trailing_number(path: Path) -> int | None:
    match = re.search(r"(\d+)$", path.stem)
    return int(match[1]) if match else None


def _stem(path: Path) -> str:
    return path.stem


def check_same_size(path: Path, image: np.ndarray, other_path: Path, other: np.ndarray) -> None:
    """Refuse a partner whose height or width differs from the image's."""
    if image.shape[:2] != other.shape[:2]:
        (height, width), (other_height, other_width) = image.shape[:2], other.shape[:2]
        raise UserError(
            f"{other_path}: {other_width} x {other_height} pixels,"
            f" but {path} has {width} x {height}"
        )
