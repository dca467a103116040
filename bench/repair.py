"""Quality of repairs next to classical filling, a regressor and the tokenizer's limit.

    python -m bench.repair --config config/cats64.yml --data data/cats64
    python -m bench.repair --config config/cats64.yml --holes lab brush box --seeds 3 --unet FILE

Every side fills the same holes of the same images: grey leaves the hole grey; biharmonic is
scikit-image's filling, which the networks also get as input; telea is OpenCV's (skipped if not
installed); unet is a regressor of 0.8 million parameters (bench/unet.py); ours is the config's
decoding, bf16 the same with transformer and decoder rounded to bfloat16; true_tokens decodes the
true tokens, as a perfect transformer would. Holes are those of the prepared folder (given), or
drawn, each kind with three shares of the image.
Figures: EfficientNet-Lite0 Frechet distance, the same with EfficientNet-Lite2 (held out: the
tokenizer was trained with Lite0), perceptual distance (unit-length features of three depths), mean
error in the hole in grey levels, PSNR there in dB. With several seeds, which draw holes and tokens,
figures are means and spread is the standard deviation.
Last line: one JSON object, {SIDE: FIGURES}, for drawn holes {"KIND SHARE": {SIDE: FIGURES}}.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bench.common import CONFIG_OPTIONS, add_quick, report
from bench.sides import BATCH, SIDES, side
from bench.unet import UNet, load_unet
from config.errors import UserError
from config.loading import load_config
from config.schema import Config
from models.losses import EfficientNetDistance
from utils.cli import ArgumentParser, add_config_arguments, as_overrides, run
from utils.data.augment import load_images
from utils.data.datasets import InpaintingSet
from utils.data.holes import HOLE_KINDS, draw_hole
from utils.inpainting.inpainter import Inpainter
from utils.inpainting.pretrained import or_pretrained
from utils.io.files import content_hash
from utils.scoring import DEFAULT, HELD_OUT, FeatureDistance, hole_psnr

GIVEN = "given"
SHARES = ((0.1, 0.2), (0.2, 0.4), (0.4, 0.6))  # of the image, of drawn holes
OPTIONS = CONFIG_OPTIONS | {
    "--transformer": ("transformer.weights", str, "transformer weights file"),
}

Sides = dict[str, np.ndarray]  # name -> repairs (n, H, W, 3) uint8
Figures = dict[str, dict[str, float]]  # side -> name -> value


class Cell(NamedTuple):
    """Images with holes of one kind."""

    name: str
    truth: np.ndarray  # (n, H, W, 3) uint8
    holes: np.ndarray  # (n, H, W) bool


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add_config_arguments(parser, OPTIONS)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="sides to measure")
    parser.add_argument("--images", type=int, help="number of images, from the first")
    parser.add_argument("--holes", nargs="+", choices=(GIVEN, *HOLE_KINDS), default=[GIVEN])
    parser.add_argument("--split", choices=("test", "val"), default="test", help="of drawn holes")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds to measure with")
    parser.add_argument("--unet", type=Path, help="weights of bench.unet, for its side")
    add_quick(parser)
    args = parser.parse_args()
    config = or_pretrained(load_config(args.config, as_overrides(args, OPTIONS)))
    if GIVEN in args.holes and (args.split == "val" or len(args.holes) > 1):
        parser.error("--holes given are the test images' own; name them alone, without --split val")
    unet = load_unet(args.unet) if args.unet else None
    result, spread, images = _measure(args, config, unet)
    details = {
        "images": images,
        "split": args.split,
        "seeds": args.seeds,
        "spread": spread,
        "decoding": config.decoding.model_dump(),
        "seed": config.seed,
        "tokenizer_sha256": content_hash([config.tokenizer_weights]),
        "transformer_sha256": content_hash([config.transformer_weights]),
    }
    is_given = args.holes == [GIVEN]
    name = "repair" if is_given and args.seeds == 1 else "repair_holes"
    report(name, result[GIVEN] if is_given else result, details, args.quick)


def _measure(
    args, config: Config, unet: UNet | None
) -> tuple[dict[str, Figures], dict[str, Figures], int]:
    """Mean figures and their spread over the seeds by cell, and the number of images."""
    inpainter, found, images = Inpainter(config), {}, 0
    for seed in range(config.seed, config.seed + args.seeds):
        inpainter.config = inpainter.config.model_copy(update={"seed": seed})
        for cell in _cells(args, config, seed):
            made = {s: side(s, inpainter, cell.truth, cell.holes, unet) for s in args.sides}
            sides = {name: repairs for name, repairs in made.items() if repairs is not None}
            figures, images = _figures(sides, cell, inpainter.device), len(cell.truth)
            found.setdefault(cell.name, []).append(figures)
            print(cell.name, seed, *(f"\n  {name:12} {f}" for name, f in figures.items()))
    mean, spread = (
        {name: _over(each, how) for name, each in found.items()} for how in (np.mean, np.std)
    )
    return mean, spread, images


def _cells(args, config: Config, seed: int) -> Iterator[Cell]:
    """Images with the given holes, or with new ones of each kind and share."""
    if args.holes == [GIVEN]:
        dataset = InpaintingSet(config.data.root)
        if dataset.truth is None:
            raise UserError(f"{config.data.root}: repairs are judged against test/, not there")
        numbers = range(min(len(dataset), args.images or len(dataset)))
        truth = np.stack([dataset.ground_truth(i) for i in numbers])
        yield Cell(GIVEN, truth, np.stack([dataset[i].hole for i in numbers]))
        return
    side = config.data.image_size
    images = load_images(config.data.root / args.split, side)[: args.images]
    truth = images.permute(0, 2, 3, 1).numpy()
    for kind in args.holes:
        for low, high in SHARES:
            holes = [draw_hole(kind, side, (low, high), seed, i) for i in range(len(truth))]
            yield Cell(f"{kind} {100 * low:.0f}-{100 * high:.0f} %", truth, np.stack(holes))


def _over(each: list[Figures], how) -> Figures:
    """Mean or spread over the seeds of each figure of each side."""
    return {
        name: {key: round(float(how([f[name][key] for f in each])), 4) for key in each[0][name]}
        for name in each[0]
    }


@torch.inference_mode()
def _figures(sides: Sides, cell: Cell, device: torch.device) -> Figures:
    """All figures of all sides, each against the same true images."""
    truth, targets = cell.truth, torch.from_numpy(cell.truth)
    distance, held_out = (FeatureDistance(targets, device, how) for how in (DEFAULT, HELD_OUT))
    perceptual, result = EfficientNetDistance().to(device), {}
    for name, images in sides.items():
        batches = (
            [x.permute(0, 3, 1, 2).to(device) / 255 for x in side.split(BATCH)]
            for side in (torch.from_numpy(images), targets)
        )
        each = [perceptual(a, b).item() * len(a) for a, b in zip(*batches, strict=True)]
        decibels = [hole_psnr(*of) for of in zip(images, truth, cell.holes, strict=True)]
        result[name] = {
            "frechet": round(distance(torch.from_numpy(images)), 2),
            "frechet_referee": round(held_out(torch.from_numpy(images)), 2),
            "perceptual": round(sum(each) / len(images), 4),
            "hole_mae": round(float(np.abs(images.astype(float) - truth)[cell.holes].mean()), 2),
            "hole_psnr": round(float(np.mean([d for d in decibels if d is not None])), 2),
        }
    return result


if __name__ == "__main__":
    run(main)
