"""Score generated or repaired images.

`inputs` opens both image sets, `extraction` turns `images` into `statistics` of `features`,
`scoring` computes the metrics of `frechet`, `metrics` and `paired`, `certificate` records them.
"""

from __future__ import annotations

from fid.startup import leave_out_unreadable  # first: failed imports end in one line from now on

# isort: split
import re
import threading
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fid.process import end_thread, keep_warnings_harmless

leave_out_unreadable()  # before any module imports PyTorch and tqdm
keep_warnings_harmless()
threading.excepthook = end_thread

METRICS = ("fid", "kid", "prc", "density", "ids", "hole", "paired", "bootstrap")
MAX_BOOTSTRAP_SAMPLES = 100_000  # hours, not days
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


class Size(NamedTuple):
    """Width and height in pixels, and the name of Pillow's filter."""

    width: int
    height: int
    filter: str = "bicubic"

    @classmethod
    def read(cls, text: str) -> Size:
        """Parse --resize: 64x64, or 64x64:lanczos for a filter other than bicubic."""
        found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})(?::(\w+))?", text)
        if not found or (found[3] or "bicubic") not in FILTERS:
            allowed = f"WIDTHxHEIGHT or WIDTHxHEIGHT:FILTER with one of {', '.join(FILTERS)}"
            raise ArgumentTypeError(f"{text!r} is no {allowed}")
        return cls(int(found[1]), int(found[2]), found[3] or "bicubic")


def empty_argument(words: Sequence[str]) -> str | None:
    """The error for an empty argument, which would mean the current folder; None without one."""
    for before, word in zip(["the name of the program", *words], words, strict=False):
        flag, equals, value = word.partition("=")
        if not word or (flag.startswith("--") and equals and not value):
            name = flag or (before if before.startswith("-") else f"after {before}")
            return f"argument {name}: is empty; is a variable of the shell unset?"
    return None


@dataclass(frozen=True)
class Settings:
    """Everything that a score depends on, and where it is computed; None: choose automatically."""

    predicted_path: str
    gt_path: str | None = None  # ground truth; else the one that the manifest names
    mask_path: str | None = None  # else the manifest's
    features: str = "inception"
    dims: int | None = None  # feature size; else the network's
    weights: str | None = None  # a file; else that in weights_dir, downloaded when missing
    weights_dir: Path | None = None  # else where torch.hub keeps checkpoints
    device: str = "auto"
    batch_size: int = 16
    workers: int = 0  # threads that read images for a GPU; a CPU's threads read their own
    metrics: tuple[str, ...] = ("fid",)
    bootstrap_samples: int = 100
    legacy: bool = False  # the matrix root of pytorch-fid with its eps, to reproduce its scores
    seed: int = 2020
    cache_dir: Path | None = None  # of reference statistics; else they are not kept
    recursive: bool = False  # read the folders' sub-folders too
    train_path: str | None = None  # training images of the network, to detect memorisation
    resize: Size | None = None  # resize images to this; else all must have the same size
