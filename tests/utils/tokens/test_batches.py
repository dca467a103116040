"""Batches of tokens: which view, which mask, what stands at known places; all from the key."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from config.schema import MaskingConfig
from models.masking import draw_token_mask
from utils.tokens import batches as token_batches
from utils.tokens.batches import TokenBatch, TokenBatches
from utils.tokens.cache import HIDDEN_BIT

CPU = torch.device("cpu")
IMAGES, VIEWS, VARIANTS, TOKENS = 5, 3, 4, 16
CLEAN, SPOILT = 1000, 2000  # code numbers tell where they come from


def code(base: int, image: Tensor, kind: Tensor, place: Tensor) -> Tensor:
    """A token that names its image, view or variant, and place."""
    return base + 100 * image + 20 * kind + place


@pytest.fixture
def views() -> np.ndarray:
    """(5, 3, 16) clean tokens that name their origin."""
    grid = torch.meshgrid(*map(torch.arange, (IMAGES, VIEWS, TOKENS)), indexing="ij")
    return code(CLEAN, *grid).numpy().astype(np.uint16)


@pytest.fixture
def holes() -> np.ndarray:
    """(5, 4, 16) tokens beside holes; variant j hides places j to j + 7."""
    grid = torch.meshgrid(*map(torch.arange, (IMAGES, VARIANTS, TOKENS)), indexing="ij")
    rows = code(SPOILT, *grid).numpy().astype(np.uint16)
    for variant in range(VARIANTS):
        rows[:, variant, variant : variant + 8] |= HIDDEN_BIT
    return rows


def batches(views, holes=None, mirror=True, seed=0, **masking) -> TokenBatches:
    settings = MaskingConfig(**{"ratio_per": "sample", **masking})
    return TokenBatches(views, holes, settings, mirror=mirror, seed=seed, device=CPU)


def many(made: TokenBatches, count: int = 400) -> TokenBatch:
    """Many batches of the same five images, one after the other."""
    parts = [made(torch.arange(IMAGES), 0, batch) for batch in range(count)]
    return TokenBatch(*map(torch.cat, list(zip(*parts, strict=True))[:3]))


def view_of(targets: Tensor) -> Tensor:
    """Which view each row of clean tokens is, (B,)."""
    assert (targets // 1000 == 1).all()
    return targets[:, 0] % 100 // 20


def test_a_batch_holds_a_view_of_each_image_in_the_given_order(views):
    images = torch.tensor([4, 0, 2])
    targets, inputs, token_mask, _ = batches(views)(images, 0, 0)
    assert targets.dtype == inputs.dtype == torch.int64
    assert token_mask.dtype == torch.bool
    assert token_mask.shape == targets.shape == (3, TOKENS)
    for row, image, view in zip(targets, images, view_of(targets), strict=True):
        assert row.tolist() == views[image, view].tolist()
    assert torch.equal(inputs, targets)


def test_every_view_is_as_likely(views):
    counts = torch.bincount(view_of(many(batches(views)).targets), minlength=VIEWS)
    assert (counts / counts.sum() - 1 / 3).abs().max() < 0.04  # four deviations of 2,000 draws


def test_without_mirror_images_only_the_images_themselves_are_shown(views, holes):
    plain, both = views[:, :2], {"mirror": False, "hole_share": 0.5}
    assert (view_of(many(batches(plain, mirror=False), 20).targets) == 0).all()
    targets, inputs, _, _ = many(batches(plain, holes, **both), 100)
    assert (view_of(targets) == 0).all()
    spoilt = inputs[inputs >= SPOILT]
    assert set((spoilt % 100 // 20).tolist()) == {0, 2}, "variants 1 and 3 are of mirror images"


def test_codes_above_32767_keep_their_number(views):
    high = np.full_like(views, 65535)
    assert (batches(high)(torch.arange(3), 0, 0).targets == 65535).all()


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_key_alone_decides_a_batch(views, holes, share):
    made, again = (batches(views, holes, hole_share=share) for _ in range(2))
    images = torch.arange(IMAGES)
    again(images, 7, 7)  # whatever was drawn before
    first, second = made(images, 3, 4), again(images, 3, 4)
    assert all(torch.equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))
    others = [made(images, 3, 5), made(images, 4, 4)]
    others.append(batches(views, holes, seed=1, hole_share=share)(images, 3, 4))
    assert not any(torch.equal(first.token_mask, other.token_mask) for other in others)


def test_rows_of_a_batch_are_cut_from_all_of_its_tensors(views, holes):
    whole = batches(views, holes, hole_share=0.5)(torch.arange(IMAGES), 0, 1)
    for part, numbers in ((slice(1, 3), [1, 2]), (slice(1, None, 2), [1, 3])):
        for cut, tensor in zip(whole.rows(part)[:3], whole[:3], strict=True):
            assert torch.equal(cut, tensor[numbers])


def test_drawing_leaves_the_global_generator_alone(views, holes):
    before = torch.get_rng_state()
    batches(views, holes, hole_share=0.5)(torch.arange(IMAGES), 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


# Images with holes


def test_the_share_of_images_with_a_hole_is_as_configured(views, holes):
    for share in (0.25, 1.0):
        targets, inputs, _, _ = many(batches(views, holes, hole_share=share))
        found = (inputs != targets).any(1).double().mean()
        assert found == pytest.approx(share, abs=0.04)


def test_known_tokens_are_the_spoilt_ones_and_revealed_ones_the_clean(views, holes):
    targets, inputs, token_mask, _ = many(batches(views, holes, hole_share=1.0))
    image = torch.arange(IMAGES).repeat(400)
    spoilt = inputs >= SPOILT
    variant = (inputs * spoilt).amax(1) % 100 // 20
    place = torch.arange(TOKENS)
    hole = (place >= variant[:, None]) & (place < variant[:, None] + 8)
    assert torch.equal(spoilt, ~hole)
    expected = code(SPOILT, image[:, None], variant[:, None], place)
    assert torch.equal(inputs[~hole], expected[~hole])
    assert torch.equal(inputs[hole], targets[hole])
    assert not (token_mask & ~hole).any(), "what is known is never hidden"
    assert torch.equal(view_of(targets), variant % VIEWS), "clean tokens of the same view"


def test_a_share_of_the_hole_as_drawn_by_the_masking_stays_hidden(views, holes):
    _, _, some, _ = many(batches(views, holes, hole_share=1.0))
    share = some.sum(1).double() / 8
    assert share.mean() == pytest.approx(1 / 2, abs=0.04)
    # p ~ U(0, 1) and 8 draws with p: each number of hidden tokens from 0 to 8 is as likely
    counts = torch.bincount(some.sum(1), minlength=9) / len(some)
    assert (counts - 1 / 9).abs().max() < 0.04


def test_images_without_a_hole_keep_the_ordinary_masks(views, holes):
    targets, inputs, token_mask, _ = many(batches(views, holes, hole_share=0.5))
    ordinary = (inputs == targets).all(1)
    outside = token_mask[ordinary][:, 11:]  # where no variant has a hole
    assert outside.double().mean() == pytest.approx(1 / 2, abs=0.05)


def test_a_hole_share_without_variants_is_a_mistake(views):
    with pytest.raises(AssertionError, match="needs hole variants"):
        batches(views, hole_share=0.5)


# Where tokens lie


def test_a_mapped_file_is_read_in_place_without_complaint(views, tmp_path):
    np.save(tmp_path / "views.npy", views)
    mapped = np.load(tmp_path / "views.npy", mmap_mode="c")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = batches(mapped)
    assert made.views.data_ptr() == mapped.ctypes.data
    found = made(torch.arange(IMAGES), 0, 0)
    expected = batches(views)(torch.arange(IMAGES), 0, 0)
    assert all(torch.equal(a, b) for a, b in zip(found[:3], expected[:3], strict=True))


def test_tokens_stay_on_the_host_when_they_are_too_many_for_the_device(views, monkeypatch):
    masking, meta = MaskingConfig(), torch.device("meta")
    monkeypatch.setattr(token_batches, "MAX_RESIDENT_BYTES", views.nbytes - 1)
    made = TokenBatches(views, None, masking, mirror=True, seed=0, device=meta)
    assert made.home == CPU
    targets, inputs, token_mask, _ = made(torch.arange(IMAGES), 0, 0)
    assert {tensor.device for tensor in (targets, inputs, token_mask)} == {meta}
    assert inputs is targets, "what is the same is sent once"


def test_inputs_with_holes_are_sent_beside_their_targets(views, holes, monkeypatch):
    sent, plain = [], token_batches._moved
    monkeypatch.setattr(
        token_batches, "_moved", lambda tensor, to: sent.append(tensor) or plain(tensor, to)
    )
    for share, tensors in ((0.0, 1 + 2), (0.5, 1 + 3)):  # image numbers, then the batch
        sent.clear()
        made = batches(views, holes, hole_share=share)(torch.arange(IMAGES), 0, 0)
        assert len(sent) == tensors
        assert (made.inputs is made.targets) == (share == 0)


def test_masks_are_drawn_as_the_masking_says(views):
    made = batches(views, ratio="schedule")
    made.mirror = False  # so that the mask is drawn first
    stream = token_batches.generator_for(0, 2, 3, token_batches.MASK_STREAM)
    expected = draw_token_mask(IMAGES, TOKENS, made.masking, stream)
    assert torch.equal(made(torch.arange(IMAGES), 2, 3).token_mask, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_gpu_draws_without_waiting_and_the_same_each_time(views, holes, share):
    settings = MaskingConfig(ratio_per="sample", hole_share=share)
    gpu = torch.device("cuda")
    made = TokenBatches(views, holes, settings, mirror=True, seed=0, device=gpu)
    images = torch.arange(IMAGES)
    first = made(images, 0, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = made(images, 0, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))
    assert first.targets.is_cuda
