"""Repair a set of images and write the report's three folders (spec section 6).

<output>/test_results/image_{i:03d}.png      the repaired image
<output>/mask_scheduling/final_test_{i}.png  the token mask after every step
<output>/imga/final_test_{i}.png             the masked input, then the image after every step
<output>/test_results/manifest.json          what was done, with what, and where the truth lies

Shapes: B batch, N tokens, T steps, H x W pixels.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from config.errors import UserError
from config.schema import Config
from models.maskgit import MaskGIT
from utils.checkpoint import (
    codes_fingerprint,
    load_tokenizer,
    load_transformer,
    read_header,
)
from utils.composite import composite
from utils.data import InpaintingItem, InpaintingSet, normalise, to_uint8
from utils.device import autocast, pick_device, pick_dtype
from utils.files import content_hash, make_folder, write_text
from utils.fill import fill_hole
from utils.images import save_png
from utils.pictures import image_grid, mask_grid
from utils.runlog import environment

RESULTS, MASKS, STEPS = "test_results", "mask_scheduling", "imga"
MANIFEST = "manifest.json"


@dataclass
class Trace:
    """What decoding went through: token ids (B, N) and masks (B, N) after every step."""

    token_ids: list[Tensor] = field(default_factory=list)
    hidden: list[Tensor] = field(default_factory=list)

    def __call__(self, _step: int, token_ids: Tensor, hidden: Tensor) -> None:
        self.token_ids.append(token_ids)
        self.hidden.append(hidden)


class Inpainter:
    """A loaded MaskGIT that repairs images of the config's size."""

    def __init__(self, config: Config) -> None:
        self.config, self.device = config, pick_device(config.device)
        self.dtype = pick_dtype(config.precision, self.device)
        tokenizer = load_tokenizer(config.tokenizer_weights, config.tokenizer)
        transformer = load_transformer(config.transformer_weights, config.transformer)
        wanted = read_header(config.transformer_weights).get("codes_sha256")
        if wanted not in (None, codes_fingerprint(tokenizer.codebook.vectors())):
            raise UserError(
                f"{config.transformer_weights}: was trained on the tokens of another tokenizer "
                f"than {config.tokenizer_weights}"
            )
        self.maskgit = MaskGIT(tokenizer, transformer, config.masking.mask_schedule).eval()
        self.maskgit.to(self.device)
        tokenizer.to(memory_format=torch.channels_last)

    def __call__(self, images: np.ndarray, holes: np.ndarray, image_ids: list[int]) -> Trace:
        """Decode images (B, H, W, 3) uint8 with holes (B, H, W) bool; every step is kept."""
        settings, data = self.config.decoding, self.config.data
        pairs = zip(images, holes, strict=True)
        filled = np.stack([fill_hole(image, hole, settings.hole_fill) for image, hole in pairs])
        trace = Trace()
        with autocast(self.device, self.dtype):
            self.maskgit.inpaint(
                normalise(filled, data.mean, data.std).to(self.device),
                torch.from_numpy(holes).to(self.device),
                settings,
                seed=self.config.seed,
                image_ids=torch.tensor(image_ids, device=self.device),
                on_step=trace,
            )
        return trace

    @torch.inference_mode()
    def pixels(self, token_ids: Tensor, images: np.ndarray, holes: np.ndarray) -> np.ndarray:
        """Decode token ids (B, N) and paste known pixels back if so configured, (B, H, W, 3)."""
        data = self.config.data
        with autocast(self.device, self.dtype):
            decoded = self.maskgit.tokenizer.decode(token_ids)
        outputs = to_uint8(decoded, data.mean, data.std).cpu().numpy()
        kind, width = self.config.decoding.composite, self.config.decoding.feather_width
        parts = zip(outputs, images, holes, strict=True)
        return np.stack([composite(*part, kind, width) for part in parts])


def inpaint_set(config: Config, dataset: InpaintingSet, output: Path) -> dict[str, float]:
    """Repair every image of a set; returns seconds and images a second.

    Raises `UserError` for weights or images that do not fit, or an output that cannot be written.
    """
    inpainter, began = Inpainter(config), time.perf_counter()
    for folder in (RESULTS, MASKS, STEPS):
        make_folder(output / folder)
    (output / RESULTS / MANIFEST).unlink(missing_ok=True)  # it speaks of the images it lies by
    batches = _batches(dataset, config.decoding.batch_size, config.data.image_size)
    with tqdm(total=len(dataset), desc=f"inpainting, {_title(config)}", unit="image") as bar:
        for items in batches:
            _repair(inpainter, items, output)
            bar.update(len(items))
    seconds = time.perf_counter() - began
    timing = {"seconds": seconds, "images_per_second": len(dataset) / seconds}
    manifest = _manifest(config, dataset, output / RESULTS, timing)
    write_text(output / RESULTS / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    return timing


def _repair(inpainter: Inpainter, items: list[InpaintingItem], output: Path) -> None:
    """Repair one batch and write its pictures."""
    images, holes = (np.stack([getattr(i, part) for i in items]) for part in ("image", "hole"))
    settings = inpainter.config.decoding
    trace = inpainter(images, holes, [item.index for item in items])
    wanted = trace.token_ids if settings.step_pictures else trace.token_ids[-1:]
    steps = [inpainter.pixels(ids, images, holes) for ids in wanted]  # T of (B, H, W, 3)
    for item, result in zip(items, steps[-1], strict=True):
        save_png(output / RESULTS / f"image_{item.index:03d}.png", result)
    if not settings.step_pictures:
        return
    masks = torch.stack(trace.hidden).cpu().numpy()  # (T, B, N)
    for place, item in enumerate(items):
        name = f"final_test_{item.index}.png"
        save_png(output / MASKS / name, mask_grid(masks[:, place], settings.total_iter))
        shown = [item.image, *(step[place] for step in steps)]
        save_png(output / STEPS / name, image_grid(shown, settings.total_iter))


def _batches(dataset: InpaintingSet, size: int, side: int) -> Iterator[list[InpaintingItem]]:
    """Items in groups of ``size``; an image that is not side x side pixels is an error."""
    for start in range(0, len(dataset), size):
        items = [dataset[i] for i in range(start, min(start + size, len(dataset)))]
        for item in items:
            height, width = item.hole.shape
            if (height, width) != (side, side):
                raise UserError(
                    f"{dataset.images[item.index]}: {width} x {height} pixels; the model repairs "
                    f"{side} x {side}, resize image and mask first"
                )
        yield items


def _manifest(
    config: Config, dataset: InpaintingSet, folder: Path, timing: dict[str, float]
) -> dict[str, object]:
    """Everything needed to trace a result, and to find its ground truth."""

    def relative(path: Path) -> str:
        return os.path.relpath(path, folder)

    truth = dataset.truth
    return {
        "ground_truth": relative(truth.location) if truth else None,
        "masks": relative(dataset.masks[0].parent),
        "images": [
            {
                "image": f"image_{index:03d}.png",
                "source": dataset.images[index].name,
                "mask": dataset.masks[index].name,
                **({"ground_truth": truth.name(index)} if truth else {}),
            }
            for index in range(len(dataset))
        ],
        "seed": config.seed,
        "tokenizer_sha256": content_hash([config.tokenizer_weights]),
        "transformer_sha256": content_hash([config.transformer_weights]),
        "config": config.model_dump(mode="json"),
        "environment": environment(),
        **timing,
    }


def _title(config: Config) -> str:
    decoding = config.decoding
    steps = decoding.sweet_spot or decoding.total_iter
    return f"{decoding.rule} {decoding.mask_schedule} {steps}/{decoding.total_iter}"
