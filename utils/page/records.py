"""What the page shows of a decoding: its steps as plain data, and files to take away.

Shapes: N tokens, H x W pixels.
"""

from __future__ import annotations

import io
import json
import shlex
import zipfile
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from config.schema import Config
from models.masking import gamma, token_mask_from_holes
from utils.images import HOLE, HOLE_COLOUR, KNOWN, encode_png
from utils.page.checkpoints import Checkpoint, Pair
from utils.page.decoding import Step
from utils.page.uploads import data_url

CURVE_POINTS = 41
STEP_MS, LAST_MS = 400, 1600  # how long the GIF shows a step, and the result
GIF_SIDE = 256  # pixels
FOLDER = "repair"  # of the archive; the command names its files

KNOWN_MARK, FILLED_MARK, HIDDEN_MARK = "k", "f", "h"  # a token in the page's data


@dataclass
class Record:
    """One decoding under one setting and one seed."""

    name: str
    """A or B."""
    sample: int
    """Which of several repairs, from 1."""
    checkpoint: Checkpoint
    config: Config
    changed: list[Pair]
    """Settings that differ from the checkpoint's own."""
    image: np.ndarray
    """uint8 (H, W, 3), whole."""
    hole: np.ndarray
    """bool (H, W)."""
    steps: list[Step] = field(default_factory=list)
    _shown_steps: list[dict[str, Any]] = field(default_factory=list)

    @property
    def planned(self) -> int:
        """Steps that will be run."""
        return self.config.decoding.sweet_spot or self.config.decoding.total_iter

    @property
    def masked(self) -> np.ndarray:
        """The picture with a grey hole, uint8 (H, W, 3)."""
        return np.where(self.hole[..., None], np.uint8(HOLE_COLOUR), self.image)

    def command(self) -> str:
        """The command line that repeats this decoding from the archive's files."""
        settings = [("--set", f"{key}={_plain(value)}") for key, value in self.changed]
        words = [
            *("python", "inpainting.py", *self.checkpoint.arguments()),
            *("--images", f"{FOLDER}/input.png", "--masks", f"{FOLDER}/hole.png"),
            *("--output", f"{FOLDER}/again", "--seed", str(self.config.seed)),
            *(word for pair in settings for word in pair),
        ]
        return shlex.join(words)

    def gif(self) -> bytes:
        """The masked picture and every step, as an animation that begins anew."""
        pictures = [self.masked, *(step.image for step in self.steps)]
        size = (GIF_SIDE, GIF_SIDE)
        frames = [Image.fromarray(p).resize(size, Image.Resampling.NEAREST) for p in pictures]
        durations = [STEP_MS] * len(self.steps) + [LAST_MS]
        buffer = io.BytesIO()
        options = {"save_all": True, "append_images": frames[1:], "loop": 0}
        frames[0].save(buffer, format="GIF", duration=durations, **options)
        return buffer.getvalue()

    def archive(self) -> bytes:
        """A zip of the input, the hole, the result, the animation and the command."""
        mask = np.where(self.hole, HOLE, KNOWN).astype(np.uint8)
        files = {
            "input.png": encode_png(self.image),
            "hole.png": encode_png(mask),
            "result.png": encode_png(self.steps[-1].image),
            "decoding.gif": self.gif(),
            "command.txt": f"{self.command()}\n".encode(),
        }
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(f"{FOLDER}/{name}", content)
        return buffer.getvalue()

    def add(self, step: Step) -> None:
        """Take in the next step."""
        hidden = np.where(step.hidden, HIDDEN_MARK, FILLED_MARK)
        marks = np.where(self._token_mask(), hidden, KNOWN_MARK)
        percent = np.nan_to_num(step.confidence * 100, nan=-1).round().astype(int)
        self.steps.append(step)
        self._shown_steps.append(
            {
                "image": data_url(encode_png(step.image)),
                "tokens": "".join(marks),
                "confidence": percent.tolist(),
                "hidden": int(step.hidden.sum()),
            }
        )

    def shown(self) -> dict[str, Any]:
        """What the page needs to show the decoding as far as it has come."""
        decoding, hidden = self.config.decoding, self._token_mask()
        marks = np.where(hidden, HIDDEN_MARK, KNOWN_MARK)
        start = {
            "image": data_url(encode_png(self.masked)),
            "tokens": "".join(marks),
            "confidence": None,
            "hidden": int(hidden.sum()),
        }
        return {
            "name": self.name,
            "sample": self.sample,
            "seed": self.config.seed,
            "title": self.title(),
            "schedule": decoding.mask_schedule,
            "curve": _curve(decoding.mask_schedule),
            "total": decoding.total_iter,
            "planned": self.planned,
            "steps": [start, *self._shown_steps],
            "files": self._files() if len(self.steps) == self.planned else None,
        }

    def title(self) -> str:
        """The setting in a few words."""
        words = [f"{key.partition('.')[2]} {_plain(value)}" for key, value in self.changed]
        return ", ".join(words) or "the checkpoint's own settings"

    def _token_mask(self) -> np.ndarray:
        """Tokens hidden at the start, bool (N,)."""
        grid = round(self.config.transformer.num_tokens**0.5)
        return token_mask_from_holes(torch.from_numpy(self.hole[None]), grid)[0].numpy()

    def _files(self) -> dict[str, str]:
        return {
            "image": data_url(encode_png(self.steps[-1].image)),
            "gif": data_url(self.gif(), "image/gif"),
            "zip": data_url(self.archive(), "application/zip"),
            "command": self.command(),
        }


def _curve(mask_schedule: str) -> list[float]:
    """gamma at evenly spaced points of progress, from 1 down to 0."""
    progress = torch.linspace(0, 1, CURVE_POINTS, dtype=torch.float64)
    return [round(value, 4) for value in gamma(mask_schedule, progress).tolist()]


def _plain(value: object) -> str:
    """A setting's value as it is written in a config."""
    return json.dumps(value) if not isinstance(value, str) else value
