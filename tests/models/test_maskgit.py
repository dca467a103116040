"""The frozen tokenizer, and inpainting as a whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from config.schema import DecodingConfig, MaskingConfig
from models.maskgit import MaskGIT
from models.masking import draw_token_mask, token_loss, token_mask_from_holes

CODES = 16
RULES = ("listing", "maskgit")


def test_the_tokenizer_is_frozen_and_stays_in_eval_mode(maskgit):
    maskgit.train()
    assert maskgit.transformer.training
    assert not any(module.training for module in maskgit.tokenizer.modules())
    assert not any(weight.requires_grad for weight in maskgit.tokenizer.parameters())
    maskgit.eval()
    assert not maskgit.transformer.training


def test_a_fresh_maskgit_has_its_tokenizer_frozen_already(tokenizer, transformer):
    tokenizer.train().requires_grad_(True)
    model = MaskGIT(tokenizer, transformer, "cosine")
    assert not any(module.training for module in model.tokenizer.modules())
    assert not any(weight.requires_grad for weight in model.tokenizer.parameters())


def test_the_optimiser_of_the_transformer_sees_nothing_of_the_tokenizer(maskgit):
    tokenizer_weights = {id(weight) for weight in maskgit.tokenizer.parameters()}
    assert all(id(weight) not in tokenizer_weights for weight in maskgit.transformer.parameters())
    trained = {name for name, weight in maskgit.named_parameters() if weight.requires_grad}
    assert trained == {f"transformer.{name}" for name, _ in maskgit.transformer.named_parameters()}


def test_the_loss_gives_the_tokenizer_no_gradient(maskgit, generator):
    images = torch.randn(2, 3, 16, 16)
    ids = maskgit.tokenizer.encode(images)
    mask = draw_token_mask(*ids.shape, MaskingConfig(), generator)
    token_loss(maskgit.transformer, ids, mask, MaskingConfig()).backward()
    assert all(weight.grad is None for weight in maskgit.tokenizer.parameters())
    assert all(weight.grad is not None for weight in maskgit.transformer.parameters())


def images_and_holes(count: int = 8) -> tuple[Tensor, Tensor]:
    """Noise images; the first has no hole, the second is all hole, the others are ragged."""
    generator = torch.Generator().manual_seed(6)
    images = torch.randn(count, 3, 16, 16, generator=generator)
    share = torch.linspace(0.0, 0.3, count)[:, None, None]
    holes = torch.rand(count, 16, 16, generator=generator) < share
    holes[0], holes[1] = False, True
    return images, holes


@pytest.mark.parametrize("rule", RULES)
def test_a_batch_of_eight_equals_eight_batches_of_one(maskgit, inpaint, rule):
    images, holes = images_and_holes()
    ids = torch.arange(8) + 30
    settings = DecodingConfig(rule=rule)
    together = inpaint(maskgit, images, holes, settings, seed=1, image_ids=ids)
    for i in range(8):
        row = slice(i, i + 1)
        alone = inpaint(maskgit, images[row], holes[row], settings, seed=1, image_ids=ids[row])
        assert torch.equal(alone, together[row])


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_images_does_not_matter(maskgit, inpaint, rule):
    images, holes = images_and_holes()
    ids, order = torch.arange(8), torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    settings = DecodingConfig(rule=rule)
    straight = inpaint(maskgit, images, holes, settings, seed=0, image_ids=ids)
    shuffled = inpaint(maskgit, images[order], holes[order], settings, seed=0, image_ids=ids[order])
    assert torch.equal(shuffled, straight[order])


@pytest.mark.parametrize("rule", RULES)
def test_known_tokens_keep_the_index_that_the_tokenizer_gave_them(maskgit, inpaint, rule):
    images, holes = images_and_holes()
    known = ~token_mask_from_holes(holes, grid=4)
    encoded = maskgit.tokenizer.encode(images)
    repaired = inpaint(
        maskgit, images, holes, DecodingConfig(rule=rule), seed=0, image_ids=torch.arange(8)
    )
    assert torch.equal(repaired[known], encoded[known])
    assert torch.equal(repaired[0], encoded[0])  # without a hole nothing changes
    assert not torch.equal(repaired[1], encoded[1])


@pytest.mark.parametrize("rule", RULES)
def test_the_mask_id_is_never_predicted_however_probable(maskgit, rule):
    images, holes = images_and_holes()
    with torch.no_grad():
        maskgit.transformer.bias[:, CODES] = 1e4
    start = maskgit.start(images, holes)
    ids, settings = torch.arange(8), DecodingConfig(rule=rule)
    steps = list(maskgit.finish(start, settings, seed=0, image_ids=ids))
    assert [step.index for step in steps] == list(range(10))
    assert max(step.token_ids.max() for step in steps) < CODES


@pytest.fixture
def tf32() -> Iterator[None]:
    """All that an application may have asked of a GPU to be faster."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32
    matmul.allow_tf32 = True
    with cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
        yield
    matmul.allow_tf32 = before


@pytest.mark.usefixtures("tf32")
def test_images_are_encoded_in_full_precision_whatever_holds_around(maskgit):
    def settings() -> tuple[bool, ...]:
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        autocast, tf32 = torch.is_autocast_enabled("cpu"), (matmul.allow_tf32, cudnn.allow_tf32)
        return (autocast, *tf32, cudnn.benchmark, cudnn.deterministic)

    seen = []
    maskgit.tokenizer.quant_conv.register_forward_hook(lambda *_: seen.append(settings()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = settings()
        maskgit.encode(torch.zeros(1, 3, 16, 16))
        assert settings() == before == (True, True, True, True, False)
    assert seen == [(False, False, False, False, True)]


def test_inpainting_keeps_no_graph_and_leaves_the_global_generator_alone(maskgit, inpaint):
    images, holes = images_and_holes()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    inpaint(maskgit, images, holes, DecodingConfig(), seed=0, image_ids=torch.arange(8))
    assert torch.equal(torch.get_rng_state(), before)
    logits = maskgit.logits_of(torch.zeros(1, 16, dtype=torch.long), torch.ones(1, 16) > 0)
    assert logits.shape == (16, CODES)


def test_the_models_own_schedule_steers_the_listing_rule(maskgit):
    counts, settings = {}, DecodingConfig(mask_schedule="linear", total_iter=4)
    start = maskgit.start(*images_and_holes())
    for schedule in ("linear", "square"):
        maskgit.mask_schedule = schedule
        steps = maskgit.finish(start, settings, seed=0, image_ids=torch.arange(8))
        counts[schedule] = [step.hidden[1].sum().item() for step in steps]
    assert counts == {"linear": [12, 8, 4, 0], "square": [15, 12, 7, 0]}  # of 16 hidden
