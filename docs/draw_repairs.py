"""Pictures by the released cats64 weights: ``python -m docs.draw_repairs``.

repairs.png: Chelsea, a cat by Stefan van der Walt (CC0), that comes with scikit-image and is in no
training set; one row for each kind of hole, from the masked picture through the decode steps to the
truth. large.png: the whole photograph with scratches and a large hole, and its repair.
reconstructions.png: photographs above their reconstructions by the tokenizer.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw

from docs.draw_decoding import FACE, FOLDER, GRID, HOLE_SHARE, SIDE
from utils.app.pictures import photographs
from utils.cli import ArgumentParser, first_line, run
from utils.data.datasets import normalise
from utils.data.holes import draw_hole
from utils.data.photos import photo_path
from utils.data.sources import square_crop
from utils.inpainting.inpainter import Inpainter
from utils.inpainting.pretrained import pretrained_config, pretrained_folder
from utils.io.images import HOLE_COLOUR, load_rgb, save_png
from utils.io.pictures import ENLARGED, enlarged, tile

RELEASED = "models/pretrained/cats64"
HOLES = (("lab", 1), ("lab", 4), ("brush", 2), ("box", 3))  # kind, index
SHOWN = (0, 1, 2, 3, 4)  # steps, from 0
THICK_HOLE = (115, 85, 324, 204)  # left, top, right and bottom pixel in Chelsea
SCRATCHES = ((20, 20, 430, 120), (15, 280, 300, 225), (400, 20, 380, 290))  # from x, y to x, y
SCRATCH_WIDTH = 6


def main() -> None:
    ArgumentParser(description=first_line(__doc__)).parse_args()
    truth = square_crop(load_rgb(photo_path("chelsea.png")).crop(FACE), SIDE)
    config = pretrained_config(pretrained_folder(RELEASED), device="cpu", seed=0)
    fp32 = config.model_copy(update={"precision": "fp32"})  # the same pictures on every machine
    inpainter, repairs = Inpainter(fp32), []
    for kind, index in HOLES:
        hole = draw_hole(kind, SIDE, (HOLE_SHARE, HOLE_SHARE), seed=0, image_index=index)
        repairs += row(inpainter, truth, hole)
    draw("repairs.png", repairs, len(SHOWN) + 2)
    draw("large.png", large(inpainter), 2, factor=1)
    originals = np.stack([truth, *photographs(SIDE).values()])
    draw("reconstructions.png", [*originals, *reconstructed(inpainter, originals)], len(originals))


def draw(name: str, pictures: list[np.ndarray], columns: int, factor: int = ENLARGED) -> None:
    """Write pictures (H, W, 3), enlarged by a factor, into docs/pictures."""
    shown = [enlarged(picture, factor) for picture in pictures]
    save_png(FOLDER / name, tile(shown, len(shown), columns))
    print(FOLDER / name)


def large(inpainter: Inpainter) -> list[np.ndarray]:
    """The whole photograph masked and repaired, (H, W, 3) uint8 each."""
    photograph = np.asarray(load_rgb(photo_path("chelsea.png")))
    drawn = Image.new("1", photograph.shape[1::-1])
    pen = ImageDraw.Draw(drawn)
    pen.rectangle(THICK_HOLE, fill=1)
    for scratch in SCRATCHES:
        pen.line(scratch, fill=1, width=SCRATCH_WIDTH)
    hole = np.asarray(drawn)
    masked = np.where(hole[..., None], np.uint8(HOLE_COLOUR), photograph)
    return [masked, inpainter.repair(masked, hole)]


def reconstructed(inpainter: Inpainter, images: np.ndarray) -> np.ndarray:
    """Images (n, H, W, 3) uint8, encoded and decoded without known pixels."""
    data = inpainter.config.data
    pixels = torch.from_numpy(images).to(inpainter.device)
    token_ids = inpainter.maskgit.encode(normalise(pixels, data.mean, data.std))
    return inpainter.decoded(token_ids, inpainter.known(images, np.ones(images.shape[:3], bool)))


def row(inpainter: Inpainter, truth: np.ndarray, hole: np.ndarray) -> list[np.ndarray]:
    """Masked picture, the picture after some steps with hidden tokens grey, the truth."""
    grey = np.uint8(HOLE_COLOUR)
    masked = np.where(hole[..., None], grey, truth)
    trace = inpainter.trace(masked[None], hole[None], [0])
    steps = inpainter.decoded_steps(trace.token_ids, trace.known)[:, 0]  # (T, H, W, 3)
    shown = []
    for step in SHOWN:
        joined = inpainter.join(steps[step], masked, hole)
        left = trace.hidden[step][0].view(GRID, GRID).cpu().numpy()
        left = enlarged(left, SIDE // GRID) & hole
        shown.append(np.where(left[..., None], grey, joined))
    return [masked, *shown, truth]


if __name__ == "__main__":
    run(main)
