"""Weights and images that bench.fid gives to both scorers, seeded and without a download."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image

SIDE = 64
PHOTOGRAPHS = (skimage.data.astronaut, skimage.data.chelsea, skimage.data.coffee)
EXTENSIONS = {".png", ".jpg", ".jpeg"}
WEIGHTS_NAME = "random-inception.pth"


def write_weights(path: Path) -> None:
    """Seeded random weights under the public file's keys; scaled so that signals survive depth."""
    from torchvision.models import Inception3

    torch.manual_seed(0)
    network = Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.8, 1.25)
    torch.save(network.state_dict(), path)


def crops(count: int) -> Iterator[np.ndarray]:
    """Seeded crops of photographs that come with scikit-image, 64 x 64 after shrinking up to 3x."""
    photographs = [Image.fromarray(photo()) for photo in PHOTOGRAPHS]
    rng = np.random.default_rng(0)
    for _ in range(count):
        photograph = photographs[rng.integers(len(photographs))]
        side = int(rng.integers(SIDE, 3 * SIDE))
        left, top = (int(rng.integers(size - side + 1)) for size in photograph.size)
        box = (left, top, left + side, top + side)
        crop = photograph.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box)
        yield np.asarray(crop.convert("RGB"))


def write_images(truth: Path, predicted: Path, given: Path | None, count: int) -> None:
    """Ground truth (given or cropped) and predictions: the same with a smeared square."""
    truth.mkdir()
    predicted.mkdir()
    if given is None:
        images: Iterable[np.ndarray] = crops(count)
    else:
        files = sorted(path for path in given.iterdir() if path.suffix.lower() in EXTENSIONS)
        images = (np.asarray(Image.open(file).convert("RGB")) for file in files[:count])
    for index, pixels in enumerate(images):
        rng = np.random.default_rng(index)
        Image.fromarray(pixels).save(truth / f"image_{index:05d}.png")
        pixels, side = pixels.copy(), min(pixels.shape[:2]) // 2
        top, left = rng.integers(0, side, 2)
        hole = pixels[top : top + side, left : left + side]
        hole[:] = hole.mean(axis=(0, 1), keepdims=True)
        Image.fromarray(pixels).save(predicted / f"image_{index:05d}.png")
