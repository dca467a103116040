"""Orders by hand: who stays hidden, and where low-discrepancy points fall."""

from __future__ import annotations

import pytest
import torch

from config.schema import DecodingConfig
from models.orders import ORDERS, halton_places, still_hidden
from models.rules import Step


def step_of(mask: torch.Tensor, index: int = 0, seed: int = 0) -> Step:
    ids = torch.arange(len(mask))
    return Step(index, DecodingConfig(), "cosine", mask, seed, ids, torch.zeros_like(ids))


def test_still_hidden_keeps_the_lowest_candidates_of_each_image_ties_to_the_first():
    inf = torch.inf
    ranking = torch.tensor([[0.3, -9, 0.1, 0.2], [0.5, 0.5, 0.5, inf], [inf, inf, inf, inf]])
    candidates = torch.tensor([[True, False, True, True], [True, True, True, False], [False] * 4])
    assert still_hidden(ranking, candidates, torch.tensor([2, 1, 3])).tolist() == [
        [False, False, True, True],
        [True, False, False, False],
        [False, False, False, False],
    ]
    assert torch.equal(still_hidden(ranking, candidates, torch.tensor([3, 3, 0])), candidates)
    assert not still_hidden(ranking, candidates, torch.tensor([0, 0, 0])).any()


def test_of_many_equal_ranks_the_first_stay_hidden():
    everywhere = torch.ones(2, 256, dtype=torch.bool)
    found = still_hidden(torch.zeros(2, 256), everywhere, torch.tensor([100, 7]))
    assert torch.equal(found, torch.arange(256) < torch.tensor([[100], [7]]))


def test_halton_needs_a_square_grid_and_says_what_it_found():
    mask = torch.ones(1, 15, dtype=torch.bool)
    with pytest.raises(AssertionError, match="15 tokens are no square grid"):
        ORDERS["halton"](torch.zeros(1, 15), 0.0, mask, step_of(mask))


def test_halton_points_of_a_4_x_4_grid():
    # 1/3 1/2, 2/3 1/4, 1/9 3/4, 4/9 1/8, 7/9 5/8: rows 1 2 0 1 3, columns 2 1 3 0 2
    assert halton_places(4)[:5] == (6, 9, 3, 4, 14)


@pytest.mark.parametrize("side", range(1, 33))
def test_halton_visits_every_place_once(side):
    assert sorted(halton_places(side)) == list(range(side**2))


def test_halton_spreads_its_first_places_over_the_image():
    # Two of the first 32 of 256 places are each 4 x 4 area's share. The chance that a random order
    # hits all 16 areas and none more than four times is 7 %.
    places = torch.tensor(halton_places(16)[:32])
    areas = (places // 16 // 4) * 4 + places % 16 // 4
    counts = areas.bincount(minlength=16)
    assert counts.min() >= 1
    assert counts.max() <= 4


@pytest.mark.parametrize("order", ORDERS)
def test_only_revising_may_hide_more_than_is_hidden(order):
    mask = torch.rand(3, 16, generator=torch.Generator().manual_seed(0)) < 0.7
    hidden = mask & (torch.arange(16) < 8)
    confidence = torch.zeros(3, 16, dtype=torch.float64)
    ranking, candidates = ORDERS[order](confidence, 0.5, hidden, step_of(mask))
    assert ranking.shape == (3, 16)
    assert torch.equal(candidates, mask if order == "revise" else hidden)


@pytest.mark.parametrize("order", ["random", "halton"])
def test_orders_that_are_blind_to_confidence_never_change_their_mind(order):
    mask = torch.ones(2, 16, dtype=torch.bool)
    rankings = []
    for index, scale in enumerate((0.0, 1.0)):
        confidence = scale * torch.arange(32, dtype=torch.float64).view(2, 16)
        rankings.append(ORDERS[order](confidence, 4.5, mask, step_of(mask, index))[0])
    assert torch.equal(*rankings)


def test_a_random_order_belongs_to_the_image_and_the_seed():
    mask = torch.ones(2, 16, dtype=torch.bool)
    none = torch.zeros(2, 16, dtype=torch.float64)
    first, second = ORDERS["random"](none, 0.0, mask, step_of(mask))[0]
    other_seed, _ = ORDERS["random"](none, 0.0, mask, step_of(mask, seed=1))[0]
    assert not torch.equal(first.argsort(), second.argsort())
    assert not torch.equal(first.argsort(), other_seed.argsort())
