"""Images as tensors: folders held in memory for training, inpainting jobs read item by item.

Letters: B batch, H height, W width. A hole mask is True where a pixel is hidden.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from config.errors import UserError
from config.schema import DataConfig
from utils.data.pairs import (
    check_same_size,
    image_files,
    images_and_masks,
    open_truth,
    pair,
    prepared_parts,
    warn_if_inverted,
)
from utils.io.colour import profile_of
from utils.io.images import MASK_THRESHOLD, list_images, load_rgb
from utils.io.masks import load_mask
from utils.io.overlap import read_ahead

Channels = Sequence[float]  # one number for each of red, green, blue, in 0..1
LOADING_THREADS, LOADED_AHEAD = 4, 64
ALPHA = Path("alpha")  # stands for the images' own transparency
SUSPICIOUS_SHARE = 0.7  # of an image that a mask seldom hides


def normalise(images: np.ndarray | Tensor, mean: Channels, std: Channels) -> Tensor:
    """Turn uint8 images (B, H, W, 3) or (B, 3, H, W) into float32 (B, 3, H, W), mean 0, std 1.

    A tensor stays on its device. Where both layouts fit, channels are taken to be last.
    """
    images = torch.as_tensor(images)
    assert images.dtype == torch.uint8, f"images are uint8, not {images.dtype}"
    assert images.ndim == 4, f"images are (B, H, W, 3) or (B, 3, H, W), not {images.shape}"
    if images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    mean, std = _columns(images, mean, std)
    return (images.float() / 255 - mean) / std  # (B, 3, H, W)


def to_uint8(images: Tensor, mean: Channels, std: Channels) -> Tensor:
    """Undo `normalise`: float (B, 3, H, W) to uint8 (B, H, W, 3), rounded and cut to 0..255."""
    mean, std = _columns(images, mean, std)
    values = (images.float() * std + mean) * 255
    return values.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


class ImageFolder(Dataset[Tensor]):
    """All images of one folder, in natural order, decoded once into memory.

    Items are uint8 (3, H, W); `images` is the whole (N, 3, H, W) tensor, 12 kB an image at
    64 x 64, and `paths` the files. Raises UserError if the images differ in size, or from
    `image_size` (pixels of a side).
    """

    def __init__(self, folder: Path, image_size: int | None = None, progress: bool = True) -> None:
        self.paths = list_images(folder)
        first = load_rgb(self.paths[0]).size
        size = first if image_size is None else (image_size, image_size)
        self.images = torch.empty(len(self.paths), 3, size[1], size[0], dtype=torch.uint8)

        def load(i: int) -> None:
            image = load_rgb(self.paths[i])
            if image.size != size:
                found, wanted = (f"{width} x {height}" for width, height in (image.size, size))
                resize = f"prepare_data.py images {folder} --image-size {size[0]} --out DIR"
                raise UserError(
                    f"{self.paths[i]}: {found} pixels, not {wanted}; resize the set with: {resize}"
                )
            self.images[i] = torch.from_numpy(np.array(image)).permute(2, 0, 1)

        done = read_ahead(load, range(len(self.paths)), LOADING_THREADS, LOADED_AHEAD)
        name = Path(folder).name
        for _ in tqdm(done, name, len(self.paths), unit="image", disable=not progress):
            pass

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def split_images(data: DataConfig, split: Literal["train", "val"]) -> Tensor:
    """Images of a split, (n, 3, H, W) uint8."""
    return ImageFolder(data.folder(split), data.image_size).images


@dataclass(frozen=True)
class InpaintingItem:
    """One image to repair."""

    index: int  # place in the job, from 0, in the natural order of the images' names
    name: str  # the image's file name
    image: np.ndarray  # uint8 (H, W, 3)
    hole: np.ndarray  # bool (H, W), True = to be filled
    profile: bytes | None = None  # the image's colour profile (ICC), which its repair keeps


class InpaintingSet(Dataset[InpaintingItem]):
    """The items of a job, read when asked for, so memory does not grow with the job.

    `images` and `masks` are two folders, two files, or a prepared folder and None.
    `ground_truth` is a folder, a file or a CSV table of the lab's form; a prepared folder's own
    is found by itself. With `invert_masks` the white pixels of masks are the holes; values below
    `mask_threshold` are holes. Masks named `alpha` are the images' own transparency. With
    `pair_by_order` the first mask belongs to the first image, whatever their names are. Raises
    UserError for what does not fit together.
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
        if masks is None:
            images, masks, found = prepared_parts(images)
            ground_truth = ground_truth or found
        self.from_alpha = masks == ALPHA and not masks.exists()
        if images == masks and images.is_dir():
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
        """Name the first mask that hides most of its image: it may be meant the other way."""
        if hole.mean() > SUSPICIOUS_SHARE and not self.warned:
            self.warned = True
            mend = "leave out --invert-masks" if self.invert_masks else "give --invert-masks"
            tqdm.write(
                f"warning: {path}: {hole.mean():.0%} of the image would be repaired; if white "
                f"{'is known' if self.invert_masks else 'marks the holes'} in your masks, {mend}",
                file=sys.stderr,
            )

    def ground_truth(self, index: int, image: np.ndarray | None = None) -> np.ndarray | None:
        """What an image hid, uint8 (H, W, 3), or None where it is not known.

        image: its pixels, if they are at hand; else they are read, to compare the sizes.
        """
        if self.truth is None:
            return None
        truth = self.truth.pixels(index)
        image = np.asarray(load_rgb(self.images[index])) if image is None else image
        check_same_size(self.images[index], image, self.truth.location, truth)
        return truth


def _columns(images: Tensor, mean: Channels, std: Channels) -> tuple[Tensor, Tensor]:
    """Shape channel values to (3, 1, 1) on the images' device."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=images.device).view(3, 1, 1)
        for values in (mean, std)
    )
    return mean, std
