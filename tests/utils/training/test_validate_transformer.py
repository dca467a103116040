"""Validation gives the same numbers each time, those of a plain computation, and pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.noise import uniform
from utils.data.pairs import list_images
from utils.io.images import load_rgb
from utils.training import validate_transformer
from utils.training.validate_transformer import MASK_RATIOS, MASK_SEED, val_repairs, validate

CPU = torch.device("cpu")
GAP = 2  # pixels between pictures


@pytest.fixture
def val() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 16, (7, 2, 16)).astype(np.uint16)


def plain(transformer, val: np.ndarray) -> dict[str, float]:
    """Loss and accuracy over the hidden tokens of all images, image by image."""
    numbers, losses, accuracies = {}, [], []
    for index, ratio in enumerate(MASK_RATIOS):
        loss, hits, count = 0.0, 0, 0
        for image, token_ids in enumerate(torch.from_numpy(val[:, 0].astype(np.int64))):
            noise = uniform(MASK_SEED, torch.tensor([image]), index, 0, 16)[0]
            hidden = noise < max(ratio, noise.min().nextafter(noise.max()))  # one at least
            masked = torch.where(hidden, torch.tensor(16), token_ids)
            logits = transformer(masked[None])[0, hidden]
            loss += F.cross_entropy(logits, token_ids[hidden], reduction="sum").item()
            hits += int((logits.argmax(1) == token_ids[hidden]).sum())
            count += int(hidden.sum())
        losses.append(loss / count)
        accuracies.append(hits / count)
        numbers |= {f"val_loss_{ratio}": losses[-1], f"val_accuracy_{ratio}": accuracies[-1]}
    mean_loss, mean_accuracy = (sum(v) / len(v) for v in (losses, accuracies))
    return {"val_loss": mean_loss, "val_accuracy": mean_accuracy, **numbers}


@torch.no_grad()
def test_the_numbers_are_those_of_a_plain_computation(transformer, val):
    found = validate(transformer, val, CPU, torch.float32)
    assert found == pytest.approx(plain(transformer, val), rel=1e-5)


def test_every_call_gives_the_same_numbers_whatever_was_drawn_before(transformer, val):
    first = validate(transformer, val, CPU, torch.float32)
    torch.manual_seed(123)
    torch.rand(10)
    assert validate(transformer, val, CPU, torch.float32) == first


@pytest.mark.parametrize("size", [1, 3, 7])
def test_the_batch_size_changes_nothing_and_no_batch_is_dropped(
    transformer, val, monkeypatch, size
):
    whole = validate(transformer, val, CPU, torch.float32)
    monkeypatch.setattr(validate_transformer, "BATCH", size)
    assert validate(transformer, val, CPU, torch.float32) == pytest.approx(whole, rel=1e-5)


def test_dropout_is_off_and_no_weight_gets_a_gradient(transformer, val):
    transformer.drop.p = 0.9
    transformer.train()
    first = validate(transformer, val, CPU, torch.float32)
    assert validate(transformer, val, CPU, torch.float32) == first
    assert all(weight.grad is None for weight in transformer.parameters())


def test_an_undecided_network_has_the_loss_of_a_uniform_guess(transformer, val):
    for weight in transformer.parameters():
        torch.nn.init.zeros_(weight)
    found = validate(transformer, val, CPU, torch.float32)
    assert found["val_loss"] == pytest.approx(math.log(17))


def test_a_network_that_knows_has_no_loss_and_full_accuracy(transformer):
    val = np.full((3, 2, 16), 5, np.uint16)
    for weight in transformer.parameters():
        torch.nn.init.zeros_(weight)
    with torch.no_grad():
        transformer.bias[:, 5] = 100.0
    found = validate(transformer, val, CPU, torch.float32)
    assert found["val_loss"] == pytest.approx(0, abs=1e-6)
    assert found["val_accuracy"] == 1


def test_the_mirror_images_are_left_out(transformer, val):
    other = val.copy()
    other[:, 1] = 3
    numbers = [validate(transformer, rows, CPU, torch.float32) for rows in (val, other)]
    assert numbers[0] == numbers[1]


class Blind(torch.nn.Module):
    """Stands in for a transformer; keeps the masks that it is given."""

    mask_token_id = 16

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[torch.Tensor] = []

    def forward(
        self, _masked_ids: torch.Tensor, token_mask: torch.Tensor, _known: None
    ) -> torch.Tensor:
        self.masks.append(token_mask)
        return torch.zeros(int(token_mask.sum()), 17)


@pytest.mark.parametrize("grid", [1, 2, 4])
def test_an_image_hides_a_token_however_small_its_grid_and_the_set_are(grid):
    blind = Blind()
    found = validate(blind, np.zeros((1, 2, grid * grid), np.uint16), CPU, torch.float32)
    assert [bool(mask.any(1).all()) for mask in blind.masks] == [True] * len(MASK_RATIOS)
    assert all(math.isfinite(number) for number in found.values())


@pytest.mark.parametrize(("tokens", "images"), [(16, 64), (256, 64), (1024, 16), (65536, 1)])
def test_a_batch_has_no_more_tokens_than_training_has_memory_for(tokens, images):
    blind = Blind()
    validate(blind, np.zeros((65, 2, tokens), np.uint16), CPU, torch.float32)
    assert max(len(mask) for mask in blind.masks) == images


def test_masks_of_a_usual_grid_are_those_below_the_ratio_alone():
    blind, images, tokens = Blind(), 747, 256
    validate(blind, np.zeros((images, 2, tokens), np.uint16), CPU, torch.float32)
    for index, ratio in enumerate(MASK_RATIOS):
        noise = uniform(MASK_SEED, torch.arange(images), index, 0, tokens)
        made = torch.cat(blind.masks[index :: len(MASK_RATIOS)])
        assert torch.equal(made, noise < ratio)


# Pictures


def rows_of(picture: torch.Tensor, count: int) -> list[list[np.ndarray]]:
    """The three rows of images of 16 x 16 pixels."""
    step = 16 + GAP
    return [
        [picture[GAP + r * step :, GAP + c * step :][:16, :16].numpy() for c in range(count)]
        for r in range(3)
    ]


def test_the_rows_are_masked_repaired_and_true_val_images(weights, changed):
    config = changed(weights, {"decoding.composite": "hard"})
    picture = val_repairs(config)
    assert picture.dtype == torch.uint8
    masked, repaired, truth = rows_of(picture, 6)
    paths = list_images(config.data.folder("val"))
    for place, path in enumerate(paths):
        assert np.array_equal(truth[place], np.asarray(load_rgb(path)))
        hole = (masked[place] == 128).all(-1)
        assert 0.1 < hole.mean() < 0.4
        assert np.array_equal(masked[place][~hole], truth[place][~hole])
        assert np.array_equal(repaired[place][~hole], truth[place][~hole])
        assert not np.array_equal(repaired[place][hole], masked[place][hole])


def test_the_same_images_and_holes_are_shown_each_time_whatever_the_seed(weights, changed):
    first, again = (val_repairs(changed(weights, {"seed": seed})) for seed in (0, 1))
    for row in (0, 2):
        assert all(map(np.array_equal, rows_of(first, 6)[row], rows_of(again, 6)[row]))


def test_images_are_spread_over_the_folder(weights, monkeypatch):
    monkeypatch.setattr(validate_transformer, "SHOWN", 2)
    truth = rows_of(val_repairs(weights), 2)[2]
    paths = list_images(weights.data.folder("val"))
    for place, path in enumerate((paths[0], paths[-1])):
        assert np.array_equal(truth[place], np.asarray(load_rgb(path)))
