"""Lab solutions of two sizes, and a tree in which the scripts run as users run them."""

from __future__ import annotations

import runpy
import shlex
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

import utils.scoring  # noqa: F401  puts the scorer's folder on the path

sys.path.append(str(Path(__file__).parent))

from lab_reference import LabMaskGIT, LabTransformer, LabVQGAN, fill_randomly

ROOT = Path(__file__).parents[2]


class Said(NamedTuple):
    """What a command left with."""

    code: int
    out: str
    err: str


FULL = {
    "vqgan": ([128, 128, 128, 256, 256, 512], [128, 128, 256, 256, 512], 256, 1024),
    "transformer": (768, 16, 15, 1536, 256, 1024),
}
SMALL = {
    "vqgan": ([32, 32, 32, 32, 64, 64], [32, 32, 32, 64, 64], 16, 40),
    "transformer": (64, 16, 2, 96, 256, 40),
}


@pytest.fixture(scope="session")
def solution() -> Callable[..., LabMaskGIT]:
    """A filled lab solution: solution("separate"), solution("report", full=True)."""

    @cache
    def vqgan(full: bool) -> LabVQGAN:
        return fill_randomly(LabVQGAN(*(FULL if full else SMALL)["vqgan"]), 1)

    @cache
    def make(variant: str, full: bool = False) -> LabMaskGIT:
        sizes = (FULL if full else SMALL)["transformer"]
        return LabMaskGIT(vqgan(full), fill_randomly(LabTransformer(*sizes, variant), 2)).eval()

    return make


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Save tensors as a lab solution would: save(state, "VQGAN.pt") -> path."""

    def write(state: object, name: str) -> Path:
        torch.save(state, tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, low_resolution: None
) -> Callable[..., Said]:
    """Run a command line in this process and the present folder: call("python inpainting.py ...").

    `python -m module` and `python script.py` are understood. Returns exit code, stdout, stderr.
    """

    def run(command: str, *more: object) -> Said:
        python, *words = [*shlex.split(command), *map(str, more)]
        assert python == "python", command
        name, *arguments = words[1:] if words[0] == "-m" else words
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        start, target = runpy.run_path, str(ROOT / name)
        if words[0] == "-m":
            start, target = runpy.run_module, name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # other tests imported the module
            with pytest.raises(SystemExit) as left:
                start(target, run_name="__main__")
        said = capsys.readouterr()
        return Said(left.value.code or 0, said.out, said.err)

    return run


def cat_pictures(count: int) -> list[np.ndarray]:
    """Crops of the cat that scikit-image carries, uint8 (64, 64, 3)."""
    picture = skimage.data.chelsea()[:256, 60:316].reshape(64, 4, 64, 4, 3).mean((1, 3))
    return [np.roll(picture, 4 * i, axis=1).round().astype(np.uint8) for i in range(count)]


@pytest.fixture
def lab_data(tmp_path: Path) -> Callable[..., Path]:
    """The lab's layout with so many pictures: lab_data(2) -> folder cat_face."""

    def make(count: int, suffix: str = "png", truth: str = "csv") -> Path:
        root, rows = tmp_path / "cat_face", []
        for index, picture in enumerate(cat_pictures(count)):
            mask = np.full((64, 64), 255, np.uint8)
            mask[20:40, 8 * index : 8 * index + 17] = 0
            masked = np.where(mask[..., None] == 0, np.uint8(128), picture)
            files = {
                f"train/image_{index:05d}.{suffix}": picture,
                f"val/image_{index:05d}.{suffix}": picture,
                f"masked_image/image_{index:03d}.{suffix}": masked,
                f"mask64/mask_{index:03d}.png": mask,
            }
            if truth == "folder":
                files[f"test/image_{index:03d}.png"] = picture
            for name, pixels in files.items():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / name)
            rows.append(",".join(map(str, picture.ravel())))
        if truth == "csv":
            header = ",".join(map(str, range(64 * 64 * 3)))
            (root / "test_gt.csv").write_text("\n".join([header, *rows]) + "\n")
        return root

    return make
