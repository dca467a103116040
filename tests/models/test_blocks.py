"""Block masks against a plain reading of their description, number by number."""

from __future__ import annotations

import math

import pytest
import torch

from config.schema import MaskingConfig
from models.masking import BLOCKS, draw_blocks, draw_ratio, draw_token_mask


def reference(p: list[float], num_tokens: int, generator: torch.Generator) -> list[list[bool]]:
    """The same draws, one rectangle and one token at a time."""
    side, batch = math.isqrt(num_tokens), len(p)
    edges = torch.rand(4, batch, BLOCKS, generator=generator).tolist()
    noise = torch.rand(batch, num_tokens, generator=generator).tolist()
    longest = max(1, side // 2)
    masks = []
    for image in range(batch):
        queue: list[int] = []  # tokens in the order in which they are hidden
        for block in range(BLOCKS):
            tall, wide, down, right = (edges[i][image][block] for i in range(4))
            height, width = 1 + int(tall * longest), 1 + int(wide * longest)
            top = int(torch.tensor(down) * (side + height - 1)) - (height - 1)
            left = int(torch.tensor(right) * (side + width - 1)) - (width - 1)
            for row in range(max(0, top), min(side, top + height)):
                for column in range(max(0, left), min(side, left + width)):
                    if row * side + column not in queue:
                        queue.append(row * side + column)
        rest = [token for token in range(num_tokens) if token not in queue]
        queue += sorted(rest, key=noise[image].__getitem__)
        hidden = set(queue[: math.ceil(p[image] * num_tokens)])
        masks.append([token in hidden for token in range(num_tokens)])
    return masks


@pytest.mark.parametrize("num_tokens", [1, 4, 9, 16, 64, 256])
@pytest.mark.parametrize("seed", range(4))
def test_blocks_are_those_of_the_plain_reading(num_tokens, seed):
    p = torch.tensor([[0.0], [0.25], [0.5], [0.75], [1.0]])
    found = draw_blocks(p, num_tokens, torch.Generator().manual_seed(seed))
    expected = reference(p[:, 0].tolist(), num_tokens, torch.Generator().manual_seed(seed))
    assert found.tolist() == expected


def test_tokens_that_no_rectangle_covers_are_hidden_in_random_order(monkeypatch):
    monkeypatch.setattr("models.masking.BLOCKS", 1)
    monkeypatch.setitem(globals(), "BLOCKS", 1)
    p = torch.full((6, 1), 0.75)
    found = draw_blocks(p, 64, torch.Generator().manual_seed(5))
    expected = reference(p[:, 0].tolist(), 64, torch.Generator().manual_seed(5))
    assert found.tolist() == expected


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_the_shape_blocks_draws_blocks_of_the_drawn_shares(per):
    masking = MaskingConfig(shape="blocks", ratio_per=per)
    found = draw_token_mask(3, 64, masking, torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(2)
    p = draw_ratio(3, masking, generator).expand(3, 1)
    assert torch.equal(found, draw_blocks(p, 64, generator))
