"""A workspace in which every script works, and a shell to run scripts in it, in this process.

workspace/
  tiny.yml            16 x 16 pixels, 16 tokens; run and data are the folders beside it
  run/                weights of both networks
  data/train, val     11 and 6 pictures
  job/                masked_image, mask64 and test (the truth), 3 each
  pictures/           11 pictures to prepare a data set from
  results/, truth/    8 pictures each to score, results with a manifest that names masks/
  stem.pth            FID weights as far as 64 features need them
"""

from __future__ import annotations

import json
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import fid.files
import numpy as np
import pytest
import torch
from torchvision.models import Inception3

import utils.io.messages
import utils.scoring
import utils.search.report
import utils.sweep.decode
import utils.sweep.tables
from config.loading import save_config
from config.schema import Config
from models.transformer import BidirectionalTransformer
from models.vqgan import VQGAN
from utils.io.images import save_png
from utils.weights.store import codes_fingerprint, save_weights

sys.path.append(str(Path(__file__).parent))

from fault_files import encoded, mask, pixels

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds after which a command counts as hanging


class Hang(BaseException):
    """No script catches it."""


class Said(NamedTuple):
    """What a command left with."""

    code: int
    out: str
    err: str

    @property
    def last(self) -> str:
        """The last line on stderr."""
        return self.err.rstrip("\n").rpartition("\n")[2]


def fill(folder: Path, count: int, seed: int = 0, name: str = "image") -> None:
    """Write so many pictures."""
    folder.mkdir(parents=True)
    for i in range(count):
        picture = mask() if name == "mask" else pixels(seed + i)
        (folder / f"{name}_{i}.png").write_bytes(encoded(picture))


def fill_results(folder: Path) -> None:
    """What inpainting leaves for the scorer."""
    for name, seed in (("results", 30), ("truth", 60)):
        fill(folder / name, 8, seed)
    fill(folder / "masks", 8, name="mask")
    entries = [
        {"image": f"image_{i}.png", "ground_truth": f"image_{i}.png", "mask": f"mask_{i}.png"}
        for i in range(8)
    ]
    manifest = {"ground_truth": "../truth", "masks": "../masks", "images": entries}
    (folder / "results" / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="session")
def stem(tmp_path_factory) -> Path:
    """Weights of the first layers of the FID's network, as many as 64 features need."""
    torch.manual_seed(0)
    state = Inception3(num_classes=1008, aux_logits=False, init_weights=False).state_dict()
    path = tmp_path_factory.mktemp("stem") / "stem.pth"
    stem = {k: v for k, v in state.items() if k.startswith("Conv2d")}
    torch.save(stem | {"fc.weight": torch.zeros(()).expand(1008, 2048)}, path)  # which is not used
    return path


@pytest.fixture
def workspace(tmp_path, monkeypatch, request, template) -> Path:
    """A copy of the good workspace, which is the current folder."""
    if not any(template.iterdir()):
        monkeypatch.chdir(template)
        networks = (request.getfixturevalue(name) for name in ("tokenizer", "transformer"))
        build(template, request.getfixturevalue("config"), *networks)
        (template / "stem.pth").symlink_to(request.getfixturevalue("stem"))
    folder = tmp_path / "workspace"
    shutil.copytree(template, folder, symlinks=True, copy_function=shutil.copyfile)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """Where the workspace that others are copied from is built once."""
    return tmp_path_factory.mktemp("template")


def build(
    folder: Path, config: Config, tokenizer: VQGAN, transformer: BidirectionalTransformer
) -> None:
    """Fill the workspace, which is the current folder."""
    values = config.model_dump() | {"run": Path("run")}
    values["data"]["root"] = Path("data")
    tiny = Config.model_validate(values)
    save_config(tiny, Path("tiny.yml"))
    save_weights(tiny.tokenizer_weights, tokenizer.state_dict(), tokenizer.config, {})
    notes = {"codes_sha256": codes_fingerprint(tokenizer.codebook.vectors())}
    save_weights(tiny.transformer_weights, transformer.state_dict(), transformer.config, notes)
    fill(folder / "data/train", 11)
    fill(folder / "data/val", 6, 20)
    fill(folder / "pictures", 11, 40)
    fill(folder / "job/test", 3, 80)
    fill(folder / "job/masked_image", 3, 80)
    fill(folder / "job/mask64", 3, name="mask")
    fill_results(folder)


@contextmanager
def patience() -> Iterator[None]:
    """Raise `Hang` in a command that takes too long."""

    def ring(_number: int, _frame: object) -> None:
        raise Hang(f"no end after {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class MeanDifference:
    """Stands in for the Frechet distance of a sweep, which needs a real network."""

    name = "mean difference"

    def __init__(self, targets: torch.Tensor, device: torch.device, scoring: object) -> None:
        self.targets = targets.float()

    def __call__(self, images: torch.Tensor) -> float:
        return (images.float() - self.targets).abs().mean().item()


def open_and_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a page end as soon as it can be visited."""
    import gradio

    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda page: page.close(verbose=False))
    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)  # a page has its own
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")


def save_blank(path: Path, _table: object) -> None:
    """Write a picture where a plot belongs."""
    save_png(path, np.zeros((1, 1, 3), np.uint8))


def apart(words: list[str], flags: str) -> Said:
    """Run a script in a Python of its own that has such flags."""
    command = [sys.executable, *shlex.split(flags), str(ROOT / words[0]), *words[1:]]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    return Said(ended.returncode, ended.stdout, ended.stderr)


@pytest.fixture
def shell(monkeypatch, capsys, low_resolution, no_sync) -> Callable[..., Said]:
    """Run a command line in this process and the current folder: shell("inpainting.py --help").
    With flags of Python it is one of its own: shell("inpainting.py --help", "-OO").

    An exception that would end a script with a traceback comes out as it is.
    """
    utils.io.messages._told.clear()
    fid.files._noted.clear()
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(os.environ, "XDG_CACHE_HOME", "cache")
    monkeypatch.setattr(utils.sweep.decode, "FeatureDistance", MeanDifference)
    monkeypatch.setattr(utils.sweep.tables, "save_plot", save_blank)
    monkeypatch.setattr(utils.search.report, "save_plots", lambda *_: None)

    def run(command: str, flags: str = "") -> Said:
        words = shlex.split(command)
        if flags:
            return apart(words, flags)
        if words[0] == "app.py" and find_spec("gradio"):
            open_and_close(monkeypatch)
        start, target, arguments = runpy.run_path, str(ROOT / words[0]), words[1:]
        if words[0] == "-m":
            start, target, arguments = runpy.run_module, words[1], words[2:]
        monkeypatch.setattr(sys, "argv", [words[0], *arguments])
        with warnings.catch_warnings(), patience():
            warnings.simplefilter("ignore", RuntimeWarning)  # other tests imported the module
            with pytest.raises(SystemExit) as left:
                start(target, run_name="__main__")
        said = capsys.readouterr()
        return Said(left.value.code or 0, said.out, said.err)

    return run
