"""Pictures of a transformer in training: val images that it repairs, the same ones every time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from config.schema import Config
from utils.data.holes import DEFAULT_SHARE, draw_hole
from utils.inpainting.inpainter import Inpainter
from utils.io.images import HOLE_COLOUR, list_images, load_rgb
from utils.pictures import tile

IMAGES = 8  # spread over val/
HOLE_SEED = 2022  # of the holes, whatever the run's seed


def val_repairs(config: Config) -> Tensor:
    """Masked, repaired and true val images in three rows, (rows, columns, 3) uint8.

    Repaired with the weights files of the run and the config's decoding; holes are like the lab's.
    """
    paths = list_images(config.data.folder("val"))
    chosen = np.linspace(0, len(paths) - 1, min(IMAGES, len(paths))).astype(int)
    truth = np.stack([np.asarray(load_rgb(paths[index])) for index in chosen])
    side = truth.shape[1]
    holes = np.stack([draw_hole("lab", side, DEFAULT_SHARE, HOLE_SEED, int(i)) for i in chosen])
    masked = np.where(holes[..., None], np.uint8(HOLE_COLOUR), truth)
    decoding = config.decoding.model_copy(update={"samples": 1})
    inpainter = Inpainter(config.model_copy(update={"decoding": decoding}))
    trace = inpainter.trace(masked, holes, [int(index) for index in chosen])
    repaired = inpainter.pixels(trace.token_ids[-1], masked, holes)
    rows = [*masked, *repaired, *truth]
    return torch.from_numpy(tile(rows, len(rows), len(chosen)))
