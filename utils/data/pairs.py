"""The image files of a folder, and which of them belong together."""

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
from PIL import UnidentifiedImageError

from config.errors import UserError
from utils.io.images import HOLE_COLOUR, opened
from utils.io.messages import note, note_once

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
    note_skipped(folder, [path.name for path in files])
    paths = [path for path in files if is_picture(path.name)]
    inner = inner_folder(folder)
    if paths and inner:
        note_once(str(inner), f"{folder}: {inner} contains images too, which are left out")
    if not paths:
        advice = f"looked for {', '.join(sorted(EXTENSIONS))}"
        if inner:
            folders = f"prepare_data.py images {shlex.quote(str(folder))} --out DIR"
            advice = f"{inner} contains some; name it, or make one folder of all with: {folders}"
        raise UserError(f"{folder}: contains no image; {advice}")
    return sorted(paths, key=lambda path: natural_key(path.name))


def note_skipped(place: Path, names: Iterable[str]) -> None:
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
    if count := len(others) - len(images):
        note(f"{others[0].parent}: {count} {what} more than images are left out")
    return [others[place] for place in found]


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
    can_be_ordered = what == "masks" and len(others) >= len(images)
    advice = " (--pair-by order pairs sorted names)" if can_be_ordered else ""
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


def image_files(path: Path, allowed: str = "a folder or an image") -> list[Path]:
    """The file itself, or the images of a folder.

    Raises `UserError`, which says what is allowed, for a file that is no image.
    """
    if not path.exists():
        is_link = path.is_symlink()  # maybe to itself
        reason = "is a link that leads nowhere" if is_link else "no such file or folder"
        raise UserError(f"{path}: {reason}")
    if not path.is_file():
        return list_images(path)
    try:
        with opened(path, str(path)):  # an archive would count as one picture without a partner
            return [path]
    except UserError as error:
        if not isinstance(error.__cause__, UnidentifiedImageError):
            raise
        raise UserError(f"{error}; name {allowed}") from None


def images_and_masks(folder: Path) -> tuple[list[Path], list[Path]]:
    """Split one folder into images and masks, recognised by name."""
    files = list_images(folder)
    masks = [path for path in files if is_mask(path.name)]
    if len(masks) in (0, len(files)):
        raise UserError(f"{folder}: contains images and masks; name masks so, e.g. photo_mask.png")
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
