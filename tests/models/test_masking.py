"""Mask schedules by closed form, masks by hand, drawn ones by their statistics, the loss."""

from __future__ import annotations

from math import log, pi, sqrt

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import models.masking
from config.errors import UserError
from config.schema import MaskingConfig
from models.masking import (
    MASK_SCHEDULES,
    draw_token_mask,
    gamma,
    token_loss,
    token_mask_from_holes,
)

from .reference_decode import CLOSED_FORMS

CODES = 16


def test_every_schedule_has_its_closed_form_here():
    assert set(CLOSED_FORMS) == set(MASK_SCHEDULES)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_schedules_start_at_exactly_one_and_end_at_exactly_zero(name):
    assert gamma(name, 0.0).item() == 1.0
    assert gamma(name, 1.0).item() == 0.0
    single = gamma(name, torch.tensor([0.0, 1.0]))
    assert single.tolist() == [1.0, 0.0]
    assert single.dtype == torch.float32


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_schedules_equal_their_closed_form_in_double_precision(name):
    for r in (0.001, 0.1, 0.25, 1 / 3, 0.5, 0.75, 0.999):
        assert gamma(name, r).dtype == torch.float64
        assert gamma(name, r).item() == pytest.approx(CLOSED_FORMS[name](r), abs=1e-15)


@pytest.mark.parametrize(
    ("name", "half"),
    [
        ("linear", 0.5),
        ("cosine", 0.5),
        ("square", 0.75),
        ("maskgit_cosine", sqrt(0.5)),
        ("sqrt", 1 - sqrt(0.5)),
        ("constant", 1),
    ],
)
def test_schedules_at_one_half(name, half):
    assert gamma(name, 0.5).item() == pytest.approx(half, abs=1e-15)


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_schedules_fall_all_the_way_and_keep_the_shape(name):
    r = torch.linspace(0, 1, 1001, dtype=torch.float64)
    values = gamma(name, r)
    falls = values.diff() if name != "constant" else values.diff()[-1:]  # at the end alone
    assert (falls < 0).all()
    assert gamma(name, r.view(7, 11, 13)).shape == (7, 11, 13)


def test_an_unknown_schedule_lists_the_known_ones_and_the_nearest():
    with pytest.raises(UserError) as error:
        gamma("cosin", 0.5)
    message = str(error.value)
    assert message.startswith("mask schedule: 'cosin'")
    assert ", ".join(sorted(CLOSED_FORMS)) in message
    assert "did you mean 'cosine'?" in message


def test_one_hole_pixel_anywhere_hides_its_token_and_no_other():
    for row in range(8):
        for column in range(8):
            holes = torch.zeros(1, 8, 8, dtype=torch.bool)
            holes[0, row, column] = True
            hidden = token_mask_from_holes(holes, grid=2).view(2, 2)
            assert hidden.nonzero().tolist() == [[row // 4, column // 4]]


def test_token_masks_are_true_where_hidden_row_by_row():
    picture = """
        #.......
        ........
        .....#..
        ......##
        ..##....
        ..##....
        ........
        .......#
    """
    rows = [[pixel == "#" for pixel in line] for line in picture.split()]
    # 2 x 2 pixels a token: 4 x 4 tokens
    assert token_mask_from_holes(torch.tensor([rows]), grid=4).int().view(4, 4).tolist() == [
        [1, 0, 0, 0],
        [0, 0, 1, 1],
        [0, 1, 0, 0],
        [0, 0, 0, 1],
    ]


def test_images_of_a_batch_keep_their_own_masks():
    holes = torch.zeros(3, 64, 64, dtype=torch.bool)
    holes[1] = True
    holes[2, 63, 0] = True
    hidden = token_mask_from_holes(holes, grid=16)
    assert hidden.shape == (3, 256)
    assert hidden.dtype == torch.bool
    assert hidden.sum(1).tolist() == [0, 256, 1]
    assert hidden[2, 240]


def shares(ratio: str, per: str, generator: torch.Generator, schedule: str = "square"):
    """Share hidden of each image in 400 draws of 4 images with 2,000 tokens, (400, 4)."""
    masking = MaskingConfig(ratio=ratio, ratio_per=per, mask_schedule=schedule)
    draws = [draw_token_mask(4, 2000, masking, generator) for _ in range(400)]
    return torch.stack(draws).double().mean(2)


def test_one_ratio_a_batch_hides_the_same_share_of_every_image(generator):
    share = shares("uniform", "batch", generator)
    assert share.std(1).max() < 0.04  # sqrt(p (1 - p) / 2000) <= 0.0112
    assert share.mean(1).std() == pytest.approx(sqrt(1 / 12), abs=0.03)


def test_one_ratio_a_sample_hides_shares_that_do_not_follow_each_other(generator):
    share = shares("uniform", "sample", generator)
    correlation = torch.corrcoef(share.T) - torch.eye(4)
    assert correlation.abs().max() < 0.2  # 4 / sqrt(400)


def test_uniform_ratios_have_the_moments_of_the_uniform_distribution(generator):
    share = shares("uniform", "sample", generator)
    assert share.mean() == pytest.approx(1 / 2, abs=0.03)
    assert share.square().mean() == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize(
    ("schedule", "mean"),
    [("linear", 1 / 2), ("cosine", 1 / 2), ("square", 2 / 3), ("maskgit_cosine", 2 / pi)],
)
def test_scheduled_ratios_have_the_integral_of_gamma_as_their_mean(generator, schedule, mean):
    share = shares("schedule", "sample", generator, schedule)
    assert share.mean() == pytest.approx(mean, abs=0.03)


def test_within_an_image_tokens_are_hidden_independently_of_their_place(generator):
    masking = MaskingConfig(ratio_per="sample")
    hidden = draw_token_mask(20_000, 8, masking, generator).double()
    assert (hidden.mean(0) - 0.5).abs().max() < 0.02
    # given p, places are independent: P(both) = E[p^2] = 1/3
    both = (hidden[:, 0] * hidden[:, 7]).mean()
    assert both == pytest.approx(1 / 3, abs=0.02)


def test_the_generator_alone_decides_the_mask():
    masking = MaskingConfig()
    first, second, other = (
        draw_token_mask(2, 64, masking, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


# The loss


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
        monkeypatch.setattr(models.masking, "_hidden_alone_is_cheaper", lambda _, yes=may_pick: yes)
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
        assert loss.item() == pytest.approx(log(CODES + 1))
