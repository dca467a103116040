"""Where each tile lies in the report's pictures, and what an animation shows."""

from __future__ import annotations

import io

import numpy as np
import pytest
from fid.pixels import PROFILE, to_srgb
from PIL import Image, ImageCms

from utils.io.pictures import GAP, encode_animation, image_grid, mask_grid, tile


def flat(value: int, side: int = 4) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def cell(grid: np.ndarray, place: int, per_row: int, side: int = 4) -> np.ndarray:
    top, left = (GAP + index * (side + GAP) for index in divmod(place, per_row))
    return grid[top : top + side, left : left + side]


@pytest.mark.parametrize(
    ("places", "rows", "columns"), [(1, 1, 1), (3, 1, 3), (7, 1, 7), (8, 2, 7), (21, 3, 7)]
)
def test_a_grid_has_room_for_its_places_and_gaps_around_them(places, rows, columns):
    height, width, _ = tile([flat(9)], places, 7).shape
    assert (height, width) == (rows * 6 + 2, columns * 6 + 2)


def test_images_lie_row_by_row_and_all_else_is_black():
    grid = tile([flat(10 * (i + 1)) for i in range(9)], 12, 7)
    for place in range(9):
        assert (cell(grid, place, 7) == 10 * (place + 1)).all()
    for place in range(9, 14):
        assert (cell(grid, place, 7) == 0).all()
    assert np.count_nonzero(grid) == 9 * 4 * 4 * 3


def test_masks_are_10_a_row_white_where_known_black_where_hidden():
    first = np.zeros(16, bool)
    first[[1, 4]] = True
    grid = mask_grid(np.stack([first, np.zeros(16, bool)]), steps=12)
    assert grid.shape == (2 * 6 + 2, 10 * 6 + 2, 3)
    expected = np.full((4, 4), 255)
    expected[0, 1] = expected[1, 0] = 0
    assert (cell(grid, 0, 10) == expected[..., None]).all()
    assert (cell(grid, 1, 10) == 255).all()
    assert all((cell(grid, place, 10) == 0).all() for place in range(2, 12))


def test_images_are_7_a_row_and_the_input_takes_the_first_place():
    grid = image_grid([flat(50), flat(60), flat(70)], steps=7)
    assert grid.shape == (2 * 6 + 2, 7 * 6 + 2, 3), "seven steps and the input need two rows"
    assert [cell(grid, place, 7)[0, 0, 0] for place in range(4)] == [50, 60, 70, 0]


def exchanged() -> bytes:
    """sRGB with its red and green primaries exchanged, under another name."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    places = {bytes(profile[i : i + 4]): i for i in range(132, 132 + 12 * profile[131], 12)}
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "ours".encode("utf-16-be"))


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_an_animation_shows_the_colours_that_its_profile_means(kind):
    pixels = np.full((8, 8, 3), (200, 30, 60), np.uint8)
    file = io.BytesIO(encode_animation([pixels, pixels // 2], kind, "stamp", exchanged()))
    meant = Image.fromarray(pixels)
    meant.info[PROFILE] = exchanged()
    shown = to_srgb(Image.open(file).convert("RGB"))
    difference = np.abs(np.int16(shown)[0, 0] - np.int16(to_srgb(meant))[0, 0])
    assert difference.max() <= 8  # a GIF has a palette
