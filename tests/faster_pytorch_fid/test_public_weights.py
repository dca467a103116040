"""Figures that others published; those of the public FID weights are skipped where none are kept.

The figures were made with torch-fidelity's reading of an image (TensorFlow's resize, then
(x - 128) / 128), so here our network sees just that.
"""

from pathlib import Path

import pytest
import torch
from fid.features import FID_WEIGHTS_URL, BackendOptions, inception
from fid.inception import build_inception
from fid.metrics import frechet_distance, kernel_distance
from fid.statistics import FeatureStatistics
from fid_test_images import draw_images
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

WEIGHTS = Path(torch.hub.get_dir()) / "checkpoints" / FID_WEIGHTS_URL.rpartition("/")[2]
CIFAR = Path(torch.hub.get_dir()).parent / "fidelity_datasets"  # where torch-fidelity keeps it
needs_weights = pytest.mark.skipif(
    not WEIGHTS.is_file(), reason=f"needs the public FID weights, {WEIGHTS.name}, in torch hub"
)
needs_cifar = pytest.mark.skipif(
    not (CIFAR / "cifar-10-batches-py").is_dir(), reason="needs CIFAR-10 in torch-fidelity's folder"
)


@torch.inference_mode()
def features(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """(n, 3, H, W) uint8 -> (n, d) float64."""

    def prepared(part: torch.Tensor) -> torch.Tensor:
        resized = interpolate_bilinear_2d_like_tensorflow1x(
            part.float(), size=(299, 299), align_corners=False
        )
        return (resized - 128) / 128

    return torch.cat([network(prepared(part)) for part in images.split(10)]).double()


def torchmetrics_images(dims: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The two sets of torchmetrics' docstrings: their network takes numbers of the seed first."""
    torch.manual_seed(123)
    FeatureExtractorInceptionV3("inception-v3-compat", [str(dims)], str(WEIGHTS))
    return tuple(
        torch.randint(low, high, (100, 3, 299, 299), dtype=torch.uint8)
        for low, high in ((0, 200), (100, 255))
    )


def public(dims: int) -> torch.nn.Module:
    return inception(BackendOptions(dims, str(WEIGHTS))).network


def distance(first: torch.Tensor, second: torch.Tensor) -> float:
    return frechet_distance(FeatureStatistics.of(first), FeatureStatistics.of(second))[0]


def test_our_network_gives_torch_fidelitys_features_of_its_input(inception_state, tmp_path):
    torch.save(inception_state, tmp_path / "w.pth")
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["64"], str(tmp_path / "w.pth"))
    images = torch.stack([torch.tensor(p) for p in draw_images(2, 3, 32)]).permute(0, 3, 1, 2)
    ours = features(build_inception(64, inception_state, "w.pth"), images)
    torch.testing.assert_close(ours.float(), theirs(images)[0], rtol=1e-4, atol=1e-4)


@needs_weights
def test_the_distance_of_torchmetrics_docstring():
    network = public(64)
    found = distance(*(features(network, images) for images in torchmetrics_images(64)))
    assert found == pytest.approx(12.7202, abs=2e-3)


@needs_weights
def test_the_kernel_distance_of_torchmetrics_docstring():
    # its subsets are other ones, so the deviation over subsets bounds how far the mean may be
    network = public(2048)
    sets = (features(network, images) for images in torchmetrics_images(2048))
    mean, deviation = kernel_distance(*sets, subset_size=50, seed=0)
    assert mean == pytest.approx(0.0337, abs=0.0023)
    assert deviation == pytest.approx(0.0023, abs=0.001)


@needs_weights
@needs_cifar
def test_the_distance_of_torch_fidelitys_5000_training_and_5000_test_images():
    from torchvision.datasets import CIFAR10

    network = public(2048)
    found = distance(
        *(
            features(
                network,
                torch.from_numpy(CIFAR10(CIFAR, train=train).data[:5000]).permute(0, 3, 1, 2),
            )
            for train in (True, False)
        )
    )
    assert found == pytest.approx(10.3233274, abs=1e-2)
