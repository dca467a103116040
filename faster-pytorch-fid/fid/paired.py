"""Errors between each image and its ground truth: PSNR, SSIM, and errors inside the hole.

Pixels are (H, W, 3) uint8; a mask is (H, W) uint8, 255 known, 0 hole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from fid.files import ScoreError
from fid.images import ImageSet, decode_image

IDENTICAL_PSNR = 100.0  # dB, stands for the infinity of equal images so that means stay finite
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
KNOWN, HOLE = 255, 0  # mask values


def psnr(error: np.ndarray) -> float:
    """Peak signal-to-noise ratio of 0..255 errors in dB; 100 for no error at all."""
    mean_square = float(np.square(error, dtype=np.float64).mean())
    return 10 * math.log10(255**2 / mean_square) if mean_square > 0 else IDENTICAL_PSNR


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004): 11 x 11 Gaussian window, sigma 1.5, channel mean.

    Raises:
        ScoreError: a side shorter than the window.
    """
    if min(first.shape[:2]) < SSIM_WINDOW:
        raise ScoreError(f"--metrics paired: SSIM needs images of at least {SSIM_WINDOW} pixels")
    x, y = (torch.tensor(p).double().permute(2, 0, 1)[:, None] for p in (first, second))
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    weights /= weights.sum()
    window = torch.outer(weights, weights)[None, None]

    def local_mean(values: torch.Tensor) -> torch.Tensor:
        return F.conv2d(values, window)  # (3, 1, H - 10, W - 10)

    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x = local_mean(x * x) - mean_x**2
    var_y = local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float((luminance * structure).mean())


def paired_metrics(
    predicted: ImageSet, reference: ImageSet, masks: ImageSet | None
) -> dict[str, float]:
    """Means over the pairs: psnr (dB), ssim and, with masks, hole_mae (0..255) and hole_psnr (dB).

    A pair without a hole counts for neither hole error; where no pair has one, both are left out.

    Raises:
        ScoreError: sets of different lengths, or a pair (or mask) of different sizes, a mask
            with other values than 255 and 0.
    """
    for name, others in (("ground truth", reference), ("masks", masks)):
        if others is not None and len(others) != len(predicted):
            raise ScoreError(
                f"--metrics paired: {predicted.path} has {len(predicted)} images, the {name} "
                f"{others.path} has {len(others)}"
            )
    found: dict[str, list[float]] = {"psnr": [], "ssim": [], "hole_mae": [], "hole_psnr": []}
    for index in range(len(predicted)):
        image, truth = predicted.pixels(index), reference.pixels(index)
        _same_size(predicted.label(index), image, reference.label(index), truth)
        error = image.astype(np.int16) - truth
        found["psnr"].append(psnr(error))
        found["ssim"].append(ssim(image, truth))
        if masks is None:
            continue
        mask = decode_image(masks.stored_bytes(index), masks.label(index), "L")
        _same_size(predicted.label(index), image, masks.label(index), mask)
        hole = _hole(mask, masks.label(index))
        if hole.any():
            found["hole_mae"].append(float(np.abs(error[hole]).mean()))
            found["hole_psnr"].append(psnr(error[hole]))
    return {name: _mean(values) for name, values in found.items() if values}


def _hole(mask: np.ndarray, name: str) -> np.ndarray:
    """Where a mask hides pixels, (H, W) bool; 1 may stand for 255, other values say neither."""
    if mask.max(initial=HOLE) == 1:
        return mask == HOLE
    wrong = mask[(mask != KNOWN) & (mask != HOLE)]
    if len(wrong):
        raise ScoreError(f"{name}: value {wrong[0]}, allowed are {KNOWN} and {HOLE}")
    return mask == HOLE


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _same_size(name1: str, first: np.ndarray, name2: str, second: np.ndarray) -> None:
    (height1, width1), (height2, width2) = first.shape[:2], second.shape[:2]
    if (height1, width1) != (height2, width2):
        raise ScoreError(
            f"--metrics paired: {name1} is {width1} x {height1}, {name2} {width2} x {height2}"
        )
