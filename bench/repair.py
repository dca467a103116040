"""How good repairs are: ours beside classical filling, and where the rest is lost.

    python -m bench.repair --config config/cats64.yml --data data/cats64

Every side fills the same holes of the same images. Grey leaves the hole as it is, biharmonic is
what scikit-image does, Telea what OpenCV does (left out where it is not installed), report the
decoding of config/MaskGit.yml, ours the config's decoding. Then the truth is put in place of one
part after another: without_leak encodes the whole images, so that no hole corrupts a known token;
true_tokens also decodes the true tokens in the hole, what a perfect transformer would reach.
Figures: EfficientNet-Lite0 Frechet distance, the same with features of EfficientNet-Lite2 (a
referee, since the tokenizer trained with Lite0's), perceptual distance (unit-length features of
three depths), mean error in the hole in grey levels. Last line: one JSON object,
{SIDE: {"frechet", "frechet_referee", "perceptual", "hole_mae"}}.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from bench.common import report
from config.errors import UserError
from config.loading import load_config
from models.losses import perceptual_distance
from utils.cli import ArgumentParser, add_config_arguments, as_overrides, run
from utils.data.datasets import InpaintingSet, normalise
from utils.data.fill import fill_hole
from utils.inpainting.composite import composite
from utils.inpainting.inpainter import Inpainter
from utils.io.files import content_hash
from utils.io.images import HOLE_COLOUR, save_png
from utils.pictures import tile
from utils.scoring import DEFAULT, REFEREE, FeatureDistance

ROOT = Path(__file__).resolve().parents[1]

BATCH = 16
SHOWN = ("grey", "biharmonic", "ours")
PICTURES = 48
SIDES = ("grey", "biharmonic", "telea", "report", "ours", "without_leak", "true_tokens")
OPTIONS = {
    "--data": ("data.root", str, "prepared folder with masked_image/, mask64/ and test/"),
    "--tokenizer": ("tokenizer.weights", str, "tokenizer weights file"),
    "--transformer": ("transformer.weights", str, "transformer weights file"),
    "--device": ("device", str, "auto, cpu, cuda or cuda:N"),
}


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add_config_arguments(parser, OPTIONS)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="sides to measure")
    parser.add_argument("--images", type=int, help="only the first so many images")
    parser.add_argument("--picture", type=Path, help="write masked, repaired and true images here")
    args = parser.parse_args()
    config = load_config(args.config, as_overrides(args, OPTIONS))
    inpainter, dataset = Inpainter(config), InpaintingSet(config.data.root)
    if dataset.truth is None:
        raise UserError(f"{config.data.root}: repairs are judged against test/, which is not there")
    count = min(len(dataset), args.images or len(dataset))
    truth = np.stack([dataset.ground_truth(i) for i in range(count)])
    items = [dataset[i] for i in range(count)]
    holes = np.stack([item.hole for item in items])
    sides, seconds = {}, {}
    for name in args.sides:
        start = time.perf_counter()
        if (images := _side(name, inpainter, truth, holes)) is not None:
            sides[name] = images
        seconds[name] = round((time.perf_counter() - start) / count, 4)
    result = _figures(sides, truth, holes, inpainter.device)
    for name, figures in result.items():
        print(f"{name:12}", figures)
    if args.picture:
        _show(args.picture, sides, truth)
    details = {
        "images": count,
        "decoding": config.decoding.model_dump(),
        "seed": config.seed,
        "device": str(inpainter.device),
        "seconds_an_image": seconds,
        "tokenizer_sha256": content_hash([config.tokenizer_weights]),
        "transformer_sha256": content_hash([config.transformer_weights]),
    }
    report("repair", result, details)


def _side(
    name: str, inpainter: Inpainter, truth: np.ndarray, holes: np.ndarray
) -> np.ndarray | None:
    """Repairs of one side, (n, H, W, 3) uint8, or None where it is not installed."""
    if name == "grey":
        return np.where(holes[..., None], np.uint8(HOLE_COLOUR), truth)
    if name == "biharmonic":
        return _classical(truth, holes, lambda x, hole: fill_hole(x, hole, "biharmonic"))
    if name == "telea":
        telea = _telea()
        return telea and _classical(truth, holes, telea)
    if name == "report":
        as_reported = load_config(ROOT / "config/MaskGit.yml").decoding
        inpainter = Inpainter(inpainter.config.model_copy(update={"decoding": as_reported}))
    return np.concatenate(list(_repaired(inpainter, truth, holes, name)))


def _classical(truth: np.ndarray, holes: np.ndarray, fill) -> np.ndarray:
    """Fill each hole from its surroundings, (n, H, W, 3) uint8."""
    return np.stack([fill(image, hole) for image, hole in zip(truth, holes, strict=True)])


def _telea():
    """OpenCV's filling by fast marching (Telea 2004), or None where OpenCV is missing."""
    try:
        import cv2
    except ImportError:
        return None
    return lambda x, hole: cv2.inpaint(x, hole.astype(np.uint8), 3, cv2.INPAINT_TELEA)


def _repaired(
    inpainter: Inpainter, truth: np.ndarray, holes: np.ndarray, side: str
) -> Iterator[np.ndarray]:
    """Repairs batch by batch; only the sides that say so look at what a hole hides."""
    data = inpainter.config.data
    for start in tqdm(range(0, len(truth), BATCH), side, dynamic_ncols=True):
        part = slice(start, start + BATCH)
        images, where = truth[part], holes[part]
        masked = np.where(where[..., None], np.uint8(HOLE_COLOUR), images)
        if side == "true_tokens":
            pixels = normalise(images, data.mean, data.std).to(inpainter.device)
            token_ids = inpainter.maskgit.encode(pixels)
        else:
            filled = [inpainter.fill(*pair) for pair in zip(masked, where, strict=True)]
            shown = images if side == "without_leak" else np.stack(filled)
            places = list(range(start, start + len(images)))
            token_ids = inpainter.decode(shown, where, places, 1).token_ids[-1]
        yield _joined(inpainter, token_ids, masked, where)


def _joined(
    inpainter: Inpainter, token_ids: torch.Tensor, masked: np.ndarray, holes: np.ndarray
) -> np.ndarray:
    decoding = inpainter.config.decoding
    rows = zip(inpainter.decoded(token_ids), masked, holes, strict=True)
    return np.stack([composite(*row, decoding.composite, decoding.feather_width) for row in rows])


@torch.inference_mode()
def _figures(
    sides: dict[str, np.ndarray], truth: np.ndarray, holes: np.ndarray, device: torch.device
) -> dict[str, dict[str, float]]:
    """All figures of all sides, each against the same true images."""
    targets = torch.from_numpy(truth)
    distance, referee = (FeatureDistance(targets, device, how) for how in (DEFAULT, REFEREE))
    perceptual, result = perceptual_distance("efficientnet-lite0").to(device), {}
    for name, images in sides.items():
        parts = range(0, len(images), BATCH)
        scaled = (
            [torch.from_numpy(x[i : i + BATCH]).permute(0, 3, 1, 2).to(device) / 255 for i in parts]
            for x in (images, truth)
        )
        each = [perceptual(a, b).item() * len(a) for a, b in zip(*scaled, strict=True)]
        error = np.abs(images.astype(float) - truth)[holes].mean()
        result[name] = {
            "frechet": round(distance(torch.from_numpy(images)), 2),
            "frechet_referee": round(referee(torch.from_numpy(images)), 2),
            "perceptual": round(sum(each) / len(images), 4),
            "hole_mae": round(float(error), 2),
        }
    return result


def _show(path: Path, sides: dict[str, np.ndarray], truth: np.ndarray) -> None:
    """Rows of 12: masked, biharmonic, ours, true, as far as they were measured."""
    rows = []
    for start in range(0, min(PICTURES, len(truth)), 12):
        for images in (*(sides[side] for side in SHOWN if side in sides), truth):
            row = list(images[start : start + 12])
            rows += row + [np.zeros_like(truth[0])] * (12 - len(row))
    save_png(path, tile(rows, len(rows), 12))


if __name__ == "__main__":
    run(main)
