"""Batches of tokens: which view, which mask, what stands at known places; all from the key."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from config.schema import Config
from models.masking import draw_token_mask
from utils.training import token_batches
from utils.training.token_batches import TokenBatch, TokenBatches, Tokens

CPU = torch.device("cpu")
IMAGES, VIEWS, TOKENS = 5, 3, 16
CLEAN = 1000  # code numbers tell where they come from


def code(base: int, image: Tensor, kind: Tensor, place: Tensor) -> Tensor:
    """A token that names its image, view or variant, and place."""
    return base + 100 * image + 20 * kind + place


@pytest.fixture
def views() -> np.ndarray:
    """(5, 3, 16) clean tokens that name their origin."""
    grid = torch.meshgrid(*map(torch.arange, (IMAGES, VIEWS, TOKENS)), indexing="ij")
    return code(CLEAN, *grid).numpy().astype(np.uint16)


def batches(views, mirror=True, seed=0, device=CPU, **masking) -> TokenBatches:
    settings = {"seed": seed, "masking": {"ratio_per": "sample", **masking}}
    config = Config.model_validate({**settings, "training": {"mirror": mirror}})
    return TokenBatches(Tokens(views, views[:1], torch.zeros(1, 1), ""), config, device)


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


def test_without_mirror_images_only_the_images_themselves_are_shown(views):
    assert (view_of(many(batches(views, mirror=False), 20).targets) == 0).all()


def test_codes_above_32767_keep_their_number(views):
    high = np.full_like(views, 65535)
    assert (batches(high)(torch.arange(3), 0, 0).targets == 65535).all()


def test_the_key_alone_decides_a_batch(views):
    made, again = (batches(views) for _ in range(2))
    images = torch.arange(IMAGES)
    again(images, 7, 7)  # whatever was drawn before
    first, second = made(images, 3, 4), again(images, 3, 4)
    assert all(torch.equal(a, b) for a, b in zip(first[:3], second[:3], strict=True))
    others = [made(images, 3, 5), made(images, 4, 4)]
    others.append(batches(views, seed=1)(images, 3, 4))
    assert not any(torch.equal(first.token_mask, other.token_mask) for other in others)


def test_rows_of_a_batch_are_cut_from_all_of_its_tensors(views):
    whole = batches(views)(torch.arange(IMAGES), 0, 1)
    for part, numbers in ((slice(1, 3), [1, 2]), (slice(1, None, 2), [1, 3])):
        for cut, tensor in zip(whole.rows(part)[:3], whole[:3], strict=True):
            assert torch.equal(cut, tensor[numbers])


def test_drawing_leaves_the_global_generator_alone(views):
    before = torch.get_rng_state()
    batches(views)(torch.arange(IMAGES), 0, 0)
    assert torch.equal(torch.get_rng_state(), before)


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
    meta = torch.device("meta")
    monkeypatch.setattr(token_batches, "MAX_RESIDENT_BYTES", views.nbytes - 1)
    made = batches(views, device=meta)
    assert made.home == CPU
    targets, inputs, token_mask, _ = made(torch.arange(IMAGES), 0, 0)
    assert {tensor.device for tensor in (targets, inputs, token_mask)} == {meta}
    assert inputs is targets, "what is the same is sent once"


def test_masks_are_drawn_as_the_masking_says(views):
    made = batches(views, ratio="schedule")
    made.mirror = False  # so that the mask is drawn first
    stream = token_batches.generator_for(0, 2, 3, token_batches.MASK_STREAM)
    expected = draw_token_mask(IMAGES, TOKENS, made.masking, stream)
    assert torch.equal(made(torch.arange(IMAGES), 2, 3).token_mask, expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_draws_without_waiting_and_the_same_each_time(views):
    made = batches(views, device=torch.device("cuda"))
    images = torch.arange(IMAGES)
    first = made(images, 0, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = made(images, 0, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))
    assert first.targets.is_cuda
