"""Dropout on a CPU: what becomes zero, how often, and what flows back."""

from __future__ import annotations

import math

import pytest
import torch

from models.cpu_kernels import Dropout

SHAPE = (100, 7, 143)  # 100,100 numbers, no multiple of eight


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_numbers_are_lost_with_probability_p_and_the_rest_is_scaled(p):
    torch.manual_seed(0)
    out = Dropout(p)(torch.full(SHAPE, 3.0))
    kept = out != 0
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 3.0 / (1 - p)))
    spread = math.sqrt(p * (1 - p) / out.numel())
    assert abs(kept.float().mean() - (1 - p)) < 4 * spread


@pytest.mark.parametrize("p", [0.001, 25.6 / 256, 0.5, 0.9, 0.999])
def test_p_holds_for_each_number_though_a_row_rounds_it(p):
    torch.manual_seed(0)
    lost = (Dropout(p)(torch.ones(400_000, 3)) == 0).double()
    spread = math.sqrt(p * (1 - p) / len(lost))
    assert (lost.mean(0) - p).abs().max() < 4 * spread


def test_neighbours_are_lost_independently_of_each_other():
    # eight numbers share a draw: none of the 2^8 patterns may be rarer than chance has it
    torch.manual_seed(0)
    lost = Dropout(0.5)(torch.ones(80_000, 8)) == 0
    patterns = (lost * 2 ** torch.arange(8)).sum(1).bincount(minlength=256)
    expected = 80_000 / 256
    assert (patterns - expected).abs().max() < 4.5 * math.sqrt(expected)


def test_gradients_flow_through_what_was_kept_alone():
    torch.manual_seed(0)
    x = torch.randn(1000, requires_grad=True)
    out = Dropout(0.25)(x)
    out.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(out == 0, 0.0, 4 / 3))


def test_it_rests_in_eval_and_with_p_of_0_and_takes_everything_with_1():
    x = torch.randn(9)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros(9))


def test_the_same_seed_loses_the_same_numbers_and_the_input_stays():
    x = torch.ones(50, 3)
    outs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(Dropout(0.5)(x))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    assert torch.equal(x, torch.ones(50, 3))
