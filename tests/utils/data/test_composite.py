"""Known pixels stay bit for bit, and a feathered border shows no seam."""

from __future__ import annotations

import numpy as np
import pytest

from utils.data.fill import COMPOSITES, composite

SIDE = 24
SQUARE = np.zeros((SIDE, SIDE), bool)
SQUARE[6:18, 5:19] = True


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["hard", "feather"])
@pytest.mark.parametrize("seed", range(5))
def test_known_pixels_stay_bit_for_bit(kind, seed):
    image, decoded = noise(seed), noise(seed + 100)
    hole = np.random.default_rng(seed).random((SIDE, SIDE)) < 0.4
    joined = composite(decoded, image, hole, kind, 4.0)
    assert joined.dtype == np.uint8
    assert (joined[~hole] == image[~hole]).all()
    assert (joined[hole] != image[hole]).any()


def test_a_constant_error_vanishes_at_the_border_and_stays_beyond_the_width():
    image, decoded = (
        np.full((SIDE, SIDE, 3), 100, np.uint8),
        np.full((SIDE, SIDE, 3), 140, np.uint8),
    )
    row = composite(decoded, image, SQUARE, "feather", 4.0)[12, :, 0].astype(int)
    # depth 1, 2, 3, 4, 5: 140 - 40 (1 + cos(pi (depth - 1) / 4)) / 2
    assert row[4:10].tolist() == [100, 100, 106, 120, 134, 140]
    assert (row[9:15] == 140).all()
    assert row[19] == 100


def test_a_wide_feather_of_a_linear_error_is_the_image_itself():
    # A linear error is harmonic, so the membrane through its border is the error everywhere.
    rows, columns = np.mgrid[:SIDE, :SIDE]
    image = np.repeat((60 + 2 * rows + 3 * columns)[..., None], 3, 2).astype(np.uint8)
    decoded = np.full_like(image, 90)
    joined = composite(decoded, image, SQUARE, "feather", 1e6)
    assert (joined == image).all()


@pytest.mark.parametrize("seed", range(5))
def test_of_a_large_picture_only_the_surroundings_of_the_hole_count(seed, monkeypatch):
    image, decoded, hole = noise(seed), noise(seed + 100), np.zeros((SIDE, SIDE), bool)
    corner = np.random.default_rng(seed).integers(0, 12, 2)
    hole[corner[0] : corner[0] + 12, corner[1] : corner[1] + 9] = noise(seed + 200)[:12, :9, 0] > 90
    whole = composite(decoded, image, hole, "feather", 3.0)
    monkeypatch.setattr("utils.data.fill.SMALL", 0)
    assert (composite(decoded, image, hole, "feather", 3.0) == whole).all()


def test_a_perfect_decoder_is_not_changed():
    image = noise(1)
    assert (composite(image, image, SQUARE, "feather", 8.0) == image).all()


@pytest.mark.parametrize("kind", COMPOSITES)
def test_an_image_that_is_all_hole_is_the_decoded_one(kind):
    image, decoded = noise(1), noise(2)
    joined = composite(decoded, image, np.ones((SIDE, SIDE), bool), kind, 4.0)
    assert (joined == decoded).all()


def test_corrections_do_not_wrap_around():
    image, decoded = np.full((SIDE, SIDE, 3), 255, np.uint8), noise(3)
    decoded[~SQUARE] = 0
    decoded[SQUARE] = 200
    assert (composite(decoded, image, SQUARE, "feather", 2.0)[SQUARE] >= 200).all()
