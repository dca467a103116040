"""Other views of a set of images: all in one size, or the surroundings of each image's hole."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import find_objects, label

from fid.images import ImageSet, decode_image

FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
SMALLEST = 0.5  # of the image's sides, so at least a quarter of its area
HOLE = 0  # mask value


class Size(NamedTuple):
    """Width and height in pixels, and the name of Pillow's filter."""

    width: int
    height: int
    filter: str


class ResizedImages(ImageSet):
    """Images brought to one size by Pillow; their hash stays that of the files."""

    def __init__(self, images: ImageSet, size: Size) -> None:
        super().__init__(images.path, images.names)
        self.images, self.size = images, size

    def stored_bytes(self, index: int) -> bytes:
        return self.images.stored_bytes(index)

    def pixels(self, index: int) -> np.ndarray:
        return resized(self.images.pixels(index), self.size)


class HoleCrops(ImageSet):
    """Each image's largest hole with its surroundings, enlarged to the image's size."""

    def __init__(self, images: ImageSet, boxes: dict[int, tuple[slice, slice]]) -> None:
        """boxes: rows and columns of image i, for the images that have a hole."""
        self.numbers = list(boxes)
        super().__init__(images.path, [images.names[number] for number in self.numbers])
        self.images, self.boxes = images, boxes

    def stored_bytes(self, index: int) -> bytes:
        return self.images.stored_bytes(self.numbers[index])

    def pixels(self, index: int) -> np.ndarray:
        number = self.numbers[index]
        image = self.images.pixels(number)
        size = Size(image.shape[1], image.shape[0], "bicubic")
        return resized(np.ascontiguousarray(image[self.boxes[number]]), size)


def resized(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Pixels (H, W, 3) uint8 in another size; as they are where that is theirs already."""
    if pixels.shape[:2] == (size.height, size.width):
        return pixels
    image = Image.fromarray(pixels).resize(size[:2], FILTERS[size.filter])
    return np.asarray(image)


def hole_boxes(masks: ImageSet) -> dict[int, tuple[slice, slice]]:
    """Where the largest hole of each mask lies, enlarged; masks without a hole have no box."""
    boxes = {}
    for index in range(len(masks)):
        mask = decode_image(masks.stored_bytes(index), masks.label(index), "L")
        if (mask == HOLE).any():
            boxes[index] = hole_box(mask == HOLE)
    return boxes


def hole_box(hole: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the largest connected hole (H, W), each at least half of its side."""
    numbers, count = label(hole, np.ones((3, 3)))
    largest = 1 + int(np.argmax(np.bincount(numbers.ravel(), minlength=count + 1)[1:]))
    box = find_objects(numbers, largest)[largest - 1]
    return tuple(_enlarged(side, length) for side, length in zip(box, hole.shape, strict=True))


def _enlarged(side: slice, length: int) -> slice:
    """A side of at least half of ``length``, about the same middle as far as the image goes."""
    wanted = max(side.stop - side.start, round(SMALLEST * length))
    start = (side.start + side.stop - wanted) // 2
    start = min(max(start, 0), length - wanted)
    return slice(start, start + wanted)
