"""Choosing tokens: the shares in which they are drawn."""

from __future__ import annotations

import pytest
import torch

from config.schema import DecodingConfig
from models.rules import TOKEN_CHOICES, Step

PROBABILITIES = torch.tensor([0.1, 0.4, 0.2, 0.3])


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
    ],
)
def test_tokens_are_drawn_in_their_shares(settings, shares):
    # four standard deviations of a share of 8,000: 4 sqrt(0.25 / 8000) = 0.022
    assert drawn("sample", **settings) == pytest.approx(shares, abs=0.022)
