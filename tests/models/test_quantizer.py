"""The codebook that learns: averages by hand, restarts, gradients, perplexity."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.quantizer import (
    Codebook,
    CodebookAverages,
    codebook_loss,
    commitment_loss,
    perplexity,
    straight_through,
)

CODES, WIDTH = 4, 2


def codebook(*rows: tuple[float, float]) -> Codebook:
    made = Codebook(len(rows), WIDTH)
    with torch.no_grad():
        made.embedding.weight.copy_(torch.tensor(rows))
    return made.requires_grad_(False)


@pytest.fixture
def square() -> Codebook:
    return codebook((0, 0), (10, 0), (0, 10), (10, 10))


def averages(book: Codebook, decay: float = 0.75, restart_below: float = 0.1) -> CodebookAverages:
    return CodebookAverages(book, decay, restart_below)


def distinct_latents(count: int) -> Tensor:
    return torch.arange(2.0 * count).view(count, 2) + 100


# Moving averages


def test_codes_move_to_the_running_mean_of_their_latents(square):
    average = averages(square)
    batches = [
        (torch.tensor([[1.0, 2.0], [3.0, 4.0], [9.0, 1.0]]), torch.tensor([0, 0, 1])),
        (torch.tensor([[5.0, 0.0], [8.0, 2.0], [7.0, 3.0]]), torch.tensor([0, 1, 1])),
    ]
    for latents, token_ids in batches:
        average.update(latents, token_ids)
    average.move(square)
    # code 0: use 0.25 (0.75 * 2 + 1), total 0.25 (0.75 * (4, 6) + (5, 0)); code 1 alike
    assert average.use[:2].tolist() == pytest.approx([0.625, 0.6875])
    code_0 = [(0.75 * 4 + 5) / 2.5, (0.75 * 6 + 0) / 2.5]
    code_1 = [(0.75 * 9 + 15) / 2.75, (0.75 * 1 + 5) / 2.75]
    torch.testing.assert_close(square.embedding.weight[:2], torch.tensor([code_0, code_1]))


def test_a_code_stays_where_it_is_while_nothing_chooses_it(square):
    average = averages(square)
    average.restart(square, distinct_latents(8), torch.Generator().manual_seed(0))
    before = square.embedding.weight.clone()
    average.update(torch.zeros(3, 2), torch.tensor([0, 0, 0]))
    average.move(square)
    torch.testing.assert_close(square.embedding.weight[1:], before[1:])


def test_averages_take_no_gradient(square):
    latents = torch.ones(3, 2, requires_grad=True)
    average = averages(square)
    average.update(latents, torch.tensor([0, 1, 1]))
    average.move(square)
    assert not average.total.requires_grad
    assert not square.embedding.weight.requires_grad


# Restarts


def rows_of(weight: Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in weight.tolist()}


def test_the_first_restart_lays_every_code_onto_a_latent(square):
    latents = distinct_latents(6)
    averages(square).restart(square, latents, torch.Generator().manual_seed(0))
    assert rows_of(square.embedding.weight) <= rows_of(latents)


def test_exactly_the_codes_below_the_share_of_the_mean_use_are_moved(square):
    average, latents = averages(square, restart_below=0.5), distinct_latents(8)
    # mean use 10, so the border is 5
    average.use.copy_(torch.tensor([25.0, 4.9, 5.1, 5.0]))
    average.total.copy_(square.embedding.weight * average.use[:, None])
    before = square.embedding.weight.clone()
    average.restart(square, latents, torch.Generator().manual_seed(0))
    moved = (square.embedding.weight != before).any(1).tolist()
    assert moved == [False, True, False, True]
    assert rows_of(square.embedding.weight[[1, 3]]) <= rows_of(latents)


def test_a_moved_code_counts_as_used_like_the_mean_code_and_keeps_its_place(square):
    average, latents = averages(square), distinct_latents(8)
    average.restart(square, latents, torch.Generator().manual_seed(0))
    assert average.use.tolist() == [2.0] * CODES, "8 latents for 4 codes"
    placed = square.embedding.weight.clone()
    average.move(square)
    torch.testing.assert_close(square.embedding.weight, placed)


def test_a_restart_is_drawn_from_its_generator():
    latents, placed = distinct_latents(50), []
    for seed in (0, 0, 1):
        book = codebook((0, 0), (0, 0), (0, 0), (0, 0))
        averages(book).restart(book, latents, torch.Generator().manual_seed(seed))
        placed.append(book.embedding.weight.clone())
    assert torch.equal(placed[0], placed[1])
    assert not torch.equal(placed[0], placed[2])


# Gradients


def test_straight_through_is_the_codes_with_the_gradient_of_the_latents():
    latents = torch.randn(3, 2, requires_grad=True)
    codes = torch.randn(3, 2, requires_grad=True)
    weights = torch.randn(3, 2)
    out = straight_through(latents, codes)
    torch.testing.assert_close(out, codes)
    (out * weights).sum().backward()
    assert torch.equal(latents.grad, weights)
    assert codes.grad is None


@pytest.mark.parametrize(
    ("loss", "pulled", "fixed"), [(commitment_loss, 0, 1), (codebook_loss, 1, 0)]
)
def test_each_loss_pulls_one_side_along_the_squared_distance(loss, pulled, fixed):
    sides = [torch.randn(3, 2, requires_grad=True) for _ in range(2)]
    value = loss(*sides)
    difference = (sides[pulled] - sides[fixed]).detach()
    assert value.item() == pytest.approx(difference.square().mean().item())
    value.backward()
    torch.testing.assert_close(sides[pulled].grad, 2 * difference / 6)
    assert sides[fixed].grad is None


# Perplexity


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([5, 0, 0, 0], 1.0),
        ([3, 3, 0, 0], 2.0),
        ([7, 7, 7, 7], 4.0),
        ([1, 1, 2, 0], 2**1.5),  # entropy 1.5 bits
    ],
)
def test_perplexity_has_its_closed_forms(counts, expected):
    assert perplexity(torch.tensor(counts).double()).item() == pytest.approx(expected)
