"""The scorer used from within: its arithmetic is that of the scorer's own script."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fid.extraction import extract_statistics
from fid.inputs import open_images

from models import parallel
from utils.io.images import save_png
from utils.scoring import BACKENDS, DEFAULT, FeatureDistance

CPU, CUDNN, MATMUL = torch.device("cpu"), torch.backends.cudnn, torch.backends.cuda.matmul


def arithmetic() -> tuple[bool, ...]:
    """May convolutions and products use TF32; are kernels timed; are they deterministic."""
    return CUDNN.allow_tf32, MATMUL.allow_tf32, CUDNN.benchmark, CUDNN.deterministic


class Witness(torch.nn.Module):
    """Mean colours (B, 3); keeps the arithmetic that they were asked for in."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, ...]] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(arithmetic())
        return images.mean((2, 3))


@pytest.fixture
def fast_and_loose() -> Iterator[None]:
    """The arithmetic of a process that trains."""
    before, MATMUL.allow_tf32 = MATMUL.allow_tf32, True
    with CUDNN.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
        yield
    MATMUL.allow_tf32 = before


@pytest.mark.usefixtures("fast_and_loose")
def test_features_are_float32_all_through_wherever_they_are_made(monkeypatch, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    for number, one in enumerate(pixels):
        save_png(tmp_path / f"{number}.png", one)
    network, before = Witness(), arithmetic()
    backend = SimpleNamespace(
        name="colour", distance="", dims=3, network=network, prepare=torch.Tensor.float
    )
    monkeypatch.setitem(BACKENDS, DEFAULT.features, lambda options: backend)
    distance = FeatureDistance(torch.from_numpy(pixels), CPU)
    extract_statistics(backend, open_images(tmp_path), range(3), CPU, 3, 0, keep_features=True)
    assert distance(torch.from_numpy(pixels)) == pytest.approx(0, abs=1e-6)
    assert {*network.seen} == {(False, False, False, True)}
    assert arithmetic() == before == (True, True, True, False)


def test_no_feature_depends_on_the_number_of_workers(monkeypatch):
    pixels = torch.randint(256, (19, 8, 8, 3), dtype=torch.uint8)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1))
    backend = SimpleNamespace(
        dims=5,
        distance="",
        network=torch.nn.Sequential(network, torch.nn.Flatten()),
        prepare=lambda pixels: pixels.float(),
    )
    monkeypatch.setitem(BACKENDS, DEFAULT.features, lambda _: backend)
    features = []
    for count in (1, 2, 3):
        monkeypatch.setattr(parallel, "workers", lambda count=count: count)
        features.append(FeatureDistance(pixels, CPU).targets.features())
    assert torch.equal(features[0], features[1])
    assert torch.equal(features[0], features[2])
