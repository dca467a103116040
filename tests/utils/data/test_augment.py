"""Augmented views: each number moves or colours the picture in its own known way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from utils.data.augment import BRIGHTNESS, CONTRAST, SATURATION, SHIFT, Views, augment

CPU = torch.device("cpu")
MIRROR, SCALE, ANGLE, ACROSS, DOWN, BRIGHT, CONTRASTED, SATURATED = range(8)
WHOLE_SHIFT = 0.5 + 0.5 * (1 / 16) / SHIFT  # one pixel of 16


@pytest.fixture
def images() -> Tensor:
    """Two smooth coloured pictures (2, 3, 16, 16) away from black and white."""
    grid = torch.linspace(60, 180, 16)
    ramps = torch.stack(
        [grid.expand(16, 16), grid[:, None].expand(16, 16), grid.flip(0).expand(16, 16)]
    )
    return torch.stack([ramps, ramps.flip(0)]).to(torch.uint8)


def numbers(**changes: float) -> Tensor:
    """A view that changes nothing, except for what is named, for two images."""
    row = torch.full((2, 8), 0.5)
    for name, value in changes.items():
        row[:, globals()[name]] = value
    return row


def test_the_middle_of_every_range_leaves_the_picture_as_it_is(images):
    assert torch.equal(augment(images, numbers()), images)


def test_half_of_the_views_are_mirrored(images):
    assert torch.equal(augment(images, numbers(MIRROR=0.49)), images.flip(3))
    assert torch.equal(augment(images, numbers(MIRROR=0.51)), images)


def test_a_shift_by_one_pixel_moves_every_pixel_by_one(images):
    moved = augment(images, numbers(ACROSS=WHOLE_SHIFT))
    assert torch.equal(moved[..., 1:14], images[..., 2:15])
    moved = augment(images, numbers(DOWN=WHOLE_SHIFT))
    assert torch.equal(moved[:, :, 1:14], images[:, :, 2:15])


def test_the_picture_goes_on_as_in_a_mirror_beyond_its_border(images):
    moved = augment(images, numbers(ACROSS=WHOLE_SHIFT)).int()
    assert (moved[..., 15] - images[..., 15].int()).abs().max() <= 1  # its last column twice


def test_scaling_keeps_the_centre_and_spreads_what_is_around_it(images):
    # the first channel rises by 8 a pixel across: 1.15 times as large, it rises by 8 / 1.15
    larger = augment(images, numbers(SCALE=1.0))[0, 0].float()
    assert larger[8, 8:12].diff().mean() == pytest.approx(8 / 1.15, abs=0.5)
    assert larger[8, 7:9].mean() == pytest.approx(120, abs=0.6)


def test_turning_mixes_rows_into_columns(images):
    # the second channel rises by 8 a pixel downwards and not across; turned by 8 degrees, across
    # it changes by 8 sin(8 degrees) = 1.11
    for way, sign in ((0.0, -1), (1.0, 1)):
        turned = augment(images, numbers(ANGLE=way))[0, 1].float()
        assert turned[8, 4:12].diff().mean() == pytest.approx(sign * 1.11, abs=0.2)


def test_colours_change_by_their_factors(images):
    plain = images.float()
    bright = augment(images, numbers(BRIGHT=1.0)).float()
    torch.testing.assert_close(bright, plain * (1 + BRIGHTNESS), rtol=0, atol=0.51)
    mean = plain.mean((1, 2, 3), keepdim=True)
    flat = augment(images, numbers(CONTRASTED=0.0)).float()
    torch.testing.assert_close(flat, mean + (1 - CONTRAST) * (plain - mean), rtol=0, atol=0.51)
    luma = (plain * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    vivid = augment(images, numbers(SATURATED=1.0)).float()
    torch.testing.assert_close(vivid, luma + (1 + SATURATION) * (plain - luma), rtol=0, atol=0.51)


def test_views_begin_with_the_image_and_its_mirror_image_and_then_all_differ(images):
    views = Views(images, 6)
    made = [views.of(slice(0, 2), view, CPU) for view in range(6)]
    assert torch.equal(made[0], images)
    assert torch.equal(made[1], images.flip(3))
    assert all(x.dtype == torch.uint8 and x.shape == images.shape for x in made)
    assert len({tuple(x.flatten().tolist()) for x in made}) == 6


def test_a_view_of_an_image_is_the_same_every_time_and_in_every_batch(images):
    both = Views(images, 4).of(slice(0, 2), 3, CPU)
    alone = Views(images, 4).of(slice(1, 2), 3, CPU)
    assert torch.equal(both[1:], alone)
    assert not torch.equal(Views(images[[0, 0]], 4).of(slice(0, 2), 3, CPU)[0], both[1])
