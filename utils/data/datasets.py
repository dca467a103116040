"""The items of an inpainting job, read on demand. A hole mask is True where a pixel is hidden."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fid.pixels import profile_of
from tqdm import tqdm

from config.errors import printable
from utils.data.pairs import (
    check_same_size,
    image_files,
    images_and_masks,
    open_truth,
    pair,
    prepared_parts,
    warn_if_inverted,
)
from utils.io.images import MASK_THRESHOLD, load_rgb
from utils.io.masks import load_mask

ALPHA = Path("alpha")  # stands for the images' own transparency
SUSPICIOUS_SHARE = 0.7  # hidden share above which a mask may be inverted


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
    prepared folder. Mask values below `mask_threshold` are holes; `invert_masks` makes white
    pixels the holes. `masks` "alpha" uses the images' own transparency. `pair_by_order` pairs
    images and masks by position instead of by name. Raises UserError for inconsistent inputs.
    """

    def __init__(
        self,
        images: Path,
        masks: Path | None = None,
        ground_truth: Path | None = None,
        invert_masks: bool = False,
        mask_threshold: int = MASK_THRESHOLD,
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
        self.mask_threshold = mask_threshold
        self.truth = open_truth(ground_truth, self.images)
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
            mend = "leave out --invert-masks" if self.invert_masks else "give --invert-masks"
            text = (
                f"warning: {path}: {hole.mean():.0%} of the image would be repaired; if white "
                f"{'is known' if self.invert_masks else 'marks the holes'} in your masks, {mend}"
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
        check_same_size(self.images[index], image, self.truth.location, truth)
        return truth
