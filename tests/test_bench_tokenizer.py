"""The measure of what holes do to known tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.tokenizer_quality import kept_tokens, token_distance
from config.schema import DataConfig
from utils.data.datasets import InpaintingSet
from utils.io.images import save_png


def test_distance_counts_tokens_to_the_nearest_hidden_one():
    holes = np.zeros((2, 16, 16), dtype=bool)
    holes[0, 0, 0] = True  # hides token (0, 0) of a 4 x 4 grid; the second image has no hole
    first, second = token_distance(holes, 16).reshape(2, 4, 4)
    assert first.tolist() == [[0, 1, 2, 3], [1, 1, 2, 3], [2, 2, 2, 3], [3, 3, 3, 3]]
    assert (second == 4).all()


class MeanTokenizer:
    """Token ids from the whole image's mean colour, so any change anywhere changes all."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        ids = (images.mean((1, 2, 3)) * 1e6).long()
        return ids[:, None].expand(-1, 16)


class PatchTokenizer:
    """Token ids from each token's own patch."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        patches = images.unflatten(3, (4, 4)).unflatten(2, (4, 4)).mean((1, 3, 5))
        return (patches * 1e6).long().flatten(1)


@pytest.mark.parametrize(("tokenizer", "share"), [(MeanTokenizer(), 0.0), (PatchTokenizer(), 1.0)])
def test_global_tokens_all_flip_and_local_tokens_all_stay(tmp_path, tokenizer, share):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    mask = np.full((16, 16), 255, dtype=np.uint8)
    mask[:3, :3] = 0
    for folder, image in {"test": pixels, "masked_image": pixels, "mask64": mask}.items():
        save_png(tmp_path / folder / "image_000.png", image)
    dataset = InpaintingSet(tmp_path)
    data = DataConfig(image_size=16)
    shares = kept_tokens(tokenizer, dataset, data, "grey", torch.device("cpu"))
    assert shares == {"all": share, "1": share, "2": share, "3": share, "2+": share}
