"""The interpolation prior: what known neighbours suggest."""

from __future__ import annotations

import math

import pytest
import torch

from config.schema import TransformerConfig
from models.conditioning import InterpolationPrior
from models.transformer import BidirectionalTransformer

MASK = 3  # three codes on a line, at -1, 0 and 1


@pytest.fixture
def prior() -> InterpolationPrior:
    prior = InterpolationPrior(num_tokens=4, codebook_size=3, code_dim=1, dim=2)
    prior.set_codes(torch.tensor([[-1.0], [0.0], [1.0]]), torch.tensor([0.25, 0.5, 0.25]))
    return prior


def test_codes_are_centred_and_have_mean_squared_length_one(prior):
    frequency = torch.tensor([0.25, 0.5, 0.25])
    assert frequency @ prior.codes[:3] == pytest.approx(0)
    assert frequency @ prior.codes[:3].square().sum(1) == pytest.approx(1)
    assert prior.codes[MASK].tolist() == [0]


def test_codes_are_known_again_however_they_were_centred_and_scaled(prior):
    codes = torch.tensor([[-1.0], [0.0], [1.0]])
    assert prior.has_codes(codes)
    assert prior.has_codes(5 * codes + 3)
    assert not prior.has_codes(torch.tensor([[-1.0], [0.01], [1.0]]))
    assert not prior.has_codes(codes.flip(0))


def test_a_hidden_place_gets_the_distance_weighted_mean_of_known_codes(prior):
    token_ids = torch.tensor([[0, MASK, MASK, 2]])  # grid [[0, ?], [?, 2]]
    mean = prior.neighbours(token_ids, MASK)[0, 1, 0].item()
    assert mean == pytest.approx(0, abs=1e-6)  # both neighbours are one step away
    token_ids = torch.tensor([[0, MASK, MASK, MASK]])
    mean, log_total = prior.neighbours(token_ids, MASK)[0, 3].tolist()
    weight = math.exp(-math.sqrt(2) / 0.7)  # across the diagonal
    assert mean == pytest.approx(-math.sqrt(2) * weight / (weight + 1e-4), rel=1e-5)
    assert log_total == pytest.approx(math.log(weight + 1e-4), rel=1e-5)


def test_without_any_known_token_the_mean_code_is_suggested(prior):
    neighbours = prior.neighbours(torch.full((1, 4), MASK), MASK)
    assert neighbours[..., :-1].abs().max() == 0


def test_logits_before_training_are_those_of_a_gaussian_around_the_mean(prior):
    neighbours = torch.tensor([[0.5, 0.0]])
    for part in prior.correction.parameters():
        torch.nn.init.zeros_(part)
    logits = prior.logits(torch.randn(1, 2), neighbours)[0, :3]
    precision = 1 / (2 * 0.2)
    expected = -precision * (prior.codes[:3, 0] - 0.5).square()
    torch.testing.assert_close(logits.log_softmax(0), expected.log_softmax(0))


def test_a_transformer_starts_from_the_codes_and_their_frequencies():
    config = TransformerConfig(
        dim=8, num_heads=2, num_layers=1, mlp_dim=8, num_tokens=4, codebook_size=3, prior_dim=2
    )
    torch.manual_seed(0)
    model = BidirectionalTransformer(config)
    codes, frequency = torch.randn(3, 2), torch.tensor([0.1, 0.2, 0.7])
    model.start_from_codebook(codes, frequency)
    assert (model.prior.correction.weight == 0).all()
    torch.testing.assert_close(model.bias[:, :3].exp(), frequency.expand(4, 3))
    distances = torch.cdist(model.tok_emb.weight[:3], model.tok_emb.weight[:3])
    ratio = distances[distances > 0] / torch.cdist(codes, codes)[distances > 0]
    assert ratio.std() / ratio.mean() < 1e-3  # likeness is kept: a rotation and a scale


def test_logits_at_hidden_places_equal_those_of_the_whole_grid():
    config = TransformerConfig(
        dim=8, num_heads=2, num_layers=1, mlp_dim=8, num_tokens=4, codebook_size=3, prior_dim=2
    )
    torch.manual_seed(0)
    model = BidirectionalTransformer(config).eval()
    model.start_from_codebook(torch.randn(3, 2), torch.full((3,), 1 / 3))
    token_ids = torch.tensor([[0, MASK, 1, MASK], [MASK, MASK, 2, 2]])
    hidden = token_ids == MASK
    torch.testing.assert_close(model(token_ids, hidden), model(token_ids)[hidden])
