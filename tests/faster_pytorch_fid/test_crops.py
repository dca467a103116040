"""Crops around holes and images of several sizes."""

import numpy as np
import pytest
from fid.files import ScoreError
from fid.inputs import open_images
from fid.paired import HoleCrops, hole_box, with_hole
from fid.pixels import Size, resized
from fid_test_images import draw_images, write_folder
from PIL import Image


def box(hole) -> tuple[int, int, int, int]:
    rows, columns = hole_box(hole)
    return rows.start, rows.stop, columns.start, columns.stop


def test_the_box_of_a_small_hole_is_half_of_each_side_about_its_middle():
    hole = np.zeros((64, 64), bool)
    hole[30:34, 20:24] = True
    assert box(hole) == (16, 48, 6, 38)


def test_a_box_stays_within_the_image():
    hole = np.zeros((64, 64), bool)
    hole[0:4, 60:64] = True
    assert box(hole) == (0, 32, 32, 64)


def test_the_largest_of_several_holes_counts_and_a_large_one_keeps_its_size():
    hole = np.zeros((64, 64), bool)
    hole[2, 2] = True
    hole[10:60, 20:40] = True
    assert box(hole) == (10, 60, 14, 46)


def test_crops_are_as_large_as_the_images_and_leave_out_those_without_a_hole(tmp_path):
    images = draw_images(3, seed=1)
    write_folder(tmp_path / "images", images)
    side = images[0].shape[0]
    masks = [np.full((side, side), 255, np.uint8) for _ in images]
    masks[1][1:3, 2:4] = 0  # half of each side about it, as far as the image goes
    write_folder(tmp_path / "masks", masks, "mask")
    sets = open_images(tmp_path / "images"), open_images(tmp_path / "masks")
    assert with_hole(sets[1]) == [1]
    crops = HoleCrops(*sets, [1])
    assert len(crops) == 1
    expected = Image.fromarray(images[1][:8, :8]).resize((side, side), Image.Resampling.BICUBIC)
    assert (crops.pixels(0) == np.asarray(expected)).all()
    wide = open_images(write_folder(tmp_path / "wide", [np.zeros((9, 8), np.uint8)] * 3))
    with pytest.raises(ScoreError, match="image_001.png is 16 x 16, .*wide/image_001.png 8 x 9"):
        HoleCrops(sets[0], wide, [1]).pixels(0)


def test_an_image_of_the_size_asked_for_stays_as_it_is():
    pixels = draw_images(1, seed=1)[0]
    assert resized(pixels, Size(pixels.shape[1], pixels.shape[0], "lanczos")) is pixels
