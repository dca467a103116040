"""A small inpainting job, and what repairs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import utils.io.files
from config.schema import Config
from utils.data.datasets import InpaintingSet
from utils.inpainting.job import inpaint_set
from utils.io.images import encode_png

SIDE, COUNT = 16, 5


def write(path: Path, content: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(content))


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A prepared folder of 5 images with holes of 0, 1, 2, 4 and all 16 tokens, and their truth."""
    rng, folder = np.random.default_rng(1), tmp_path / "job"
    for index in range(COUNT):
        truth = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        mask = np.full((SIDE, SIDE), 255, np.uint8)
        if index:
            edge = {1: (3, 3), 2: (2, 7), 3: (8, 8), 4: (16, 16)}[index]
            mask[: edge[0], : edge[1]] = 0
        masked = np.where(mask[..., None] == 0, np.uint8(128), truth)
        for part, content in (("test/image", truth), ("masked_image/image", masked)):
            write(folder / f"{part}_{index:03d}.png", content)
        write(folder / f"mask64/mask_{index:03d}.png", mask)
    return folder


@pytest.fixture
def repair(weights: Config, job: Path, tmp_path: Path, changed, monkeypatch) -> Callable[..., Path]:
    """Repair the job with some keys changed; returns the output folder, a new one if not given."""
    monkeypatch.setattr(utils.io.files.os, "fsync", lambda number: None)

    def run(
        values: dict[str, Any] | None = None,
        source: InpaintingSet | None = None,
        output: Path | None = None,
        **switches: bool,
    ) -> Path:
        output = output or tmp_path / f"output_{len(list(tmp_path.iterdir()))}"
        config = changed(weights, values or {})
        inpaint_set(config, source or InpaintingSet(job), output, **switches)
        return output

    return run
