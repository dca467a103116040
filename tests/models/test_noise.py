"""Noise that belongs to the image: its distribution, its independence, its exact bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from models.noise import _mix, gumbel, uniform

EULER_GAMMA = 0.5772156649015329


def draw(seed: int = 0, images: int = 40, step: int = 0, stream: int = 0, count: int = 1000):
    return uniform(seed, torch.arange(images), step, stream, count)


def test_scrambler_gives_the_published_outputs_of_splitmix64():
    # SplitMix64 scrambles seed + n * increment; outputs for seed 0 and seed 1234567 are well known.
    increment = 0x9E3779B97F4A7C15
    published = [
        (increment, 0xE220A8397B1DCDAF),
        (1234567 + increment, 6457827717110365317),
        (1234567 + 2 * increment, 3203168211198807973),
        (1234567 + 3 * increment, 9817491932198370423),
    ]
    for counter, output in published:
        signed = (counter + 2**63) % 2**64 - 2**63
        assert _mix(torch.tensor(signed)).item() % 2**64 == output


def test_uniform_numbers_lie_in_the_open_interval():
    u = draw(images=400)
    assert u.shape == (400, 1000)
    assert u.dtype == torch.float64
    assert u.min() > 0
    assert u.max() < 1
    assert (u * 2.0**53 % 2 == 1).all()  # odd multiples of 2^-53, so neither 0 nor 1 can occur
    assert gumbel(0, torch.arange(400), 0, 0, 1000).isfinite().all()


def test_numbers_follow_the_uniform_distribution():
    u = draw().flatten().numpy()
    assert u.mean() == pytest.approx(1 / 2, abs=5 * math.sqrt(1 / 12 / u.size))
    assert u.var() == pytest.approx(1 / 12, abs=5 * math.sqrt(1 / 180 / u.size))
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert len(np.unique(u)) == u.size


LINES = {
    "seeds": lambda: torch.stack(
        [uniform(s, torch.tensor([3]), 2, 1, 1)[0, 0] for s in range(2000)]
    ),
    "images": lambda: uniform(5, torch.arange(2000), 2, 1, 1)[:, 0],
    "steps": lambda: torch.stack(
        [uniform(5, torch.tensor([3]), t, 1, 1)[0, 0] for t in range(2000)]
    ),
    "positions": lambda: uniform(5, torch.tensor([3]), 2, 1, 2000)[0],
}


@pytest.mark.parametrize("numbers", LINES.values(), ids=LINES)
def test_numbers_are_uniform_and_unrelated_along_every_axis(numbers):
    line = numbers().numpy()
    assert stats.kstest(line, "uniform").pvalue > 1e-3
    for lag in (1, 2, 16):
        correlation = np.corrcoef(line[:-lag], line[lag:])[0, 1]
        assert abs(correlation) < 4 / math.sqrt(line.size)


@pytest.mark.parametrize(
    "neighbour",
    [{"seed": 1}, {"seed": 2**62}, {"step": 1}, {"stream": 1}],
    ids=["next seed", "far seed", "next step", "next stream"],
)
def test_neighbouring_draws_are_not_correlated(neighbour):
    one, other = draw().flatten().numpy(), draw(**neighbour).flatten().numpy()
    assert abs(np.corrcoef(one, other)[0, 1]) < 4 / math.sqrt(one.size)
    assert not np.isin(one, other).all()


def test_step_stream_and_image_are_not_interchangeable():
    ids = torch.tensor([0, 1])
    draws = [uniform(0, ids, step, stream, 4) for step in range(3) for stream in range(3)]
    rows = torch.cat(draws)  # (18, 4): every (image, step, stream) has its own numbers
    assert len(rows.flatten().unique()) == rows.numel()


def test_gumbel_noise_is_minus_log_minus_log_of_the_uniform_numbers():
    ids = torch.arange(40)
    u = uniform(7, ids, 1, 0, 1000).numpy()
    g = gumbel(7, ids, 1, 0, 1000).numpy()
    np.testing.assert_allclose(g, -np.log(-np.log(u)), rtol=1e-12)
    assert g.mean() == pytest.approx(EULER_GAMMA, abs=5 * math.pi / math.sqrt(6 * g.size))
    assert g.var() == pytest.approx(math.pi**2 / 6, rel=0.05)
    assert stats.kstest(g.ravel(), stats.gumbel_r.cdf).pvalue > 1e-3


def test_an_image_gets_the_same_numbers_in_any_batch_order_and_count():
    ids = torch.tensor([9, 0, 123456789, 4])
    together = uniform(1, ids, 3, 1, 64)
    alone = torch.cat([uniform(1, i[None], 3, 1, 64) for i in ids])
    backwards = uniform(1, ids.flip(0), 3, 1, 64).flip(0)
    fewer = uniform(1, ids, 3, 1, 16)
    assert torch.equal(together, alone)
    assert torch.equal(together, backwards)
    assert torch.equal(together[:, :16], fewer)


def test_the_global_generator_plays_no_part():
    torch.manual_seed(0)
    first = draw()
    torch.manual_seed(1)
    assert torch.equal(first, draw())


def test_repairs_of_one_image_have_noise_of_their_own_and_the_first_that_of_a_single_one():
    ids = torch.tensor([7, 7, 7, 8])
    u = uniform(5, ids, 2, 1, 1000, torch.tensor([0, 1, 2, 1]))
    assert torch.equal(u[:1], uniform(5, ids[:1], 2, 1, 1000))
    assert torch.equal(u[1:2], uniform(5, ids[:1], 2, 1, 1000, 1))
    assert abs(np.corrcoef(u.numpy()) - np.eye(4)).max() < 5 / math.sqrt(1000)
    streams = {
        uniform(5, ids[:1], 2, stream, 1, sample).item()
        for stream in range(10)
        for sample in range(10)
    }
    assert len(streams) == 100
