"""Pictures of repairs while training: which images, which holes, what the rows hold."""

from __future__ import annotations

import numpy as np
import torch

from utils.io.images import list_images, load_rgb
from utils.training import samples as train_pictures
from utils.training.samples import val_repairs

GAP = 2


def rows_of(picture: torch.Tensor, count: int) -> list[list[np.ndarray]]:
    """The three rows of images of 16 x 16 pixels."""
    step = 16 + GAP
    return [
        [picture[GAP + r * step :, GAP + c * step :][:16, :16].numpy() for c in range(count)]
        for r in range(3)
    ]


def test_the_rows_are_masked_repaired_and_true_val_images(weights, changed):
    config = changed(weights, {"decoding.composite": "hard"})
    picture = val_repairs(config)
    assert picture.dtype == torch.uint8
    masked, repaired, truth = rows_of(picture, 6)
    paths = list_images(config.data.folder("val"))
    for place, path in enumerate(paths):
        assert np.array_equal(truth[place], np.asarray(load_rgb(path)))
        hole = (masked[place] == 128).all(-1)
        assert 0.1 < hole.mean() < 0.4
        assert np.array_equal(masked[place][~hole], truth[place][~hole])
        assert np.array_equal(repaired[place][~hole], truth[place][~hole])
        assert not np.array_equal(repaired[place][hole], masked[place][hole])


def test_the_same_images_and_holes_are_shown_each_time_whatever_the_seed(weights, changed):
    first, again = (val_repairs(changed(weights, {"seed": seed})) for seed in (0, 1))
    for row in (0, 2):
        assert all(map(np.array_equal, rows_of(first, 6)[row], rows_of(again, 6)[row]))


def test_images_are_spread_over_the_folder(weights, monkeypatch):
    monkeypatch.setattr(train_pictures, "IMAGES", 2)
    truth = rows_of(val_repairs(weights), 2)[2]
    paths = list_images(weights.data.folder("val"))
    for place, path in enumerate((paths[0], paths[-1])):
        assert np.array_equal(truth[place], np.asarray(load_rgb(path)))
