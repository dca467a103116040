"""Small images and the files that hold them."""

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 16


def draw_images(count: int, seed: int, side: int = SIDE) -> list[np.ndarray]:
    """Images of coloured patches, (side, side, 3) uint8."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (count, side // 4, side // 4, 3), dtype=np.uint8)
    return list(small.repeat(4, axis=1).repeat(4, axis=2))


def write_folder(folder: Path, images: list[np.ndarray], prefix: str = "image") -> Path:
    folder.mkdir(parents=True)
    for index, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{prefix}_{index:03d}.png")
    return folder


def write_csv(path: Path, images: list[np.ndarray]) -> Path:
    lines = [",".join(f"pixel{i}" for i in range(images[0].size))]
    lines += [",".join(map(str, pixels.ravel())) for pixels in images]
    path.write_text("\n".join(lines) + "\n")
    return path
