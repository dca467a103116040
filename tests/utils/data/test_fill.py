"""What a hole is filled with, held against scikit-image, Laplace's equation and plain means."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import sparse
from skimage.restoration import inpaint_biharmonic

from utils.data.fill import (
    HOLE_FILLS,
    _laplacian,
    biharmonic,
    composite,
    fill_hole,
    harmonic,
)

SIDE = 16
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE].astype(float)


def colours(*planes: np.ndarray) -> np.ndarray:
    return np.stack(planes, axis=-1)


@pytest.fixture
def image() -> np.ndarray:
    """Smooth colours with a little noise, (SIDE, SIDE, 3) uint8."""
    rng = np.random.default_rng(0)
    smooth = colours(8 * ROWS, 60 + 5 * COLUMNS, 128 + 60 * np.sin(ROWS / 3 + COLUMNS / 5))
    return (smooth + rng.normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8)


def ragged(seed: int, border: int) -> np.ndarray:
    """A hole of single pixels and a block, ``border`` pixels away from the image's edge."""
    hole = np.random.default_rng(seed).random((SIDE, SIDE)) < 0.15
    hole[6:10, 5:11] = True
    inside = np.zeros_like(hole)
    inside[border : SIDE - border, border : SIDE - border] = True
    return hole & inside


def laplacian(values: np.ndarray, row: int, column: int) -> np.ndarray:
    """Sum over the neighbours within the image of (neighbour - pixel)."""
    around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    inside = [(r, c) for r, c in around if 0 <= r < SIDE and 0 <= c < SIDE]
    return sum(values[place] - values[row, column] for place in inside)


@pytest.mark.parametrize("border", [0, 3])
def test_harmonic_solves_laplaces_equation_in_the_hole(image, border):
    hole, filled = ragged(0, border), image.astype(float)
    filled[hole] = harmonic(filled, hole)
    for row, column in np.argwhere(hole):
        np.testing.assert_allclose(laplacian(filled, row, column), 0, atol=1e-9)


@pytest.mark.parametrize("shape", [(2, 2), (5, 9), (9, 5), (16, 16)])
def test_rows_of_the_laplacian_are_those_of_the_whole_grid(shape):
    along = [
        sparse.diags([np.r_[1, np.full(n - 2, 2), 1], -np.ones(n - 1), -np.ones(n - 1)], [0, 1, -1])
        for n in shape
    ]
    whole = sparse.csr_matrix(sparse.kronsum(along[1], along[0]))
    for hole in (np.ones(shape, bool), np.random.default_rng(0).random(shape) < 0.3):
        expected, found = whole[np.flatnonzero(hole)], _laplacian(hole)
        for part in ("shape", "indptr", "indices", "data"):
            assert np.array_equal(getattr(found, part), getattr(expected, part)), part


def test_small_holes_of_a_large_picture_need_no_equations_of_the_others():
    image, hole = np.zeros((600, 700, 3), np.uint8), np.zeros((600, 700), bool)
    hole[5, 5] = hole[590, 690] = True
    tracemalloc.start()
    composite(image + np.uint8(9), image, hole, "feather", 4.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150 * hole.size, "bytes per pixel"


def test_harmonic_continues_a_linear_ramp_exactly():
    ramp = colours(3 * ROWS, 200 - 2 * COLUMNS, 10 + ROWS + 4 * COLUMNS)
    hole = ragged(1, border=1)
    np.testing.assert_allclose(harmonic(ramp, hole), ramp[hole], atol=1e-9)


@pytest.mark.parametrize("shape", [(57, 64), (40, 41)])
@pytest.mark.parametrize("border", [0, 5])
def test_a_large_hole_is_filled_from_half_the_size_almost_as_exactly(monkeypatch, shape, border):
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    picture = colours(rows * columns / 16, 128 + 90 * np.sin(rows / 5), 255.0 * (columns > 20))
    hole = np.zeros(shape, bool)
    hole[border : shape[0] - 5, border : shape[1] - 5] = True
    exact = harmonic(picture, hole)
    monkeypatch.setattr("utils.data.fill.LARGEST_BAND", 2000)  # three sizes
    error = np.abs(harmonic(picture, hole) - exact)
    assert 0 < error.max() < 8  # next to the edge of the third colour
    assert error.mean() < 1.5


def test_a_large_hole_of_thin_lines_is_filled_though_none_is_left_at_half_the_size(monkeypatch):
    monkeypatch.setattr("utils.data.fill.LARGEST_BAND", 0)
    hole = np.zeros((SIDE, SIDE), bool)
    hole[1::2] = True
    np.testing.assert_allclose(harmonic(np.full((SIDE, SIDE, 3), 7.0), hole), 7, atol=1e-6)


def test_biharmonic_continues_a_quadratic_away_from_the_edge():
    # The bilaplacian of any polynomial below the fourth degree vanishes.
    bowl = colours(ROWS**2 / 2, COLUMNS**2 - ROWS * COLUMNS / 3, ROWS**3 / 50)
    hole = ragged(2, border=2)
    np.testing.assert_allclose(biharmonic(bowl, hole), bowl[hole], atol=1e-8)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_biharmonic_equals_scikit_image_away_from_the_edge(image, seed):
    hole = ragged(seed, border=2)
    expected = inpaint_biharmonic(image / 255, hole, channel_axis=-1) * 255
    found = biharmonic(image.astype(float), hole)
    np.testing.assert_allclose(found.clip(0, 255), expected[hole].clip(0, 255), atol=1e-6)


def test_mean_is_the_mean_colour_of_the_known_pixels():
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = [(10, 20, 30), (20, 40, 90)]
    hole = np.array([[False, False], [True, True]])
    assert fill_hole(image, hole, "mean")[1].tolist() == [[15, 30, 60], [15, 30, 60]]


def test_grey_is_the_labs_colour(image):
    hole = ragged(0, 0)
    assert (fill_hole(image, hole, "grey")[hole] == 128).all()


@pytest.mark.parametrize("fill", HOLE_FILLS)
def test_known_pixels_are_untouched_and_the_input_is_left_alone(image, fill):
    hole, before = ragged(0, 0), image.copy()
    filled = fill_hole(image, hole, fill)
    assert filled.dtype == np.uint8
    assert (filled[~hole] == before[~hole]).all()
    assert (image == before).all()
    assert (filled[hole] != before[hole]).any()


@pytest.mark.parametrize("fill", HOLE_FILLS)
def test_what_the_hole_held_does_not_matter(image, fill):
    hole, painted = ragged(0, 0), image.copy()
    painted[hole] = 77
    assert (fill_hole(image, hole, fill) == fill_hole(painted, hole, fill)).all()


@pytest.mark.parametrize("fill", HOLE_FILLS)
def test_an_image_without_a_hole_stays_as_it_is(image, fill):
    filled = fill_hole(image, np.zeros((SIDE, SIDE), bool), fill)
    assert (filled == image).all()
    assert filled is not image


@pytest.mark.parametrize("fill", HOLE_FILLS)
def test_an_image_that_is_all_hole_becomes_grey(image, fill):
    assert (fill_hole(image, np.ones((SIDE, SIDE), bool), fill) == 128).all()


@pytest.mark.parametrize("fill", HOLE_FILLS)
@pytest.mark.parametrize("place", [(0, 0), (0, 7), (SIDE - 1, SIDE - 1)])
def test_a_flat_image_stays_flat_from_a_single_known_pixel(fill, place):
    image, hole = np.full((SIDE, SIDE, 3), 128, np.uint8), np.ones((SIDE, SIDE), bool)
    hole[place] = False
    assert (fill_hole(image, hole, fill) == 128).all()


def test_values_beyond_0_and_255_are_cut_not_wrapped():
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    image[:, 4:] = 255  # a plate through this step swings beyond both ends
    hole = np.zeros((SIDE, SIDE), bool)
    hole[4:12, 5:9] = True
    values = biharmonic(image.astype(float), hole)
    assert values.max() > 255.5
    assert fill_hole(image, hole, "biharmonic")[hole].min() > 128
