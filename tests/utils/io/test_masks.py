"""Masks as people save them; 8-bit ones are in test_images.py and tests/lab/test_data.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from config.errors import UserError
from utils.io import messages
from utils.io.images import as_hole, load_mask

CORNERS = np.array([[0, 1], [1, 0]])


def saved(path: Path, values: np.ndarray) -> Path:
    Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize("known", [1, 255, 65535])
@pytest.mark.parametrize("kind", [np.float32, np.int32, np.uint16])
def test_a_wide_mask_is_read_by_the_values_that_it_holds(tmp_path, known, kind):
    mask = load_mask(saved(tmp_path / "m.tif", (CORNERS * known).astype(kind)))
    assert mask.tolist() == [[True, False], [False, True]]


def test_a_mask_of_bits_in_ascii_is_read(tmp_path):
    (tmp_path / "m.pbm").write_text("P1\n2 2\n1 0\n0 1\n")  # 1 is black
    assert load_mask(tmp_path / "m.pbm").tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize("kind", [np.float32, np.int32, np.uint16])
def test_a_wide_mask_of_zeros_is_all_hole(tmp_path, kind):
    assert load_mask(saved(tmp_path / "m.tif", np.zeros((2, 2), kind))).all()


def test_fractions_are_split_as_their_255_fold(tmp_path):
    path = saved(tmp_path / "m.tif", np.array([[0.0, 0.49, 0.51, 0.9]], np.float32))
    assert load_mask(path).tolist() == [[True, True, False, False]]
    assert load_mask(path, threshold=255).tolist() == [[True, True, True, True]]


@pytest.mark.parametrize(
    ("values", "said"),
    [([-1, 0], "-1 to 0"), ([0, np.nan], "nan to nan"), ([0, np.inf], "0 to inf")],
)
def test_values_that_are_none_of_a_mask_are_named(tmp_path, values, said):
    path = saved(tmp_path / "m.tif", np.array([values], np.float32))
    with pytest.raises(UserError, match=rf"m\.tif: a mask with values from {said}; allowed are 0"):
        load_mask(path)


def test_a_mask_of_zeros_and_ones_is_told_in_every_type(tmp_path, capsys, monkeypatch):
    for number, kind in enumerate((np.uint8, np.uint16, np.int32, np.float32)):
        monkeypatch.setattr(messages, "_told", set())
        load_mask(saved(tmp_path / f"{number}.tif", CORNERS.astype(kind)))
        assert f"{number}.tif: a mask of 0 and 1; they are read as" in capsys.readouterr().err


IMAGE = np.zeros((2, 2, 3), np.uint8)


@pytest.mark.parametrize("known", [1, 255, 65535])
@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.int32, np.uint16])
def test_a_mask_at_hand_is_read_as_one_of_a_file(known, kind):
    if known > np.iinfo(np.uint8).max and kind is np.uint8:
        return
    hole = as_hole(Image.fromarray((CORNERS * known).astype(kind)), IMAGE)
    assert hole.tolist() == [[True, False], [False, True]]


def test_an_array_of_zeros_and_ones_is_a_mask_and_booleans_are_holes():
    assert as_hole(CORNERS.astype(np.uint8), IMAGE).tolist() == [[True, False], [False, True]]
    assert as_hole(CORNERS.astype(bool), IMAGE).tolist() == [[False, True], [True, False]]


def test_a_hole_can_be_a_tensor_whatever_view_the_mask_is():
    mask = np.eye(4, dtype=bool)[::-1]
    mask.flags.writeable = False
    hole = as_hole(mask, np.zeros((4, 4, 3), np.uint8))
    assert hole.flags.writeable  # else PyTorch warns
    assert (torch.from_numpy(hole).numpy() == mask).all()


def test_a_mask_at_hand_is_turned_by_its_exif_as_its_image_is():
    mask = Image.fromarray(np.array([[0, 255], [0, 255]], np.uint8))
    mask.getexif()[0x112] = 6  # stored lying on its side
    assert as_hole(mask, IMAGE).tolist() == [[True, True], [False, False]]


def test_a_mask_at_hand_in_colour_is_refused():
    with pytest.raises(UserError, match="mask: a mask must be grey"):
        as_hole(Image.new("RGB", (2, 2), (200, 0, 0)), IMAGE)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.int64])
def test_an_array_of_wider_whole_numbers_is_a_mask(kind):
    assert as_hole(CORNERS.astype(kind), IMAGE).tolist() == as_hole(CORNERS, IMAGE).tolist()


@pytest.mark.parametrize(
    "mask", [CORNERS.astype(np.float32), CORNERS / 255, 257 * CORNERS.astype(int), CORNERS - 1.0]
)
def test_an_array_of_other_numbers_is_no_mask(mask):
    with pytest.raises(UserError, match=rf"mask: {mask.dtype} \(2, 2\); needed are bools or"):
        as_hole(mask, IMAGE)


def test_an_array_of_negative_numbers_is_no_mask():
    with pytest.raises(UserError, match="whole numbers from 0 to 255"):
        as_hole(np.array([[-1, 0], [255, 255]]), IMAGE)


def test_a_mask_of_two_values_that_are_both_below_the_threshold_is_refused():
    labels = np.uint8([[0, 2], [2, 2]])
    for mask in (labels, Image.fromarray(labels)):
        with pytest.raises(UserError, match="mask: values 0 to 2, all below 128; known is 255"):
            as_hole(mask, IMAGE)


@pytest.mark.parametrize(
    ("mask", "image"), [("hole.png", IMAGE), (CORNERS, [[1]]), (CORNERS, np.zeros((0, 0, 3)))]
)
def test_what_is_no_array_is_one_line(mask, image):
    with pytest.raises(UserError, match="needed is"):
        as_hole(mask, image)
