"""Figures of reconstructions by hand, and a picture of them."""

from __future__ import annotations

import math

import pytest
import torch

from utils.data.augment import load_images
from utils.data.datasets import normalise, to_uint8
from utils.training import validate_tokenizer
from utils.training.validate_tokenizer import (
    TokenizerValidation,
    mean_psnr,
    mean_ssim,
    reconstruction_grid,
)

CPU = torch.device("cpu")


@pytest.fixture
def images(config) -> torch.Tensor:
    return load_images(config.data.root / "val", config.data.image_size)


def test_psnr_is_the_mean_over_images_in_decibels():
    images = torch.zeros(2, 2, 2, 3, dtype=torch.uint8)
    outputs = images.clone()
    outputs[0] = 51  # a fifth of 255: 20 log10(5)
    outputs[1, 0, 0] = 255  # a quarter of the pixels: 10 log10(4)
    expected = (20 * math.log10(5) + 10 * math.log10(4)) / 2
    assert mean_psnr(images, outputs) == pytest.approx(expected)


def test_ssim_of_equal_images_is_1_and_of_others_less():
    images = torch.randint(256, (2, 16, 16, 3), dtype=torch.uint8)
    assert mean_ssim(images, images) == pytest.approx(1)
    assert mean_ssim(images, images.flip(1)) < 0.5


@pytest.mark.usefixtures("quick")
def test_reconstructions_are_decoded_encodings(tokenizer, config, images):
    outputs, token_ids = TokenizerValidation(images, config, CPU, torch.float32).reconstruct(
        tokenizer
    )
    mean, std = config.data.mean, config.data.std
    ids = tokenizer.encode(normalise(images, mean, std))
    assert torch.equal(token_ids, ids)
    assert torch.equal(outputs, to_uint8(tokenizer.decode(ids), mean, std))


@pytest.mark.usefixtures("quick")
def test_images_are_encoded_in_full_fp32_whatever_they_are_decoded_in(
    tokenizer, config, images, monkeypatch
):
    found, encode = set(), tokenizer.encode

    def recorded(pixels: torch.Tensor) -> torch.Tensor:
        found.add((torch.is_autocast_enabled("cpu"), torch.backends.cudnn.allow_tf32))
        return encode(pixels)

    monkeypatch.setattr(tokenizer, "encode", recorded)
    with torch.autocast("cpu", torch.bfloat16):
        TokenizerValidation(images, config, CPU, torch.bfloat16).reconstruct(tokenizer)
    assert found == {(False, False)}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("size", [1, 4])
def test_the_batch_size_changes_nothing_and_no_batch_is_dropped(
    tokenizer, config, images, monkeypatch, size
):
    validation = TokenizerValidation(images, config, CPU, torch.float32)
    whole = validation(tokenizer)
    monkeypatch.setitem(validate_tokenizer.BATCHES, "cpu", size)
    assert validation(tokenizer) == pytest.approx(whole, rel=1e-3, abs=1e-3)


@pytest.mark.usefixtures("quick")
def test_codes_in_use_are_counted_over_all_images(tokenizer, config, images):
    with torch.no_grad():  # all codes but two are far away from any latent
        tokenizer.codebook.embedding.weight[2:] = 1e3
    numbers = TokenizerValidation(images, config, CPU, torch.float32)(tokenizer)
    assert numbers["codes_used"] == 2 / 16
    assert 1 < numbers["perplexity"] <= 2


def test_the_distance_of_the_originals_to_themselves_in_any_order_is_nothing(images):
    from utils.scoring import FeatureDistance

    originals = images[:3].permute(0, 2, 3, 1)
    distance = FeatureDistance(originals, torch.device("cpu"))
    assert distance(originals.flip(0)) == pytest.approx(0, abs=1e-4)
    assert distance(255 - originals) > 1


def test_the_picture_has_each_original_above_its_reconstruction():
    images = torch.arange(16, dtype=torch.uint8)[:, None, None, None].expand(16, 4, 4, 3)
    grid = reconstruction_grid(images, images + 100)
    assert grid.shape == (4 * 6 + 2, 8 * 6 + 2, 3)  # 4 pixels and a gap of 2
    corners = grid[2::6, 2::6, 0].tolist()
    first, second = list(range(8)), list(range(8, 16))
    plus = [[value + 100 for value in row] for row in (first, second)]
    assert corners == [first, plus[0], second, plus[1]]
