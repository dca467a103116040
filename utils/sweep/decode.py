"""Decode and score the images of a sweep without repeating shared work.

Shapes: n images, B batch, N tokens, T steps, H x W pixels.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from config.errors import UserError
from config.schema import Config
from models.decode import LogitsOf
from models.maskgit import Start
from utils.data.datasets import InpaintingSet
from utils.inpainting.inpainter import BATCH_SIZES, Inpainter
from utils.inpainting.outputs import input_digest
from utils.io.images import note_profile
from utils.scoring import FeatureDistance, hole_psnr
from utils.sweep.plan import Cell

FIRST_LOGITS_BYTES = 1 << 30  # limit of cached first-step logits, all batches together

CellRow = dict[str, Any]  # the result of a finished cell


@dataclass(frozen=True)
class JobInputs:
    """The images of a sweep, all of the model's size."""

    indices: list[int]  # positions in the dataset, which key the noise
    images: np.ndarray  # (n, H, W, 3) uint8
    holes: np.ndarray  # (n, H, W) bool
    truths: np.ndarray  # (n, H, W, 3) uint8

    @cached_property
    def digest(self) -> str:
        """Digest of everything that decoding and scoring see."""
        digest = hashlib.sha256(json.dumps(self.indices).encode())
        for image, hole, truth in zip(self.images, self.holes, self.truths, strict=True):
            digest.update(input_digest(image, hole).encode() + truth.tobytes())
        return digest.hexdigest()


def read_job_inputs(dataset: InpaintingSet, count: int | None, side: int) -> JobInputs:
    """Read `count` images spread evenly over a dataset, or all, with their ground truth."""
    if len(dataset) < 2:
        raise UserError(f"{dataset.images[0].parent}: one image; a score needs 2 or more")
    if count is not None and not 2 <= count <= len(dataset):
        raise UserError(f"--images {count}: allowed are 2 to {len(dataset)}")
    chosen = np.linspace(0, len(dataset) - 1, count or len(dataset)).astype(int).tolist()
    with tqdm(chosen, "reading", unit="image") as bar:  # closes the bar on errors too
        items = [dataset[index] for index in bar]
    for item in items:
        if item.hole.shape != (side, side):
            height, width = item.hole.shape
            raise UserError(
                f"{item.name}: {width} x {height} pixels; a sweep needs {side} x {side}"
            )
        note_profile(item.profile, item.name)
    truths = [dataset.ground_truth(item.index, item.image) for item in items]
    if truths[0] is None:
        raise UserError(
            f"{dataset.images[0].parent.parent}: has no ground truth to score against; name a "
            "prepared folder with test/ or test_gt.csv"
        )
    return JobInputs(
        chosen,
        np.stack([item.image for item in items]),
        np.stack([item.hole for item in items]),
        np.stack(truths),
    )


@dataclass
class Batch:
    """Encoded images, shared by all cells with the same hole fill."""

    start: Start
    image_ids: list[int]
    first: Tensor | None = None  # first-step logits, which depend on no seed, rule or schedule


class CellDecoder:
    """Decodes and scores the images of a sweep; networks and statistics load when first needed."""

    def __init__(self, config: Config, inputs: JobInputs, device: torch.device) -> None:
        self.config, self.inputs, self.device = config, inputs, device
        self.started: dict[str, list[Batch]] = {}  # by hole fill
        self.kept_bytes = 0  # of cached first-step logits, all batches together

    @cached_property
    def inpainter(self) -> Inpainter:
        return Inpainter(self.config)

    def inpainter_for(self, cell: Cell) -> Inpainter:
        """The networks with a cell's settings and seed."""
        values = {"decoding": cell.decoding, "seed": cell.seed}
        return self.inpainter.with_config(self.inpainter.config.model_copy(update=values))

    @cached_property
    def distance(self) -> FeatureDistance:
        truths = torch.from_numpy(self.inputs.truths)
        return FeatureDistance(truths, self.device, self.config.scoring)

    def batches(self, cell: Cell) -> list[Batch]:
        """Filled, encoded and masked images, cached by hole fill."""
        key, inputs = cell.decoding.hole_fill, self.inputs
        if key not in self.started:
            inpainter, size = self.inpainter_for(cell), BATCH_SIZES[self.device.type]
            filled = inpainter.fill_all(inputs.images, inputs.holes)
            parts = [slice(first, first + size) for first in range(0, len(filled), size)]
            self.started[key] = [
                Batch(inpainter.start(filled[part], inputs.holes[part]), inputs.indices[part])
                for part in parts
            ]
        return self.started[key]

    def known(self, cell: Cell) -> Tensor | None:
        """Known pixels and holes for the decoder, (n, 4, H, W); None without conditioning."""
        if not self.inpainter.config.tokenizer.conditioned:
            return None
        return torch.cat([batch.start.pixels for batch in self.batches(cell)])

    @torch.inference_mode()
    def decode(self, cell: Cell, steps: int, bar: tqdm) -> tuple[Tensor, Tensor]:
        """Token ids and masks of all images after each of `steps` steps, (T, n, N) each."""
        settings = cell.decoding.model_copy(update={"sweet_spot": steps})
        inpainter, traces = self.inpainter_for(replace(cell, decoding=settings)), []
        for batch in self.batches(cell):
            logits_of, trace = self._logits_of(batch), []
            for step in inpainter.finish(batch.start, batch.image_ids, logits_of=logits_of):
                trace.append((step.token_ids, step.hidden))
                bar.update(len(step.token_ids))
            traces.append([torch.stack(part) for part in zip(*trace, strict=True)])
        token_ids, hidden = (torch.cat(parts, 1) for parts in zip(*traces, strict=True))
        return token_ids, hidden

    def _logits_of(self, batch: Batch) -> LogitsOf:
        """The model's logits; a batch's first-step logits are cached as far as the limit allows."""
        calls = itertools.count()

        def logits_of(*shown: Tensor) -> Tensor:
            is_first = next(calls) == 0
            if is_first and batch.first is not None:
                return batch.first
            logits = self.inpainter.maskgit.logits_of(*shown)
            if is_first and self.kept_bytes + logits.nbytes <= FIRST_LOGITS_BYTES:
                batch.first = logits
                self.kept_bytes += logits.nbytes
            return logits

        return logits_of

    def score(self, cell: Cell, token_ids: Tensor) -> CellRow:
        """Score of a cell's images, and PSNR of each in its hole, from their tokens (n, N)."""
        inputs, inpainter = self.inputs, self.inpainter_for(cell)
        decoded = inpainter.decoded(token_ids, self.known(cell))
        images = np.stack(list(map(inpainter.join, decoded, inputs.images, inputs.holes)))
        errors = map(hole_psnr, images, inputs.truths, inputs.holes)
        return {
            "score": self.distance(torch.from_numpy(images)),
            "score_name": self.distance.name,
            "hole_psnr": [value if value is None else round(value, 3) for value in errors],
            "images": len(images),
            "seed": cell.seed,
            "decoding": cell.decoding.model_dump(mode="json"),
        }
