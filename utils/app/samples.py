"""Pictures to begin with that may be handed on: public-domain photographs, the model's own."""

from __future__ import annotations

import numpy as np

from utils.data.photos import photo_path
from utils.data.sources import square_crop
from utils.inpainting.inpainter import Inpainter
from utils.io.images import load_rgb

CROPS = {  # name: photograph of scikit-image (utils/data/photos.py has the terms), box in pixels
    "Chelsea the cat": ("chelsea.png", (70, 0, 370, 300)),
    "astronaut": ("astronaut.png", (110, 0, 360, 250)),
    "coffee cup": ("coffee.png", (90, 0, 490, 400)),
    "rocket": ("rocket.jpg", (200, 110, 517, 427)),
}
DRAWN = 2  # pictures that the model draws itself

Samples = dict[str, np.ndarray]  # name -> uint8 (side, side, 3)


def photographs(side: int) -> Samples:
    return {
        name: square_crop(load_rgb(photo_path(file), file).crop(box), side)
        for name, (file, box) in CROPS.items()
    }


def drawn(inpainter: Inpainter) -> Samples:
    """What the model makes of a picture that is all hole; it comes from the config's seed."""
    side = inpainter.config.data.image_size
    images = np.zeros((DRAWN, side, side, 3), dtype=np.uint8)
    holes = np.ones((DRAWN, side, side), dtype=bool)
    trace = inpainter.decode(images, holes, list(range(DRAWN)), samples=1)
    pixels = inpainter.pixels(trace.token_ids[-1], images, holes)
    return {f"drawn by the model ({i + 1})": one for i, one in enumerate(pixels)}
