"""What the page shows of a decoding: its steps as plain data, and files to take away.

Shapes: N tokens, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from config.schema import Config
from models.masking import gamma, token_mask_from_holes
from utils.app import files
from utils.app.checkpoints import Checkpoint
from utils.app.stream import DecodedStep
from utils.inpainting.stamps import OUTPUT_ONLY
from utils.io.images import HOLE_COLOUR
from utils.pictures import data_uri, embed

CURVE_POINTS = 41
OVERLAP = 16  # steps that are sent again
KNOWN_MARK, FILLED_MARK, HIDDEN_MARK = "k", "f", "h"  # a token in the page's data


@dataclass
class Record:
    """One decoding under one setting and one seed."""

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
    def planned(self) -> int:
        return self.config.decoding.steps

    @property
    def masked(self) -> np.ndarray:
        """The picture with a grey hole, uint8 (H, W, 3)."""
        return np.where(self.hole[..., None], np.uint8(HOLE_COLOUR), self.image)

    def add(self, step: DecodedStep) -> None:
        """Take in the next step; the last one brings the files."""
        hidden = np.where(step.hidden, HIDDEN_MARK, FILLED_MARK)
        marks = np.where(self._token_mask(), hidden, KNOWN_MARK)
        percent = np.nan_to_num(step.confidence * 100, nan=-1).round().astype(int)
        self.steps.append(step)
        self._shown_steps.append(_shown(step.image, marks, percent.tolist()))
        if len(self.steps) == self.planned:
            self._files = self._make_files()

    def news(self) -> dict[str, Any]:
        """What the page needs to hear now: the newest steps, at the end all of them.

        A browser may pass over a message when the next one is there already, so the steps of some
        messages before come again.
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
            "planned": self.planned,
            "first": first,
            "steps": steps[first:],
            "files": self._files,
        }

    def title(self) -> str:
        """The setting in a few words."""
        pairs = files.changed(self.config, self.checkpoint.config())
        named = [(key.partition(".")[2], value) for key, value in pairs]
        words = [f"{name} {files.as_text(v)}" for name, v in named if name not in OUTPUT_ONLY]
        return ", ".join(words) or "the checkpoint's own settings"

    def _token_mask(self) -> np.ndarray:
        """Tokens hidden at the start, bool (N,)."""
        grid = round(self.config.transformer.num_tokens**0.5)
        return token_mask_from_holes(torch.from_numpy(self.hole[None]), grid)[0].numpy()

    def _make_files(self) -> dict[str, str]:
        made = files.written(self.config, self.dtype, self.masked, self.hole, self.steps)
        command = files.command(self.checkpoint, self.config)
        packed = files.archive(made, self.masked, self.hole, command)
        return {
            "image": data_uri(files.result(made)),
            "gif": data_uri(files.animation(made), "image/gif"),
            "zip": data_uri(packed, "application/zip"),
            "command": command,
        }


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
