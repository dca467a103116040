"""Images to repair, their masks and ground truth, read on demand, and as networks take them.

A hole mask is True where a pixel is hidden. Letters: B batch, H height, W width.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from fid.names import rows_by_name
from fid.pixels import profile_of
from torch import Tensor
from tqdm import tqdm

from config.errors import UserError, printable
from utils.data.pairs import (
    check_same_size,
    image_files,
    images_and_masks,
    pair,
    prepared_parts,
    warn_if_inverted,
)
from utils.io.images import KNOWN, MASK_THRESHOLD, load_mask, load_rgb
from utils.io.messages import as_user_error, note

Channels = Sequence[float]  # red, green, blue, in 0..1

ALPHA = Path("alpha")  # stands for the images' own transparency
SUSPICIOUS_SHARE = 0.7  # hidden share above which a mask may be inverted


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


@dataclass(frozen=True)
class InpaintingItem:
    """One image to repair."""

    index: int  # position in the job, from 0, in natural order of the file names
    name: str  # the image's file name
    image: np.ndarray  # uint8 (H, W, 3)
    hole: np.ndarray  # bool (H, W), True = to be filled
    profile: bytes | None = None  # the image's ICC profile, kept in the result


class InpaintingSet:
    """The items of a job, read on demand, so memory does not grow with the job.

    `images` and `masks` are two folders, two files, or a prepared folder and None.
    `ground_truth` is a folder, a file or a CSV table in the lab's form; by default that of a
    prepared folder. Mask values below `mask_threshold`, by default 128, are holes; `invert_masks`
    makes white pixels the holes. `masks` "alpha" uses the images' own transparency, by default
    all pixels that are not opaque, since white is mixed into them. `pair_by_order` pairs images
    and masks by position instead of by name. Raises UserError for inconsistent inputs.
    """

    def __init__(
        self,
        images: Path,
        masks: Path | None = None,
        ground_truth: Path | None = None,
        invert_masks: bool = False,
        mask_threshold: int | None = None,
        pair_by_order: bool = False,
    ) -> None:
        is_one = masks is not None and os.path.realpath(images) == os.path.realpath(masks)
        if masks is None:
            images, masks, found = prepared_parts(images)
            ground_truth = ground_truth or found
        self.from_alpha = masks == ALPHA and not masks.exists()
        if is_one and images.is_dir():
            self.images, found = images_and_masks(images)
        else:
            self.images = image_files(images)
            found = self.images if self.from_alpha else image_files(masks)
        self.masks = found
        if not self.from_alpha:
            self.masks = pair(self.images, found, "masks", by_order=pair_by_order, spare=True)
        self.mask_threshold = mask_threshold or (KNOWN if self.from_alpha else MASK_THRESHOLD)
        self.truth: TruthFiles | TruthTable | None = None
        if ground_truth and ground_truth.suffix.lower() == ".csv":
            self.truth = TruthTable(ground_truth, self.images, self.masks, found)
        elif ground_truth:
            self.truth = TruthFiles(ground_truth, self.images)
        self.invert_masks = invert_masks
        self.warned = False

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> InpaintingItem:
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends a plain for loop
        path = self.images[index]
        picture = load_rgb(path)
        hole = load_mask(self.masks[index], self.mask_threshold, from_alpha=self.from_alpha)
        image = np.asarray(picture)
        check_same_size(path, image, self.masks[index], hole)
        hole = ~hole if self.invert_masks else hole
        warn_if_inverted(path, image, self.masks[index], hole)
        self._warn_if_large(self.masks[index], hole)
        return InpaintingItem(index, path.name, image, hole, profile_of(picture))

    def _warn_if_large(self, path: Path, hole: np.ndarray) -> None:
        """Warn about the first mask that hides most of its image, as it may be inverted."""
        if hole.mean() > SUSPICIOUS_SHARE and not self.warned:
            self.warned = True
            advice = "leave out --invert-masks" if self.invert_masks else "give --invert-masks"
            text = (
                f"warning: {path}: {hole.mean():.0%} of the image would be repaired; if white "
                f"{'is known' if self.invert_masks else 'marks the holes'} in your masks, {advice}"
            )
            tqdm.write(printable(text), file=sys.stderr)

    def ground_truth(self, index: int, image: np.ndarray | None = None) -> np.ndarray | None:
        """The ground truth of an image, uint8 (H, W, 3), or None if the job has none.

        image: its pixels, to check the size; read from the file if None.
        """
        if self.truth is None:
            return None
        truth = self.truth.pixels(index)
        image = np.asarray(load_rgb(self.images[index])) if image is None else image
        place = self.truth.files[index] if self.truth.files else self.truth.location
        check_same_size(self.images[index], image, place, truth)
        return truth


def normalise(images: np.ndarray | Tensor, mean: Channels, std: Channels) -> Tensor:
    """Turn uint8 images (B, H, W, 3) or (B, 3, H, W) into float32 (B, 3, H, W), mean 0, std 1.

    A tensor stays on its device. An ambiguous shape is read as channels-last.
    """
    images = torch.as_tensor(images)
    assert images.dtype == torch.uint8, f"images are uint8, not {images.dtype}"
    assert images.ndim == 4, f"images are (B, H, W, 3) or (B, 3, H, W), not {images.shape}"
    if images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    mean, std = _columns(images, mean, std)
    return (images.float() / 255 - mean) / std  # (B, 3, H, W)


def to_uint8(images: Tensor, mean: Channels, std: Channels) -> Tensor:
    """Undo `normalise`: float (B, 3, H, W) to uint8 (B, H, W, 3), rounded, clamped to 0..255."""
    mean, std = _columns(images, mean, std)
    values = (images.float() * std + mean) * 255
    return values.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _columns(images: Tensor, mean: Channels, std: Channels) -> tuple[Tensor, Tensor]:
    """Channel values as (3, 1, 1) tensors, filled on the images' device: a copy would wait."""
    mean, std = (
        torch.stack([images.new_full((1, 1), value, dtype=torch.float32) for value in values])
        for values in (mean, std)
    )
    return mean, std
