"""Images as tensors: load folders into memory, and normalise pixels for the networks.

Letters: B batch, H height, W width.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from fid.pixels import profile_of
from torch import Tensor
from tqdm import tqdm

from config.errors import UserError
from config.schema import DataConfig
from utils.io.images import list_images, load_rgb, tell_of_profile
from utils.io.overlap import read_ahead

Channels = Sequence[float]  # red, green, blue, in 0..1
LOADING_THREADS, LOADED_AHEAD = 4, 64


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


def load_images(folder: Path, image_size: int | None = None) -> Tensor:
    """All images of a folder in natural order, (n, 3, H, W) uint8; 12 kB per image at 64 x 64.

    Raises `UserError` if they differ in size, or from ``image_size`` (side in pixels).
    """
    paths = list_images(folder)
    first = load_rgb(paths[0]).size
    size = first if image_size is None else (image_size, image_size)
    images = torch.empty(len(paths), 3, size[1], size[0], dtype=torch.uint8)

    def load(i: int) -> None:
        image = load_rgb(paths[i])
        if image.size != size:
            found, wanted = (f"{width} x {height}" for width, height in (image.size, size))
            place = shlex.quote(str(folder))
            resize = f"prepare_data.py images {place} --image-size {size[0]} --out DIR"
            raise UserError(
                f"{paths[i]}: {found} pixels, not {wanted}; resize the set with: {resize}"
            )
        tell_of_profile(profile_of(image), str(paths[i]))
        images[i] = torch.from_numpy(np.array(image)).permute(2, 0, 1)

    done = read_ahead(load, range(len(paths)), LOADING_THREADS, LOADED_AHEAD)
    for _ in tqdm(done, folder.name, len(paths), unit="image"):
        pass
    return images


def split_images(data: DataConfig, split: Literal["train", "val"]) -> Tensor:
    """Images of a split, (n, 3, H, W) uint8."""
    return load_images(data.folder(split), data.image_size)


def _columns(images: Tensor, mean: Channels, std: Channels) -> tuple[Tensor, Tensor]:
    """Channel values as (3, 1, 1) tensors on the images' device."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=images.device).view(3, 1, 1)
        for values in (mean, std)
    )
    return mean, std
