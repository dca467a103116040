"""An imported network computes what the lab's does, for every variant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from config.schema import Config
from utils.weights.import_lab import import_lab
from utils.weights.lab_naming import VARIANTS
from utils.weights.store import load_tokenizer, load_transformer


def masked(indices: Tensor, mask_id: int) -> Tensor:
    """Half of the tokens hidden."""
    generator = torch.Generator().manual_seed(3)
    return indices.masked_fill(torch.rand(indices.shape, generator=generator) < 0.5, mask_id)


def pixels(decoded: Tensor) -> Tensor:
    """The scale of 0 to 1 that images are written in."""
    return decoded * torch.tensor([0.2620, 0.2527, 0.2543]).view(3, 1, 1)


def check_same(solution, config: Config, images: Tensor) -> None:
    """Token ids, images and logits of the lab's own modules and of ours."""
    tokenizer = load_tokenizer(config.tokenizer_weights, config.tokenizer)
    transformer = load_transformer(config.transformer_weights, config.transformer)
    with torch.no_grad():
        indices = solution.vqgan.encode(images)
        assert torch.equal(tokenizer.encode(images), indices)
        assert len(indices.unique()) > 5, "a codebook that hardly matters proves little"
        expected = pixels(solution.vqgan.decode(indices))
        torch.testing.assert_close(pixels(tokenizer.decode(indices)), expected, rtol=0, atol=1e-5)
        assert expected.std() > 0.05
        hidden = masked(indices, len(solution.vqgan.codebook.embedding.weight))
        expected = solution.transformer(hidden)
        torch.testing.assert_close(transformer(hidden), expected, rtol=1e-5, atol=1e-5)
        assert expected.std() > 0.05


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_reduced_solution_computes_the_same_for_many_images(solution, save, tmp_path, variant):
    lab = solution(variant)
    files = [
        save(lab.vqgan.state_dict(), "VQGAN.pt"),
        save(lab.transformer.state_dict(), "transformer.pt"),
    ]
    config, *_ = import_lab(files, tmp_path / "ours", Config())
    images = torch.randn(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    check_same(lab, config, images)


@pytest.mark.long
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_full_size_solution_computes_the_same(solution, save, tmp_path: Path, variant):
    lab = solution(variant, full=True)
    config, *_ = import_lab([save(lab.state_dict(), "whole.pt")], tmp_path / "ours", Config())
    check_same(lab, config, torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
