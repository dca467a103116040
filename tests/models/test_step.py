"""A step's noise, against the generator called by hand with the key that belongs to it."""

from __future__ import annotations

import pytest
import torch

from config.schema import DecodingConfig
from models.noise import CONFIDENCE_STREAM, ORDER_STREAM, TOKEN_STREAM, gumbel, uniform
from models.rules import Step

SEED, INDEX, TOKENS = 7, 3, 9
IMAGE_IDS, SAMPLE_IDS = torch.tensor([5, 8, 8]), torch.tensor([0, 0, 2])


@pytest.fixture
def step() -> Step:
    mask = torch.ones(3, TOKENS, dtype=torch.bool)
    return Step(INDEX, DecodingConfig(), "cosine", mask, SEED, IMAGE_IDS, SAMPLE_IDS)


def test_confidences_are_perturbed_by_gumbel_noise_of_seed_image_step_and_sample(step):
    expected = gumbel(SEED, IMAGE_IDS, INDEX, CONFIDENCE_STREAM, TOKENS, SAMPLE_IDS)
    assert torch.equal(step.confidence_noise(), expected)


def test_tokens_are_drawn_with_uniform_numbers_of_seed_image_step_and_sample(step):
    expected = uniform(SEED, IMAGE_IDS, INDEX, TOKEN_STREAM, TOKENS, SAMPLE_IDS)
    assert torch.equal(step.token_noise(), expected)


def test_a_random_order_is_drawn_once_for_seed_image_and_sample(step):
    expected = uniform(SEED, IMAGE_IDS, 0, ORDER_STREAM, TOKENS, SAMPLE_IDS)
    assert torch.equal(step.order_noise(), expected)


def test_the_three_uses_share_no_numbers():
    assert len({CONFIDENCE_STREAM, TOKEN_STREAM, ORDER_STREAM}) == 3


def test_steps_are_counted_from_0_and_the_last_is_the_last_of_the_schedule(step):
    assert step.progress == pytest.approx(4 / 10)
    assert not step.is_last
    assert step.hidden_at_start.tolist() == [TOKENS] * 3
