"""The embedded images: crops of public-domain photographs shipped with scikit-image.

Each photograph is cut into three vertical bands, 60 % of its width for train, then 20 % for test
and 20 % for val (most subjects reach into the second band, few into the third). A crop lies within
its band and is cut out before it is resized, so no pixel contributes to two splits. Crops are
squares between the image size and the band's shorter side, their sides spread evenly on a
logarithmic scale, resized with antialiasing.
"""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from config.errors import UserError
from utils.data.sources import SPLIT_NAMES, Counts, Splits, square_crop
from utils.io.images import load_rgb

# Colour photographs only, without the package's medical images and the stereo pair, which is not in
# the public domain. Terms as stated in the docstrings of `skimage.data`.
PHOTOS = {
    "astronaut.png": "Eileen Collins, NASA; public domain",
    "chelsea.png": "Chelsea the cat, Stefan van der Walt; CC0",
    "coffee.png": "Coffee cup, Rachel Michetti; CC0",
    "hubble_deep_field.jpg": "Hubble eXtreme Deep Field, NASA; public domain",
    "rocket.jpg": "Launch of DSCOVR, SpaceX; public domain",
}
BANDS = {"train": (0.0, 0.6), "test": (0.6, 0.8), "val": (0.8, 1.0)}  # of the width
MIN_CONTRAST = 6.0  # standard deviation of grey values 0..255; below is empty sky
MAX_TRIES = 1000  # draws for one crop


class Photos:
    """A source like `ImageFiles`, with crops instead of files."""

    kind = "photos"
    name = label = "photographs of scikit-image"
    path = None  # nothing that --out could overwrite

    def __init__(self) -> None:
        self.skipped: list[str] = []
        self.report: Counts = {"files": len(PHOTOS)}

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for file in PHOTOS:
            digest.update(photo_path(file).read_bytes())
        return digest.hexdigest()

    def splits(self, counts: Counts, image_size: int, seed: int, workers: int) -> Splits:
        """Cut the crops, cycling through the photographs; (seed, split, index) determine a crop."""
        del workers  # cropping is cheaper than handing it to a thread
        photos = [load_rgb(photo_path(file), file) for file in PHOTOS]
        limit = min(_largest_side(photo, split) for photo in photos for split in SPLIT_NAMES)
        if image_size > limit:
            raise UserError(f"--image-size: {image_size}; photos allow at most {limit}")
        seen: set[bytes] = set()
        splits: Splits = {}
        for code, split in enumerate(SPLIT_NAMES):
            splits[split] = []
            for i in tqdm(range(counts[split]), desc=split, unit="crop"):
                rng = np.random.default_rng([seed, code, i])
                crop = _new_crop(photos[i % len(photos)], split, image_size, rng, seen)
                splits[split].append(crop)
        return splits


def photo_path(file: str) -> Path:
    """Path of a photograph in the installed scikit-image; nothing is ever downloaded."""
    path = Path(str(resources.files("skimage") / "data" / file))
    if not path.is_file():
        raise UserError(f"{file}: not in the installed scikit-image; install 0.22 or newer")
    return path


def band(width: int, split: str) -> tuple[int, int]:
    """Column range [start, stop) of a split's band in a photograph `width` pixels wide."""
    low, high = BANDS[split]
    return round(low * width), round(high * width)


def draw_box(
    photo_size: tuple[int, int], split: str, image_size: int, rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a crop (left, top, right, bottom) within the split's band of a (width, height) photo."""
    width, height = photo_size
    start, end = band(width, split)
    side = int(np.exp(rng.uniform(np.log(image_size), np.log(min(end - start, height) + 1))))
    left = int(rng.integers(start, end - side + 1))
    top = int(rng.integers(0, height - side + 1))
    return left, top, left + side, top + side


def _largest_side(photo: Image.Image, split: str) -> int:
    start, end = band(photo.width, split)
    return min(end - start, photo.height)


def _new_crop(
    photo: Image.Image,
    split: str,
    image_size: int,
    rng: np.random.Generator,
    seen: set[bytes],
) -> np.ndarray:
    """Draw until a crop has enough contrast and is new, uint8 (size, size, 3)."""
    for _ in range(MAX_TRIES):
        crop = square_crop(photo.crop(draw_box(photo.size, split, image_size, rng)), image_size)
        if crop.mean(axis=2).std() >= MIN_CONTRAST and crop.tobytes() not in seen:
            seen.add(crop.tobytes())
            return crop
    raise UserError(f"photos: too few different crops for --split in the {split} bands")
