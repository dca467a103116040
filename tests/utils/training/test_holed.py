"""Images with holes as training and validation see them: filled, encoded, never the same twice."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from config.errors import UserError
from models.masking import token_mask_from_holes
from utils.data import holes as hole_module
from utils.data.augment import MIRRORED, Views, load_images
from utils.data.datasets import normalise
from utils.data.fill import fill_hole
from utils.data.holes import TRAINING_SHARE, begin_filling, draw_holes
from utils.training.holed import HoledImages, validation_views
from utils.training.token_batches import TokenBatches, Tokens

CPU = torch.device("cpu")
PIXELS = {"transformer.conditioning": "pixels", "data.hole_kind": "box", "data.views": 4}


@pytest.fixture
def seeing(config, changed):
    return changed(config, {**PIXELS, "masking.hole_share": 0.5, "masking.ratio_per": "sample"})


@pytest.fixture
def holed(seeing, tokenizer) -> HoledImages:
    images = load_images(seeing.data.folder("train"), seeing.data.image_size)
    return HoledImages(images, 4, tokenizer, seeing, CPU)


@pytest.fixture
def batches(holed, seeing, tokenizer) -> TokenBatches:
    """Batches of the eleven images, whose cached tokens are the tokenizer's own."""
    data = seeing.data
    views = [holed.views.of(slice(0, 11), view, CPU) for view in range(4)]
    rows = [tokenizer.encode(normalise(view, data.mean, data.std)) for view in views]
    tokens = torch.stack(rows, dim=1).numpy().astype(np.uint16)
    known = Tokens(tokens, tokens[:1], torch.zeros(1, 1), "", holed)
    return TokenBatches(known, seeing, CPU)


def test_any_views_of_any_images_can_be_picked(holed):
    image_ids, views = torch.tensor([3, 3, 0, 7, 1]), torch.tensor([0, 1, 3, 2, 3])
    picked = holed.views.pick(image_ids, views)
    for image, index, view in zip(picked, image_ids, views, strict=True):
        assert torch.equal(image, holed.views.of(slice(index, index + 1), int(view), CPU)[0])
    assert torch.equal(picked[0].flip(2), picked[1])
    holed.views.keep(CPU)  # as for a GPU
    assert torch.equal(holed.views.pick(image_ids, views), picked)


def test_an_image_with_a_hole_is_filled_and_encoded_as_in_inpainting(holed, seeing, tokenizer):
    image_ids = torch.arange(4)
    drawn = torch.tensor([True, True, True, False])
    given = torch.zeros(4, 16, 16, dtype=torch.bool)
    given[3, 2:9, 1:5] = True
    holes = torch.from_numpy(draw_holes("box", range(4), 16, 7))
    holes[3] = given[3]
    seen = holed.see(image_ids, torch.full((4,), MIRRORED), drawn, 7, given)()
    for place in range(4):
        image = holed.views.images[place].flip(2).permute(1, 2, 0).numpy()
        filled = fill_hole(image, holes[place].numpy(), seeing.decoding.hole_fill)
        pixels = normalise(filled[None], seeing.data.mean, seeing.data.std)
        assert torch.equal(seen.token_ids[[place]], tokenizer.encode(pixels))
        assert torch.equal(seen.known[place, 0, :48], pixels[0, :, :4, :4].flatten())
    assert torch.equal(seen.hidden, token_mask_from_holes(holes, 4))


def test_holes_of_whole_patches_hide_the_tokens_they_are_made_of(holed):
    token_mask = torch.rand(3, 16) < 0.5
    holes = holed.of_patches(token_mask)
    assert torch.equal(token_mask_from_holes(holes, 4), token_mask)
    assert holes.sum() == 16 * token_mask.sum()


def test_holes_have_the_shares_of_training_and_follow_the_seed():
    holes = draw_holes("mix", range(11), 32, 1)
    shares = holes.mean((1, 2))
    assert (shares > TRAINING_SHARE[0] - 0.05).all()
    assert (shares < TRAINING_SHARE[1] + 0.05).all()
    assert (holes[[4, 2]] == draw_holes("mix", [4, 2], 32, 1)).all()
    assert (holes != draw_holes("mix", range(11), 32, 2)).any()


def test_processes_fill_holes_as_one_does():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (19, 16, 16, 3), dtype=np.uint8)
    holes, image_ids = rng.random((19, 16, 16)) < 0.3, np.arange(19) - 4
    how = "mix", "mean", 5
    for given in (holes, np.zeros_like(holes)):
        expected, found = (
            begin_filling(images, given, image_ids, how, in_processes=gpu)()
            for gpu in (False, True)
        )
        assert all((a == b).all() for a, b in zip(expected, found, strict=True))
    assert not expected[1][:4].any()


def test_eight_processes_share_a_batch_of_stage_1(monkeypatch):
    class Pool:
        """Stands in for the processes."""

        def map(self, fill, *parts):
            tasks.extend(zip(*parts, strict=False))
            return [fill(*task) for task in tasks]

    tasks: list[tuple] = []
    monkeypatch.setattr(hole_module, "_pool", Pool)
    images, none = np.zeros((16, 8, 8, 3), np.uint8), np.zeros((16, 8, 8), bool)
    begin_filling(images, none, np.arange(16), ("box", "mean", 0), in_processes=True)()
    assert len(tasks) == 8


def test_an_idle_process_that_died_is_told_with_the_next_batch(monkeypatch):
    def broken(*_parts: object) -> None:
        raise BrokenProcessPool

    monkeypatch.setattr(hole_module, "_pool", lambda: SimpleNamespace(map=broken))
    images, none = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8), bool)
    with pytest.raises(UserError, match="a process that fills holes died"):
        begin_filling(images, none, np.arange(2), ("box", "mean", 0), in_processes=True)


def test_processes_of_torchrun_share_the_cores(monkeypatch):
    monkeypatch.setattr(hole_module.os, "sched_getaffinity", lambda _pid: range(9), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with hole_module._pool.__wrapped__() as pool:
        assert pool._max_workers == 9  # left over from an outer job
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "4" if name == "WORLD_SIZE" else "1")
    with hole_module._pool.__wrapped__() as pool:
        assert pool._max_workers == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "")
    with pytest.raises(UserError, match="has LOCAL_WORLD_SIZE=''; allowed are whole numbers"):
        hole_module._pool.__wrapped__()


def test_batches_that_are_begun_ahead_are_the_same(batches, monkeypatch):
    monkeypatch.setattr(batches, "device", CPU)
    groups = list(torch.arange(11).split(4))
    expected = [batches(ids, 2, number) for number, ids in enumerate(groups, 5)]
    found = list(batches.stream(groups, 2, 5))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_each_epoch_draws_new_holes_and_the_same_key_the_same(batches):
    image_ids = torch.arange(11)
    first, again, other = (batches(image_ids, epoch, 0) for epoch in (0, 0, 1))
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.known, other.known)
    assert not torch.equal(first.token_mask, other.token_mask)


def test_known_tokens_are_the_filled_images_and_targets_the_whole_ones(batches):
    image_ids = torch.arange(11)
    made = [batches(image_ids, 0, batch) for batch in range(20)]
    tokens, spoilt, revealed = batches.views.long(), 0, 0
    for batch in made:
        bits = batch.known[..., 48:64] > 0
        hidden = bits.any(-1)  # tokens with a pixel in the hole
        assert not (batch.token_mask & ~hidden).any()
        for row, targets in enumerate(batch.targets):
            assert any(torch.equal(targets, view) for view in tokens[row])
        assert torch.equal(batch.inputs[hidden], batch.targets[hidden])
        spoilt += (batch.inputs != batch.targets)[~hidden].sum()
        revealed += (hidden & ~batch.token_mask).sum()
    assert spoilt > 0  # holes change known tokens next to them
    assert revealed > 0  # images in the middle of decoding


def test_without_a_hole_share_images_miss_whole_patches_all_hidden(batches):
    batches.masking = batches.masking.model_copy(update={"hole_share": 0.0})
    made = batches(torch.arange(11), 0, 0)
    bits = made.known[..., 48:64]
    assert torch.equal(bits.amin(-1), bits.amax(-1))
    assert torch.equal(bits[..., 0] > 0, made.token_mask)


def test_the_share_of_images_with_a_drawn_hole_is_as_configured(batches):
    masking = {"hole_share": 0.25}
    batches.masking = batches.masking.model_copy(update=masking)
    bits = [batches(torch.arange(11), 0, number).known[..., 48:64] for number in range(60)]
    partly = torch.cat([(b.amin(-1) != b.amax(-1)).any(-1) for b in bits])  # boxes cut patches
    assert partly.double().mean() == pytest.approx(0.25, abs=0.08)


def test_validation_holes_are_the_same_for_every_run_and_number_of_images(seeing, tokenizer):
    images = load_images(seeing.data.folder("val"), seeing.data.image_size)
    whole, few = (
        validation_views(HoledImages(part, 2, tokenizer, seeing, CPU))
        for part in (images, images[:2])
    )
    assert len(whole.token_ids) == 6
    assert torch.equal(whole.hidden[:2], few.hidden)
    assert torch.equal(whole.token_ids[:2], few.token_ids)


def test_a_part_of_the_images_keeps_their_views(holed):
    rows = np.array([2, 9])
    part, ids = holed.part(rows), torch.arange(2)
    for view in range(4):
        picked = part.views.pick(ids, torch.full((2,), view))
        wanted = holed.views.pick(torch.from_numpy(rows), torch.full((2,), view))
        assert torch.equal(picked, wanted)


def test_views_of_nothing_are_nothing():
    none = Views(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), 2).pick(
        torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long)
    )
    assert none.shape == (0, 3, 8, 8)
