"""The image files of a folder, and which of them belong together: images, masks, ground truth."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from fid.names import (
    EXTENSIONS,
    inner_folder,
    is_file,
    is_mask,
    is_picture,
    left_out,
    natural_key,
    partners,
    stem,
    trailing_number,
)
from fid.pixels import is_on_its_side

from config.errors import UserError
from utils.io.images import HOLE_COLOUR, load_rgb, opened
from utils.io.messages import as_user_error, note, note_once

IMAGES, MASKS, TRUTH, TRUTH_CSV = "masked_image", "mask64", "test", "test_gt.csv"
SCORER_FOLDER = "faster-pytorch-fid"  # where the lab keeps its table
NAMES_SHOWN = 3  # offending names in an error line


def list_images(folder: Path) -> list[Path]:
    """List the images directly in `folder` in natural order; hidden files are ignored.

    Images in unsupported formats are skipped with a note. Raises UserError if the folder is missing
    or contains no image.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise UserError(f"{folder}: is not a folder")
    try:
        files = [path for path in folder.iterdir() if is_file(path)]
    except PermissionError:
        raise UserError(f"{folder}: no permission to read this folder") from None
    tell_left_out(folder, [path.name for path in files])
    paths = [path for path in files if is_picture(path.name)]
    inner = inner_folder(folder)
    if paths and inner:
        note_once(str(inner), f"{folder}: {inner} holds images too, which are left out")
    if not paths:
        advice = f"looked for {', '.join(sorted(EXTENSIONS))}"
        if inner:
            folders = f"prepare_data.py images {shlex.quote(str(folder))} --out DIR"
            advice = f"{inner} holds some; name it, or make one folder of all with: {folders}"
        raise UserError(f"{folder}: contains no image; {advice}")
    return sorted(paths, key=lambda path: natural_key(path.name))


def tell_left_out(place: Path, names: Iterable[str]) -> None:
    """Note skipped images in unsupported formats, once per place."""
    if text := left_out(names):
        note_once(str(place), f"{place}: {text}")


def pair(
    images: list[Path],
    others: list[Path],
    what: str,
    *,
    by_order: bool = False,
    spare: bool = False,
) -> list[Path]:
    """Return the file of `others` that belongs to each image.

    by_order: pair by position in natural order. spare: drop files without an image, with a note.
    Two single files always pair; otherwise names decide, as in the scorer (fid/names.py).
    """
    if len(images) == len(others) == 1:
        return others
    if by_order:
        if len(others) < len(images):
            raise UserError(f"{len(others)} {what} in {others[0].parent} for {len(images)} images")
        found = list(range(len(images)))
    else:
        found = partners([path.name for path in images], [path.name for path in others], spare)
    if found is None:
        raise _no_pairs(images, others, what)
    _note_spare(len(others) - len(images), what, others[0].parent)
    return [others[place] for place in found]


def _note_spare(count: int, what: str, place: Path) -> None:
    if count:
        note(f"{place}: {count} {what} more than images are left out")


def _no_pairs(images: list[Path], others: list[Path], what: str) -> UserError:
    """Build the error that names the first files without a partner."""
    both = images + others
    numbered = all(trailing_number(path.name) is not None for path in both)
    key = trailing_number if numbered else stem
    left, right = ({key(path.name) for path in side} for side in (images, others))
    alone = [path.name for path in both if key(path.name) not in left & right]
    if alone:
        shown = ", ".join(alone[:NAMES_SHOWN]) + (", ..." if len(alone) > NAMES_SHOWN else "")
        reason = f"without a partner: {shown}"
    else:
        reason = "some numbers or names are not unique"
    sides = f"{_side(images, 'images')} and {_side(others, what)}"
    advice = " (--pair-by order pairs sorted names)" if what == "masks" else ""
    return UserError(f"{sides} do not pair by the number at the end or by name{advice}; {reason}")


def _side(paths: list[Path], what: str) -> str:
    """Describe one of two sides that do not pair: a single file by its path, else the folder."""
    return f"{len(paths)} {what} in {paths[0].parent}" if len(paths) > 1 else str(paths[0])


def prepared_parts(folder: Path) -> tuple[Path, Path, Path | None]:
    """Find images, masks and ground truth in a prepared folder."""
    if not folder.exists():
        raise UserError(f"{folder}: no such folder")
    parent = folder.absolute().parent  # some solutions keep masks and table there
    masks = next((at / MASKS for at in (folder, parent) if (at / MASKS).is_dir()), None)
    for part, is_there in ((IMAGES, (folder / IMAGES).is_dir()), (MASKS, masks is not None)):
        if not is_there:
            raise UserError(
                f"{folder}: has no {part}/; name a folder with {IMAGES}/ and {MASKS}/,"
                " or images and masks one by one"
            )
    if masks != folder / MASKS:
        note(f"{folder}: has no {MASKS}/; {masks} is taken")
    tables = (at / TRUTH_CSV for at in (folder, parent, parent / SCORER_FOLDER))
    truth = next((place for place in (folder / TRUTH, *tables) if place.exists()), None)
    return folder / IMAGES, masks, truth


def image_files(path: Path) -> list[Path]:
    """The file itself, or the images of a folder."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    return [path] if path.is_file() else list_images(path)


class TruthFiles:
    """Ground truth as one image file for each masked image."""

    def __init__(self, source: Path, images: list[Path]) -> None:
        files = image_files(source)
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

    def __init__(self, path: Path, images: list[Path]) -> None:
        from fid.images import CsvImages  # imported here: few jobs have a table

        self.location = path
        with as_user_error():
            self.rows = CsvImages(path)
        if len(self.rows) < len(images):
            raise UserError(f"{path}: {len(self.rows)} rows for {len(images)} images")
        _note_spare(len(self.rows) - len(images), "rows", path)

    def name(self, index: int) -> int:
        """The row, counted from 0 after the header."""
        return index

    def bytes_on_disk(self) -> int:
        """Size of the table."""
        return self.rows.bytes_on_disk()

    def pixels(self, index: int) -> np.ndarray:
        """Read the row of a square image, uint8 (H, W, 3)."""
        with as_user_error():
            return self.rows.decoded(index)


Truth = TruthFiles | TruthTable


def open_truth(source: Path | None, images: list[Path]) -> Truth | None:
    """The ground truth of a job, by position, from a folder, a file or a CSV table."""
    if source is None:
        return None
    return (TruthTable if source.suffix.lower() == ".csv" else TruthFiles)(source, images)


def images_and_masks(folder: Path) -> tuple[list[Path], list[Path]]:
    """Split one folder into images and masks, recognised by name."""
    files = list_images(folder)
    masks = [path for path in files if is_mask(path.name)]
    if len(masks) in (0, len(files)):
        raise UserError(f"{folder}: holds images and masks; name masks so, e.g. photo_mask.png")
    return [path for path in files if path not in masks], masks


def check_same_size(path: Path, image: np.ndarray, other_path: Path, other: np.ndarray) -> None:
    """Raise `UserError` if a partner differs from the image in height or width."""
    if image.shape[:2] != other.shape[:2]:
        (height, width), (other_height, other_width) = image.shape[:2], other.shape[:2]
        turned = " (turned as its EXIF says)" if path.is_file() and _is_turned(path) else ""
        raise UserError(
            f"{other_path}: {other_width} x {other_height} pixels,"
            f" but {path} has {width} x {height}{turned}"
        )


def _is_turned(path: Path) -> bool:
    """Whether an image's EXIF orientation swaps its width and height."""
    with opened(path, str(path)) as image:
        return is_on_its_side(image)


def warn_if_inverted(path: Path, image: np.ndarray, mask_path: Path, hole: np.ndarray) -> None:
    """Warn if exactly the known pixels of a mask have the colour used for painted holes."""
    painted = (image == HOLE_COLOUR).all(-1)
    if hole.any() and painted.any() and (painted == ~hole).all():
        note(f"{mask_path}: inverted? All it calls known (255) is painted as a hole in {path}")
