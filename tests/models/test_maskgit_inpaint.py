"""Inpainting with whole networks: any batch gives the same tokens, several repairs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from config.schema import DecodingConfig, TransformerConfig
from models.maskgit import MaskGIT
from models.masking import token_mask_from_holes
from models.orders import ORDERS
from models.transformer import BidirectionalTransformer
from models.vqgan import VQGAN


def images_and_holes(count: int) -> tuple[Tensor, Tensor]:
    """Noise images; the first has no hole, the second is all hole, the others are ragged."""
    generator = torch.Generator().manual_seed(6)
    images = torch.randn(count, 3, 16, 16, generator=generator)
    share = torch.linspace(0.0, 0.3, count)[:, None, None]
    holes = torch.rand(count, 16, 16, generator=generator) < share
    holes[0], holes[1] = False, True
    return images, holes


@pytest.fixture
def wide_maskgit(tokenizer: VQGAN) -> MaskGIT:
    """Wide enough that matrix products of other shapes round differently."""
    torch.manual_seed(0)
    config = TransformerConfig(
        dim=192,
        num_heads=4,
        num_layers=2,
        mlp_dim=384,
        dropout=0.0,
        num_tokens=16,
        codebook_size=16,
    )
    return MaskGIT(tokenizer, BidirectionalTransformer(config), "cosine").eval()


@pytest.mark.parametrize(
    ("rule", "dtype"), [("listing", torch.float32), ("maskgit", torch.bfloat16)]
)
def test_tokens_and_logits_do_not_depend_on_the_batch_to_the_bit(
    wide_maskgit, inpaint, rule, dtype
):
    images, holes = images_and_holes(21)
    settings = DecodingConfig(rule=rule, total_iter=4, choice_temperature=0.0)
    logits, decoded, ids = {}, {}, torch.arange(21)
    for size in (1, 7, 21):
        batches = zip(images.split(size), holes.split(size), ids.split(size), strict=True)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            decoded[size] = torch.cat(
                [inpaint(wide_maskgit, i, h, settings, seed=1, image_ids=n) for i, h, n in batches]
            )
            mask = token_mask_from_holes(holes, 4)
            shown = wide_maskgit.encode(images).masked_fill(mask, 16)
            pairs = zip(shown.split(size), mask.split(size), strict=True)
            logits[size] = torch.cat([wide_maskgit.logits_of(*pair) for pair in pairs])
    for size in (7, 21):
        assert torch.equal(decoded[size], decoded[1])
        assert torch.equal(logits[size], logits[1])


@pytest.mark.parametrize("order", ORDERS)
def test_repairs_of_one_image_are_rows_of_their_own(maskgit, inpaint, order):
    images, holes = images_and_holes(5)
    ids, settings = torch.arange(5) + 3, DecodingConfig(order=order, token_choice="sample")
    single = inpaint(maskgit, images, holes, settings, seed=2, image_ids=ids)
    start = maskgit.start(images, holes)
    first, *_, last = maskgit.finish(start, settings, seed=2, image_ids=ids, samples=3)
    several = last.token_ids.unflatten(0, (5, 3))
    assert torch.equal(several[:, 0], single)
    assert first.hidden.shape == (15, 16)
    known = ~token_mask_from_holes(holes, grid=4)
    assert torch.equal(several[:, 1][known], single[known])
    assert not torch.equal(several[1, 1], several[1, 0])
    assert not torch.equal(several[1, 1], several[1, 2])


def test_several_repairs_need_one_encoding(maskgit, inpaint, monkeypatch):
    encoded = []
    latents = maskgit.tokenizer.latents
    monkeypatch.setattr(
        maskgit.tokenizer, "latents", lambda images: encoded.append(len(images)) or latents(images)
    )
    images, holes = images_and_holes(4)
    settings = DecodingConfig(total_iter=2)
    inpaint(maskgit, images, holes, settings, seed=0, image_ids=torch.arange(4), samples=5)
    assert sum(encoded) == 4


def test_a_start_can_be_finished_in_several_ways_and_sample_by_sample(maskgit, inpaint):
    images, holes = images_and_holes(3)
    common = {"seed": 4, "image_ids": torch.arange(3)}
    start = maskgit.start(images, holes)
    for rule in ("listing", "maskgit"):
        settings = DecodingConfig(rule=rule, total_iter=3)
        together = inpaint(maskgit, images, holes, settings, samples=2, **common).view(3, 2, -1)
        *_, finished = maskgit.finish(start, settings, samples=2, **common)
        assert torch.equal(finished.token_ids.view(3, 2, -1), together)
        for sample in range(2):
            *_, alone = maskgit.finish(start, settings, first_sample=sample, **common)
            assert torch.equal(alone.token_ids, together[:, sample])
