"""One decoding as the page shows it: steps as plain data, and files to download at the end.

The files are those that inpainting.py would write, with the command that reproduces them.
Shapes: N tokens, H x W pixels.
"""

from __future__ import annotations

import io
import json
import shlex
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config.decoding import RuleConfig
from config.schema import Config
from models.masking import gamma, token_mask_from_holes
from utils.app.checkpoints import Checkpoint, Pair, encodable
from utils.app.stream import DecodedStep
from utils.data.datasets import InpaintingItem
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

Files = dict[str, bytes]  # path below the folder -> content


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
    _told: int = 0

    @property
    def masked(self) -> np.ndarray:
        """The picture with a grey hole, uint8 (H, W, 3)."""
        return np.where(self.hole[..., None], np.uint8(HOLE_COLOUR), self.image)

    def add(self, step: DecodedStep) -> None:
        """Append a step; after the last one, make the files."""
        hidden = np.where(step.hidden, HIDDEN_MARK, FILLED_MARK)
        marks = np.where(self._token_mask(), hidden, KNOWN_MARK)
        percent = np.nan_to_num(step.confidence * 100, nan=-1).round().astype(int)
        self.steps.append(step)
        self._shown_steps.append(_shown(step.image, marks, percent.tolist()))
        if len(self.steps) == self.config.decoding.steps:
            self._files = self._taken_away()

    def news(self) -> dict[str, Any]:
        """An update for the page: the newest steps, at the end all of them.

        A browser may skip an update when the next one has arrived, so each repeats earlier steps.
        """
        decoding = self.config.decoding
        marks = np.where(self._token_mask(), HIDDEN_MARK, KNOWN_MARK)
        steps = [_shown(self.masked, marks, None), *self._shown_steps]
        first = 0 if self._files else max(0, self._told - OVERLAP)
        self._told = len(steps)
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

    def _token_mask(self) -> np.ndarray:
        """Tokens hidden at the start, bool (N,)."""
        grid = round(self.config.transformer.num_tokens**0.5)
        return token_mask_from_holes(torch.from_numpy(self.hole[None]), grid)[0].numpy()

    def _taken_away(self) -> dict[str, str]:
        """Result, animation and an archive of everything as data URIs, and the command."""
        files, command = self._written(), self.command()
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

    def _written(self) -> Files:
        """The files that inpainting.py writes for this picture and hole."""
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


def _shown(image: np.ndarray, marks: np.ndarray, percent: list[int] | None) -> dict[str, Any]:
    """One step: the picture, a mark for each token, confidences in percent, -1 where known."""
    return {
        "image": embed(image),
        "tokens": "".join(marks),
        "confidence": percent,
        "hidden": int((marks == HIDDEN_MARK).sum()),
    }


def _curve(mask_schedule: str) -> list[float]:
    """gamma at evenly spaced points of progress, from 1 down to 0."""
    progress = torch.linspace(0, 1, CURVE_POINTS, dtype=torch.float64)
    return [round(value, 4) for value in gamma(mask_schedule, progress).tolist()]
