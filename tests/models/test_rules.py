"""Choosing tokens: the cuts by hand, and the shares in which tokens are drawn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from config.schema import DecodingConfig
from models.rules import TOKEN_CHOICES, top_k_top_p_mask
from models.step import Step

PROBABILITIES = torch.tensor([0.1, 0.4, 0.2, 0.3])


def allowed(top_k: int | None, top_p: float, probabilities: Tensor = PROBABILITIES) -> list[int]:
    mask = top_k_top_p_mask(probabilities.double().log()[None], top_k, top_p)  # (1, K)
    return mask[0].nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("top_k", "top_p", "tokens"),
    [
        (None, 1.0, [0, 1, 2, 3]),
        (1, 1.0, [1]),
        (3, 1.0, [1, 2, 3]),
        (50, 1.0, [0, 1, 2, 3]),
        (None, 0.39, [1]),
        (None, 0.41, [1, 3]),
        (None, 0.71, [1, 2, 3]),
        (3, 0.7, [1, 3]),  # of the top three, 4/9 + 3/9 reach 0.7
        (2, 0.5, [1]),  # 4/7 reaches 0.5
    ],
)
def test_top_k_and_top_p_keep_the_most_probable(top_k, top_p, tokens):
    assert allowed(top_k, top_p) == tokens


def test_of_equal_tokens_the_first_are_kept():
    assert allowed(2, 1.0, torch.full((4,), 0.25)) == [0, 1]
    assert allowed(None, 0.6, torch.full((4,), 0.25)) == [0, 1, 2]
    assert allowed(None, 0.5, torch.full((4,), 0.25)) == [0, 1]  # two reach it exactly
    assert allowed(100, 1.0, torch.full((256,), 1 / 256)) == list(range(100))


def drawn(choice: str, **settings: object) -> list[float]:
    """Shares of the tokens over 8,000 places of the same probabilities."""
    mask = torch.ones(8, 1000, dtype=torch.bool)
    ids = torch.arange(8)
    config = DecodingConfig(**settings)
    step = Step(0, config, "cosine", mask, 0, ids, torch.zeros_like(ids))
    tokens = TOKEN_CHOICES[choice](PROBABILITIES.log().expand(8000, 4), mask, step)
    return (tokens.bincount(minlength=4) / 8000).tolist()


def test_argmax_always_takes_the_most_probable():
    assert drawn("argmax") == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),  # squares
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.8}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_k": 1}, [0, 1, 0, 0]),
    ],
)
def test_tokens_are_drawn_in_their_shares(settings, shares):
    # four standard deviations of a share of 8,000: 4 sqrt(0.25 / 8000) = 0.022
    assert drawn("sample", **settings) == pytest.approx(shares, abs=0.022)
    assert [share == 0 for share in drawn("sample", **settings)] == [share == 0 for share in shares]
