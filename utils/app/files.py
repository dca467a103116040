"""What a visitor takes away: the files that inpainting.py would write, and the command for it."""

from __future__ import annotations

import io
import json
import shlex
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from config.decoding import RuleConfig
from config.schema import Config, DecodingConfig
from utils.app.checkpoints import Checkpoint, Pair
from utils.app.stream import DecodedStep
from utils.data.datasets import InpaintingItem
from utils.inpainting.outputs import ANIMATION, RESULTS, Outputs, Repair
from utils.inpainting.stamps import input_digest, settings_digest, settings_of
from utils.io.images import HOLE, KNOWN, encode_png

FOLDER = "repair"  # of the archive; the command names its files
PINNED: list[Pair] = [  # what is written of a decoding on the page
    ("decoding.samples", 1),
    ("decoding.animation", "gif"),
    ("decoding.step_pictures", True),
]

Files = dict[str, bytes]  # path below the folder -> content


def command(checkpoint: Checkpoint, config: Config) -> str:
    """The command line that makes the same files from the archive's picture and hole."""
    words = [
        *("python", "inpainting.py", *checkpoint.arguments(), "--seed", str(config.seed)),
        *("--images", f"{FOLDER}/input.png", "--masks", f"{FOLDER}/hole.png"),
        *("--output", f"{FOLDER}/again"),
    ]
    for key, value in changed(config, checkpoint.config()):
        words += ["--set", f"{key}={as_text(value)}"]
    return shlex.join(words)


def changed(config: Config, default: Config) -> list[Pair]:
    """Keys of the section decoding that differ from a checkpoint's own."""
    new, old = config.decoding, default.decoding
    names = [
        name for name in DecodingConfig.model_fields if getattr(new, name) != getattr(old, name)
    ]
    values = {name: getattr(new, name) for name in names}
    return [
        (f"decoding.{name}", value.model_dump() if isinstance(value, RuleConfig) else value)
        for name, value in values.items()
    ]


def as_text(value: object) -> str:
    """A setting's value as it is written in a config."""
    return value if isinstance(value, str) else json.dumps(value)


def written(
    config: Config,
    dtype: torch.dtype,
    masked: np.ndarray,
    hole: np.ndarray,
    steps: Sequence[DecodedStep],
) -> Files:
    """The very files that inpainting.py leaves for this picture (H, W, 3) and hole (H, W)."""
    stamp = settings_digest(settings_of(config, dtype)) + input_digest(masked, hole)
    item = InpaintingItem(0, "input.png", masked, hole)
    masks = np.stack([step.hidden for step in steps])
    repair = Repair(item, 0, stamp, [step.image for step in steps], masks, truth=None)
    with tempfile.TemporaryDirectory() as place:
        outputs = Outputs(Path(place), config.decoding, config.data.image_size)
        outputs.make_folders()
        outputs.write(repair)
        found = sorted(path for path in Path(place).rglob("*") if path.is_file())
        return {path.relative_to(place).as_posix(): path.read_bytes() for path in found}


def result(files: Files) -> bytes:
    return next(content for name, content in files.items() if name.startswith(RESULTS))


def animation(files: Files) -> bytes:
    return next(content for name, content in files.items() if name.startswith(ANIMATION))


def archive(files: Files, masked: np.ndarray, hole: np.ndarray, command: str) -> bytes:
    """A zip of all files, the masked picture, the hole and the command."""
    mask = np.where(hole, HOLE, KNOWN).astype(np.uint8)
    own = {
        "input.png": encode_png(masked),
        "hole.png": encode_png(mask),
        "command.txt": f"{command}\n".encode(),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in {**own, **files}.items():
            packed.writestr(f"{FOLDER}/{name}", content)
    return buffer.getvalue()
