"""Seeded weights and the folders that inpainting leaves behind."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_fid.fid_score
import scipy.linalg
import torch
from fid_test_images import SIDE, draw_images, write_folder

from bench.fid import random_inception

FOLDER = Path(__file__).resolve().parents[2] / "faster-pytorch-fid"


@pytest.fixture(scope="session")
def fid_folder() -> Path:
    return FOLDER


@pytest.fixture(autouse=True)
def _own_caches(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's caches."""
    folder = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("TORCH_HOME", str(folder / "torch"))


@pytest.fixture(scope="session")
def inception_state() -> dict[str, torch.Tensor]:
    return random_inception()


@pytest.fixture(scope="session")
def stem_weights(inception_state, tmp_path_factory) -> Path:
    """A weight file with the layers that 64 and 192 dims need: small, so that tests are quick."""
    path = tmp_path_factory.mktemp("weights") / "stem.pth"
    stem = {k: v for k, v in inception_state.items() if k.startswith("Conv2d")}
    torch.save(stem | {"fc.weight": torch.zeros(()).expand(1008, 2048)}, path)  # which is not used
    return path


@pytest.fixture
def lab(tmp_path) -> Path:
    """What inpainting leaves: test_results with its manifest, beside the truth and the masks."""
    truth, results = draw_images(8, seed=1), []
    mask = np.full((SIDE, SIDE), 255, np.uint8)
    mask[4:10, 4:12] = 0
    for pixels in truth:
        result = pixels.copy()
        result[mask == 0] = result[mask == 0] // 2
        results.append(result)
    write_folder(tmp_path / "truth", truth)
    write_folder(tmp_path / "masks", [mask] * 8, "mask")
    write_folder(tmp_path / "test_results", results)
    entries = [
        {
            "image": f"image_{i:03d}.png",
            "ground_truth": f"image_{i:03d}.png",
            "mask": f"mask_{i:03d}.png",
        }
        for i in range(8)
    ]
    manifest = {"ground_truth": "../truth", "masks": "../masks", "images": entries}
    (tmp_path / "test_results" / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


@pytest.fixture(autouse=True)
def _pytorch_fid_with_any_scipy(monkeypatch):
    """pytorch-fid 0.3.0 asks sqrtm for (root, error), which SciPy 1.18 no longer gives."""

    def sqrtm(matrix: np.ndarray, disp: bool = True) -> np.ndarray | tuple[np.ndarray, float]:
        root = scipy.linalg.sqrtm(matrix)
        return root if disp else (root, 0.0)

    monkeypatch.setattr(pytorch_fid.fid_score, "linalg", SimpleNamespace(sqrtm=sqrtm))
