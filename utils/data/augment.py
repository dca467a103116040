"""Training images, read into memory, and augmented views of them.

A view is mirrored half of the time, scaled, shifted and rotated about its centre with reflected
borders, and slightly changed in brightness, contrast and saturation. All views of a set use one
fixed seed, so that caches of them can be shared. torchvision.transforms.v2 has no bicubic or
reflected affine maps and no separate map for each image.
Shapes: n images, B batch, H x W pixels.
"""

from __future__ import annotations

import copy
import math
import shlex
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from fid.pixels import profile_of
from torch import Tensor
from tqdm import tqdm

from config.errors import UserError
from config.schema import DataConfig
from utils.data.pairs import list_images
from utils.io.files import read_ahead
from utils.io.images import load_rgb, note_profile

LOADING_THREADS, LOADED_AHEAD = 4, 64
AS_IS, MIRRORED = 0, 1  # views that every image has
PLAIN_VIEWS = 2  # how many these are
AUGMENT_VERSION = 1  # part of the cache key; increase when views change
AUGMENT_SEED = 2022
SCALE = (0.85, 1.15)  # zoom; above 1 crops the border
SHIFT = 4 / 64  # of a side, in each direction
ANGLE = 8.0  # degrees, either way
BRIGHTNESS, CONTRAST, SATURATION = 0.08, 0.1, 0.15  # relative change, up or down
NUMBERS_A_VIEW = 8  # random numbers per view
MAX_KEPT_BYTES = 4 << 30  # of views cached in host memory, for training on a GPU
KEEP_AT_ONCE = 512  # images whose views are made together
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def load_images(folder: Path, image_size: int) -> Tensor:
    """All images of a folder in natural order, (n, 3, H, W) uint8; 12 kB per image at 64 x 64.

    Raises `UserError` if their sides are not of ``image_size`` pixels.
    """
    paths = list_images(folder)
    images = torch.empty(len(paths), 3, image_size, image_size, dtype=torch.uint8)

    def load(i: int) -> None:
        image = load_rgb(paths[i])
        if image.size != (image_size, image_size):
            found = f"{image.width} x {image.height} pixels, not {image_size} x {image_size}"
            place = shlex.quote(str(folder))
            resize = f"prepare_data.py images {place} --image-size {image_size} --out DIR"
            raise UserError(f"{paths[i]}: {found}; resize the set with: {resize}")
        note_profile(profile_of(image), str(paths[i]))
        images[i] = torch.from_numpy(np.array(image)).permute(2, 0, 1)

    done = read_ahead(load, range(len(paths)), LOADING_THREADS, LOADED_AHEAD)
    for _ in tqdm(done, folder.name, len(paths), unit="image"):
        pass
    return images


def split_images(data: DataConfig, split: Literal["train", "val"]) -> Tensor:
    """Images of a split, (n, 3, H, W) uint8."""
    return load_images(data.folder(split), data.image_size)


class Views:
    """All views of a set of images: 0 unchanged, 1 mirrored, the rest augmented."""

    def __init__(self, images: Tensor, count: int) -> None:
        """images: (n, 3, H, W) uint8. count: views per image, at least 2."""
        assert count >= PLAIN_VIEWS, f"{count} views leave no place for the mirror image"
        self.images, self.count = images, count
        generator = torch.Generator().manual_seed(AUGMENT_SEED)
        size = len(images), count - PLAIN_VIEWS, NUMBERS_A_VIEW
        self.numbers = torch.rand(size, generator=generator)
        self.kept: Tensor | None = None  # (n, V, 3, H, W) uint8

    def part(self, rows: np.ndarray) -> Views:
        """A subset of the images with the same views."""
        few = copy.copy(self)
        few.images, few.numbers = self.images[rows], self.numbers[rows]
        few.kept = None if self.kept is None else self.kept[rows]
        return few

    def keep(self, device: torch.device) -> None:
        """Compute all views ahead on a device, for `pick`, unless they exceed MAX_KEPT_BYTES."""
        if len(self.images) and self.count * self.images.nbytes <= MAX_KEPT_BYTES:
            self.kept = self.images.new_empty(len(self.images), self.count, *self.images.shape[1:])
            for start in range(0, len(self.images), KEEP_AT_ONCE):
                rows = slice(start, start + KEEP_AT_ONCE)
                for view in range(self.count):
                    self.kept[rows, view] = self.of(rows, view, device).cpu()

    def __len__(self) -> int:
        return len(self.images)

    def of(self, rows: slice, view: int, device: torch.device) -> Tensor:
        """One view of some of the images, (B, 3, H, W) uint8, computed on the device."""
        images = self.images[rows].to(device)
        if view in (AS_IS, MIRRORED):
            return images.flip(3) if view == MIRRORED else images
        return augment(images, self.numbers[rows, view - 2])

    def pick(self, image_ids: Tensor, views: Tensor) -> Tensor:
        """One view (B,) for each image (B,), (B, 3, H, W) uint8 on the CPU."""
        if self.kept is not None:
            return self.kept[image_ids, views]
        images = self.images[image_ids].clone()
        mirrored, others = views == MIRRORED, views > MIRRORED
        images[mirrored] = images[mirrored].flip(3)
        if others.any():
            numbers = self.numbers[image_ids[others], views[others] - 2]
            images[others] = augment(images[others], numbers)
        return images


def augment(images: Tensor, numbers: Tensor) -> Tensor:
    """One view of each image: (B, 3, H, W) uint8, (B, 8) -> (B, 3, H, W) uint8, same device."""
    numbers = numbers.to(images.device)
    places = F.affine_grid(_geometry(numbers), list(images.shape), align_corners=False)
    moved = F.grid_sample(
        images.float(), places, mode="bicubic", padding_mode="reflection", align_corners=False
    )
    return _recolour(moved, numbers).round().clamp(0, 255).to(torch.uint8)


def _geometry(numbers: Tensor) -> Tensor:
    """Affine maps from view to image coordinates in [-1, 1]^2, (B, 8) -> (B, 2, 3)."""
    side = torch.where(numbers[:, 0] < 0.5, -1.0, 1.0)
    zoom = 1 / (SCALE[0] + (SCALE[1] - SCALE[0]) * numbers[:, 1])
    angle = math.radians(ANGLE) * _either_way(numbers[:, 2])
    across, down = (2 * SHIFT * _either_way(numbers[:, i]) for i in (3, 4))
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    rows = (side * cos, -sin, across, side * sin, cos, down)
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def _recolour(images: Tensor, numbers: Tensor) -> Tensor:
    """Scale brightness, contrast and saturation of images in 0..255."""
    changes = zip((BRIGHTNESS, CONTRAST, SATURATION), (5, 6, 7), strict=True)
    brightness, contrast, saturation = (
        (1 + most * _either_way(numbers[:, i])).view(-1, 1, 1, 1) for most, i in changes
    )
    images = images.clamp(0, 255) * brightness  # bicubic interpolation overshoots
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + contrast * (images - mean)
    luma = images.new_tensor(LUMA).view(1, 3, 1, 1)
    grey = (images * luma).sum(1, keepdim=True)
    return grey + saturation * (images - grey)


def _either_way(uniform: Tensor) -> Tensor:
    """[0, 1) -> [-1, 1)."""
    return 2 * uniform - 1
