"""The loss of masked token modelling on explicit tensors, the frozen tokenizer, full inpainting."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import models.maskgit
from config.schema import DecodingConfig, MaskingConfig
from models.maskgit import MaskGIT, token_loss
from models.masking import draw_token_mask, token_mask_from_holes

CODES = 16
RULES = ("listing", "maskgit")


@pytest.fixture
def token_ids() -> Tensor:
    return torch.randint(CODES, (3, 16), generator=torch.Generator().manual_seed(3))


@pytest.fixture
def token_mask() -> Tensor:
    return torch.rand(3, 16, generator=torch.Generator().manual_seed(4)) < 0.5


def negative_log_likelihood(transformer, token_ids: Tensor, mask: Tensor, smoothing: float):
    """Cross-entropy at every place, (B, N), from the definition: targets smoothed over K + 1."""
    logits = transformer(torch.where(mask, torch.tensor(CODES), token_ids))
    target = F.one_hot(token_ids, CODES + 1).float()
    target = (1 - smoothing) * target + smoothing / (CODES + 1)
    return -(target * logits.log_softmax(-1)).sum(-1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_on_all_is_the_mean_over_every_token(transformer, token_ids, token_mask, smoothing):
    masking = MaskingConfig(loss_on="all", label_smoothing=smoothing)
    expected = negative_log_likelihood(transformer, token_ids, token_mask, smoothing).mean()
    torch.testing.assert_close(token_loss(transformer, token_ids, token_mask, masking), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_on_hidden_is_the_mean_over_hidden_tokens(
    transformer, token_ids, token_mask, smoothing
):
    masking = MaskingConfig(loss_on="hidden", label_smoothing=smoothing)
    each = negative_log_likelihood(transformer, token_ids, token_mask, smoothing)
    expected = (each * token_mask).sum() / token_mask.sum()
    torch.testing.assert_close(token_loss(transformer, token_ids, token_mask, masking), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_equals_pytorch_cross_entropy_on_explicit_tensors(
    transformer, token_ids, token_mask, smoothing
):
    logits = transformer(token_ids.masked_fill(token_mask, CODES))
    expected = F.cross_entropy(logits[token_mask], token_ids[token_mask], label_smoothing=smoothing)
    masking = MaskingConfig(loss_on="hidden", label_smoothing=smoothing)
    torch.testing.assert_close(token_loss(transformer, token_ids, token_mask, masking), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_picking_hidden_places_and_weighting_all_of_them_is_the_same_loss(
    transformer, token_ids, token_mask, smoothing, monkeypatch
):
    masking = MaskingConfig(loss_on="hidden", label_smoothing=smoothing)
    nothing = torch.zeros_like(token_mask)
    found = []
    for may_pick in (True, False):
        monkeypatch.setattr(models.maskgit, "_may_pick", lambda _, yes=may_pick: yes)
        found.append(
            [token_loss(transformer, token_ids, m, masking) for m in (token_mask, nothing)]
        )
    torch.testing.assert_close(*found)
    assert found[0][0] > 0
    assert found[0][1] == found[1][1] == 0


@pytest.mark.parametrize("on", ["all", "hidden"])
def test_known_places_show_what_is_seen_while_targets_stay_clean(
    transformer, token_ids, token_mask, on
):
    masking = MaskingConfig(loss_on=on)
    seen = (token_ids + 1) % CODES
    logits = transformer(seen.masked_fill(token_mask, CODES))
    scored = token_mask if on == "hidden" else torch.ones_like(token_mask)
    expected = F.cross_entropy(logits[scored], token_ids[scored])
    found = token_loss(transformer, token_ids, token_mask, masking, seen)
    torch.testing.assert_close(found, expected)


def test_both_losses_agree_when_everything_is_hidden(transformer, token_ids):
    everything = torch.ones_like(token_ids, dtype=torch.bool)
    on_all, on_hidden = (
        token_loss(transformer, token_ids, everything, MaskingConfig(loss_on=on))
        for on in ("all", "hidden")
    )
    torch.testing.assert_close(on_all, on_hidden)


def test_gradients_of_the_hidden_loss_equal_those_of_full_logits(
    transformer, token_ids, token_mask
):
    token_loss(transformer, token_ids, token_mask, MaskingConfig(loss_on="hidden")).backward()
    compact = {name: p.grad.clone() for name, p in transformer.named_parameters()}
    transformer.zero_grad()
    each = negative_log_likelihood(transformer, token_ids, token_mask, 0.0)
    ((each * token_mask).sum() / token_mask.sum()).backward()
    for name, weight in transformer.named_parameters():
        torch.testing.assert_close(compact[name], weight.grad, rtol=1e-4, atol=1e-5)


def test_loss_is_zero_and_differentiable_when_nothing_is_hidden(transformer, token_ids):
    nothing = torch.zeros_like(token_ids, dtype=torch.bool)
    loss = token_loss(transformer, token_ids, nothing, MaskingConfig(loss_on="hidden"))
    assert loss.item() == 0.0
    loss.backward()
    gradients = [p.grad for p in transformer.parameters() if p.grad is not None]
    assert all((gradient == 0).all() for gradient in gradients)


def test_loss_of_an_indifferent_transformer_is_the_log_of_the_vocabulary(
    transformer, token_ids, token_mask
):
    with torch.no_grad():
        for weight in (transformer.tok_emb.weight, transformer.bias):
            weight.zero_()
    for on in ("all", "hidden"):
        loss = token_loss(transformer, token_ids, token_mask, MaskingConfig(loss_on=on))
        assert loss.item() == pytest.approx(math.log(CODES + 1))


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
def test_a_batch_of_eight_equals_eight_batches_of_one(maskgit, rule):
    images, holes = images_and_holes()
    ids = torch.arange(8) + 30
    settings = DecodingConfig(rule=rule)
    together = maskgit.inpaint(images, holes, settings, seed=1, image_ids=ids)
    for i in range(8):
        row = slice(i, i + 1)
        alone = maskgit.inpaint(images[row], holes[row], settings, seed=1, image_ids=ids[row])
        assert torch.equal(alone, together[row])


@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_images_does_not_matter(maskgit, rule):
    images, holes = images_and_holes()
    ids, order = torch.arange(8), torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    settings = DecodingConfig(rule=rule)
    straight = maskgit.inpaint(images, holes, settings, seed=0, image_ids=ids)
    shuffled = maskgit.inpaint(images[order], holes[order], settings, seed=0, image_ids=ids[order])
    assert torch.equal(shuffled, straight[order])


@pytest.mark.parametrize("rule", RULES)
def test_known_tokens_keep_the_index_that_the_tokenizer_gave_them(maskgit, rule):
    images, holes = images_and_holes()
    known = ~token_mask_from_holes(holes, grid=4)
    encoded = maskgit.tokenizer.encode(images)
    repaired = maskgit.inpaint(
        images, holes, DecodingConfig(rule=rule), seed=0, image_ids=torch.arange(8)
    )
    assert torch.equal(repaired[known], encoded[known])
    assert torch.equal(repaired[0], encoded[0])  # without a hole nothing changes
    assert not torch.equal(repaired[1], encoded[1])


@pytest.mark.parametrize("rule", RULES)
def test_the_mask_id_is_never_predicted_however_probable(maskgit, rule):
    images, holes = images_and_holes()
    with torch.no_grad():
        maskgit.transformer.bias[:, CODES] = 1e4
    seen = []
    maskgit.inpaint(
        images,
        holes,
        DecodingConfig(rule=rule),
        seed=0,
        image_ids=torch.arange(8),
        on_step=lambda step: seen.append((step.index, step.token_ids.max().item())),
    )
    assert [step for step, _ in seen] == list(range(10))
    assert max(top for _, top in seen) < CODES


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


def test_inpainting_keeps_no_graph_and_leaves_the_global_generator_alone(maskgit):
    images, holes = images_and_holes()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    maskgit.inpaint(images, holes, DecodingConfig(), seed=0, image_ids=torch.arange(8))
    assert torch.equal(torch.get_rng_state(), before)
    logits = maskgit.logits_of(torch.zeros(1, 16, dtype=torch.long), torch.ones(1, 16) > 0)
    assert logits.shape == (16, CODES)


def test_the_models_own_schedule_steers_the_listing_rule(maskgit):
    counts = {}
    images, holes = images_and_holes()
    for schedule in ("linear", "square"):
        maskgit.mask_schedule = schedule
        seen = []
        maskgit.inpaint(
            images,
            holes,
            DecodingConfig(mask_schedule="linear", total_iter=4),
            seed=0,
            image_ids=torch.arange(8),
            on_step=lambda step, seen=seen: seen.append(step.hidden[1].sum().item()),
        )
        counts[schedule] = seen
    assert counts == {"linear": [12, 8, 4, 0], "square": [15, 12, 7, 0]}  # of 16 hidden
