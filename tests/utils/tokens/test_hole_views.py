"""Holed and filled training images: the right fills, whoever makes them."""

from __future__ import annotations

import os

import numpy as np
import pytest

from utils.data.fill import fill_hole
from utils.tokens import hole_views
from utils.tokens.hole_views import Chunk, Puncher, punch


@pytest.fixture
def chunks() -> list[Chunk]:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    return [Chunk(pixels[i : i + 2], i, 1, "lab", "biharmonic") for i in (0, 2, 4)]


def test_known_pixels_stay_and_holes_are_filled_as_inpainting_fills_them(chunks):
    filled, holes = punch(chunks[0])
    for image, hole, result in zip(chunks[0].images, holes, filled, strict=True):
        assert 0.1 < hole.mean() < 0.4
        assert (result[~hole] == image[~hole]).all()
        assert (result == fill_hole(image, hole, "biharmonic")).all()


def test_every_image_and_every_variant_has_a_hole_of_its_own(chunks):
    holes = [hole for chunk in chunks for hole in punch(chunk)[1]]
    other = Chunk(chunks[0].images, 0, 2, "lab", "biharmonic")
    holes.extend(punch(other)[1])
    assert len({hole.tobytes() for hole in holes}) == 8


@pytest.mark.filterwarnings("error")
def test_processes_give_the_same_in_the_same_order(chunks, monkeypatch):
    monkeypatch.setattr(hole_views.os, "cpu_count", lambda: 2)
    before = dict(os.environ)
    with Puncher(hole_views.FEW + 1) as pooled:
        assert pooled.pool is not None
        found = list(pooled(iter(chunks)))
    assert dict(os.environ) == before
    with Puncher(hole_views.FEW) as alone:
        assert alone.pool is None
        expected = list(alone(iter(chunks)))
    for a, b in zip(found, expected, strict=True):
        assert (a[0] == b[0]).all()
        assert (a[1] == b[1]).all()
