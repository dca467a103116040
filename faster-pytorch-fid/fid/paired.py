"""Images and their own ground truth: which belong together, errors, and crops around holes.

Pixels are (H, W, 3) uint8; a mask is (H, W) uint8, 255 known, 0 hole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fid.files import ScoreError, composed, note
from fid.images import ImageSet
from fid.names import natural_key, partners, rows_by_name, stem
from fid.pixels import Size, decode_image, holes, mask_values, resized

IDENTICAL_PSNR = 100.0  # dB, instead of infinity for equal images, so that means stay finite
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_TRUNCATE = 3.5  # in sigmas: the Gaussian ends at the window
INSIDE = slice(SSIM_WINDOW // 2, -(SSIM_WINDOW // 2))  # pixels whose window lies within the image
KNOWN, HOLE = 255, 0  # mask values
SMALLEST_CROP = 0.5  # of the image's height and width, so at least a quarter of its area


def belonging(
    images: ImageSet | Path, others: ImageSet | Path, names: Sequence[Any] = ()
) -> ImageSet | Path:
    """The partner in `others` of each image, matched by name (names.py).

    names: what the manifest calls the partners, used if all are there, else the images' own names.
    Rows of a csv else match by the images' numbers or by position (`rows_by_name`). Unmatched ones
    are dropped with a note. Sets of different length and files of statistics are returned
    unchanged.
    """
    if isinstance(images, Path) or isinstance(others, Path):
        return others
    wanted = next((each for each in (names, images.names) if each and _has(others, each)), None)
    if wanted is None and not (images.has_names and others.has_names):
        rows: Sequence[int] = range(min(len(images), len(others)))
        if (surplus := len(others) - len(images)) > 0:
            how = "they have the first rows, in order"
            if images.has_names:
                rows, how = rows_by_name(images.names, len(others))
            note(f"{others.path}: {surplus} rows more than images are left out; {how}")
        return others.named(others.names[row] for row in rows)
    if wanted is None:
        places = partners(images.names, others.names, spare=len(others) > len(images))
        wanted = places and [others.names[place] for place in places]
    if wanted is not None:
        if (count := len(set(wanted))) < len(others):
            text = f"{count} of the {len(others)} images have a partner"
            note(f"{others.path}: {text}; the others are not used")
        return others.select(wanted)
    if len(images) != len(others):
        return others
    alone = {stem(name) for name in images.names} ^ {stem(name) for name in others.names}
    shown = ", ".join(sorted(alone, key=natural_key)[:3]) or "names that occur twice"
    raise ScoreError(
        f"{images.path} and {others.path} do not pair by the number at the end or by name; "
        f"without a partner: {shown}"
    )


def _has(images: ImageSet, names: Sequence[Any]) -> bool:
    """Whether names from a manifest are those of images, or numbers, as a csv has them."""
    if not images.has_names:
        return all(type(name) is int for name in names)  # True is an int too
    return {composed(str(name)) for name in names}.issubset(map(composed, images.names))


def psnr(error: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of errors on the 0..255 scale; at most 100."""
    mean_square = float(np.square(error, dtype=np.float64).mean())
    if mean_square == 0:
        return IDENTICAL_PSNR
    return min(IDENTICAL_PSNR, 10 * math.log10(255**2 / mean_square))


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity (Wang et al. 2004), 11 x 11 Gaussian of sigma 1.5, channel mean.

    Raises `ScoreError` for images smaller than the window.
    """
    from scipy.ndimage import gaussian_filter  # imported here: --help does without SciPy

    check_window(first)
    x, y = first.astype(np.float64), second.astype(np.float64)

    def local_mean(values: np.ndarray) -> np.ndarray:
        means = gaussian_filter(values, (SSIM_SIGMA, SSIM_SIGMA, 0), truncate=SSIM_TRUNCATE)
        return means[INSIDE, INSIDE]  # (H - 10, W - 10, 3)

    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x = local_mean(x * x) - mean_x**2
    var_y = local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float((luminance * structure).mean())


def check_window(image: np.ndarray) -> None:
    """Raise `ScoreError` for an image that is too small for SSIM, (H, W, 3)."""
    if min(image.shape[:2]) < SSIM_WINDOW:
        raise ScoreError(f"--metrics paired: SSIM needs images of at least {SSIM_WINDOW} pixels")


def paired_metrics(
    predicted: ImageSet, reference: ImageSet, masks: ImageSet | None
) -> dict[str, float]:
    """Means over the pairs: psnr (dB), ssim and, with masks, hole_mae (0..255) and hole_psnr (dB).

    Pairs without a hole are excluded from the hole errors; if no pair has one, both are omitted.
    Raises `ScoreError` for a pair (or mask) of different sizes and for invalid values in a mask.
    """
    found: dict[str, list[float]] = {"psnr": [], "ssim": [], "hole_mae": [], "hole_psnr": []}
    for index in range(len(predicted)):
        image, truth = predicted.pixels(index), reference.pixels(index)
        _check_size(predicted, index, image, reference, truth)
        error = image.astype(np.int16) - truth
        found["psnr"].append(psnr(error))
        found["ssim"].append(ssim(image, truth))
        if masks is None:
            continue
        hole = read_hole(masks, index)
        _check_size(predicted, index, image, masks, hole)
        if hole.any():
            found["hole_mae"].append(float(np.abs(error[hole]).mean()))
            found["hole_psnr"].append(psnr(error[hole]))
    return {name: math.fsum(values) / len(values) for name, values in found.items() if values}


def read_hole(masks: ImageSet, index: int) -> np.ndarray:
    """Hole pixels of a mask at the set's size, (H, W) bool; masks may use 0 and 1 for 0 and 255.

    Other values are an error unless the manifest states the threshold that inpainting used. Of
    inverted masks the rest is the hole.
    """
    name = masks.label(index)
    mask = decode_image(masks.stored_bytes(index), name, mask_values)
    known = 1 if mask.max(initial=HOLE) == 1 else KNOWN
    wrong = mask[(mask != known) & (mask != HOLE)]
    if len(wrong) and masks.threshold is None:
        raise ScoreError(f"{name}: value {wrong[0]:g}, allowed are {KNOWN} and {HOLE}")
    hole = holes(mask, masks.threshold or KNOWN, name)
    hole = ~hole if masks.inverted else hole
    if masks.size is None:
        return hole
    return resized(hole.astype(np.uint8), masks.size._replace(filter="nearest")).astype(bool)


def _check_size(
    images: ImageSet, index: int, image: np.ndarray, others: ImageSet, other: np.ndarray
) -> None:
    """Raise `ScoreError` if the images `index` of two sets differ in size, (H, W, ...)."""
    if image.shape[:2] != other.shape[:2]:
        size1, size2 = (f"{side.shape[1]} x {side.shape[0]}" for side in (image, other))
        raise ScoreError(f"{images.label(index)} is {size1}, {others.label(index)} {size2}")


class HoleCrops(ImageSet):
    """Crops around the largest hole of the images `numbers`, resized to the image's size."""

    def __init__(self, images: ImageSet, masks: ImageSet, numbers: list[int]) -> None:
        super().__init__(images.path, [images.names[number] for number in numbers])
        self.images, self.masks, self.numbers = images, masks, numbers

    def stored_bytes(self, index: int) -> bytes:
        return self.images.stored_bytes(self.numbers[index])

    def decoded(self, index: int) -> np.ndarray:
        number = self.numbers[index]
        image, hole = self.images.pixels(number), read_hole(self.masks, number)
        _check_size(self.images, number, image, self.masks, hole)
        crop = np.ascontiguousarray(image[hole_box(hole)])
        return resized(crop, Size(image.shape[1], image.shape[0]))


def with_hole(masks: ImageSet) -> list[int]:
    """Indices of the masks that have a hole."""
    return [index for index in range(len(masks)) if read_hole(masks, index).any()]


def hole_box(hole: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns around the largest connected hole (H, W), each at least half the image."""
    from scipy.ndimage import find_objects, label  # imported here: --help does without SciPy

    numbers, count = label(hole, np.ones((3, 3)))
    largest = 1 + int(np.argmax(np.bincount(numbers.ravel(), minlength=count + 1)[1:]))
    box = find_objects(numbers, largest)[largest - 1]
    enlarged = []
    for side, length in zip(box, hole.shape, strict=True):
        wanted = max(side.stop - side.start, round(SMALLEST_CROP * length))
        start = (side.start + side.stop - wanted) // 2  # the same centre, but within the border
        start = min(max(start, 0), length - wanted)
        enlarged.append(slice(start, start + wanted))
    return tuple(enlarged)
