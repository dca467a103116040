"""One decoding as the page shows it: step by step as plain data, then files to download.

The files are those that inpainting.py would write, with the command that reproduces them.
Shapes: N tokens, H x W pixels.
"""

from __future__ import annotations

import io
import json
import math
import shlex
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config.decoding import RuleConfig
from config.schema import Config
from models.masking import gamma, token_mask_from_holes
from utils.app.checkpoints import Checkpoint, Pair, encodable
from utils.data.datasets import InpaintingItem
from utils.inpainting.inpainter import Inpainter
from utils.inpainting.outputs import (
    ANIMATION,
    OUTPUT_ONLY,
    RESULTS,
    Outputs,
    Repair,
    input_digest,
    settings_digest,
    settings_of,
)
from utils.io.images import HOLE, HOLE_COLOUR, KNOWN, encode_png
from utils.pages import data_uri, embed

CURVE_POINTS = 41
OVERLAP = 16  # earlier steps repeated in each update
KNOWN_MARK, FILLED_MARK, HIDDEN_MARK = "k", "f", "h"  # a token in the page's data
FOLDER = "repair"  # in the archive; the command refers to it
PINNED: list[Pair] = [  # outputs of a decoding on the page
    ("decoding.samples", 1),
    ("decoding.animation", "gif"),
    ("decoding.step_pictures", True),
]


@dataclass(frozen=True)
class DecodedStep:
    """Pixels and tokens after one decode step."""

    image: np.ndarray  # the decoded image, uint8 (H, W, 3)
    hidden: np.ndarray  # tokens that are still hidden, bool (N,)
    confidence: np.ndarray
    """Probability of each token when last predicted, 0 to 1, (N,); NaN where known."""


def repair(
    inpainter: Inpainter, config: Config, image: np.ndarray, hole: np.ndarray
) -> Iterator[DecodedStep]:
    """Yield every step of decoding image (H, W, 3) uint8 with hole (H, W) bool once it is done.

    Nothing is computed until the next step is asked for, so a visitor who leaves ends the work.
    """
    variant, images, holes = inpainter.with_config(config), image[None], hole[None]
    is_log = config.decoding.choices.trust == "log p"
    start = variant.start(variant.fill_all(images, holes), holes)
    for step in variant.finish(start, [0]):
        pixels = variant.pixels(step.token_ids, images, holes)[0]
        probability = step.confidence.exp() if is_log else step.confidence
        hidden, confidence = (part[0].cpu().numpy() for part in (step.hidden, probability))
        yield DecodedStep(pixels, hidden, confidence)


@dataclass
class Record:
    """One decoding with one setting and one seed."""

    name: str  # A or B
    sample: int  # which of several repairs, from 1
    checkpoint: Checkpoint
    config: Config
    dtype: torch.dtype
    image: np.ndarray  # uint8 (H, W, 3); the pixels in its hole are never used
    hole: np.ndarray  # bool (H, W)
    steps: list[DecodedStep] = field(default_factory=list)
    _shown_steps: list[dict[str, Any]] = field(default_factory=list)
    _files: dict[str, str] | None = None
    _sent: int = 0

    @property
    def masked(self) -> np.ndarray:
        """The picture with a grey hole, uint8 (H, W, 3)."""
        return np.where(self.hole[..., None], np.uint8(HOLE_COLOUR), self.image)

    def add(self, step: DecodedStep) -> None:
        """Append a step; after the last one, make the files."""
        percent = np.nan_to_num(step.confidence * 100, nan=-1).round().astype(int)
        self.steps.append(step)
        self._shown_steps.append(self._shown(step.image, step.hidden, percent.tolist()))
        if len(self.steps) == self.config.decoding.steps:
            self._files = self._downloads()

    def page_update(self) -> dict[str, Any]:
        """An update for the page: the newest steps, at the end all of them.

        A browser may skip an update when the next one has arrived, so each repeats earlier steps.
        """
        decoding = self.config.decoding
        steps = [self._shown(self.masked, True, None), *self._shown_steps]
        first = 0 if self._files else max(0, self._sent - OVERLAP)
        self._sent = len(steps)
        return {
            "name": self.name,
            "sample": self.sample,
            "seed": self.config.seed,
            "title": self.title(),
            "schedule": decoding.mask_schedule,
            "curve": _curve(decoding.mask_schedule),
            "total": decoding.total_iter,
            "planned": decoding.steps,
            "first": first,
            "steps": steps[first:],
            "files": self._files,
        }

    def title(self) -> str:
        """The setting in a few words."""
        named = ((key.partition(".")[2], value) for key, value in self.changed())
        words = [f"{name} {_as_text(value)}" for name, value in named if name not in OUTPUT_ONLY]
        return ", ".join(words) or "the checkpoint's own settings"

    def changed(self) -> list[Pair]:
        """Decoding keys and values that differ from the checkpoint's."""
        default = self.checkpoint.config().decoding
        return [
            (f"decoding.{name}", value.model_dump() if isinstance(value, RuleConfig) else value)
            for name, value in self.config.decoding
            if value != getattr(default, name)
        ]

    def command(self) -> str:
        """The command line that reproduces the files from the archive's picture and hole."""
        words = [
            *("python", "inpainting.py", *self.checkpoint.arguments()),
            *("--seed", str(self.config.seed), "--images", f"{FOLDER}/input.png"),
            *("--masks", f"{FOLDER}/hole.png", "--output", f"{FOLDER}/again"),
        ]
        for key, value in self.changed():
            words += ["--set", f"{key}={_as_text(value)}"]
        return encodable(shlex.join(words))

    def _shown(
        self, image: np.ndarray, hidden: np.ndarray | bool, percent: list[int] | None
    ) -> dict[str, Any]:
        """One step: the picture, a mark for each token, confidences in percent, -1 where known."""
        grid = math.isqrt(self.config.transformer.num_tokens)
        in_hole = token_mask_from_holes(torch.from_numpy(self.hole[None]), grid)[0].numpy()
        marks = np.where(in_hole, np.where(hidden, HIDDEN_MARK, FILLED_MARK), KNOWN_MARK)
        return {
            "image": embed(image),
            "tokens": "".join(marks),
            "confidence": percent,
            "hidden": int((marks == HIDDEN_MARK).sum()),
        }

    def _downloads(self) -> dict[str, str]:
        """Result, animation and an archive of everything as data URIs, and the command."""
        files, command = self._output_files(), self.command()
        mask = np.where(self.hole, HOLE, KNOWN).astype(np.uint8)
        own = {"input.png": encode_png(self.masked), "hole.png": encode_png(mask)}
        own["command.txt"] = f"{command}\n".encode()
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
            for name, content in {**own, **files}.items():
                packed.writestr(f"{FOLDER}/{name}", content)
        image, gif = (
            next(content for name, content in files.items() if name.startswith(folder))
            for folder in (RESULTS, ANIMATION)
        )
        return {
            "image": data_uri(image),
            "gif": data_uri(gif, "image/gif"),
            "zip": data_uri(buffer.getvalue(), "application/zip"),
            "command": command,
        }

    def _output_files(self) -> dict[str, bytes]:
        """The files that inpainting.py writes for this picture and hole, by path."""
        settings = settings_digest(settings_of(self.config, self.dtype))
        stamp = settings + input_digest(self.masked, self.hole)
        item = InpaintingItem(0, "input.png", self.masked, self.hole)
        masks = np.stack([step.hidden for step in self.steps])
        repair = Repair(item, 0, stamp, [step.image for step in self.steps], masks, truth=None)
        with tempfile.TemporaryDirectory() as place:
            outputs = Outputs(Path(place), self.config.decoding, self.config.data.image_size)
            outputs.make_folders()
            outputs.write(repair)
            found = sorted(path for path in Path(place).rglob("*") if path.is_file())
            return {path.relative_to(place).as_posix(): path.read_bytes() for path in found}


def _as_text(value: object) -> str:
    """A setting's value as written in a config."""
    return value if isinstance(value, str) else json.dumps(value)


def _curve(mask_schedule: str) -> list[float]:
    """gamma at evenly spaced points of progress, from 1 down to 0."""
    progress = torch.linspace(0, 1, CURVE_POINTS, dtype=torch.float64)
    return [round(value, 4) for value in gamma(mask_schedule, progress).tolist()]
